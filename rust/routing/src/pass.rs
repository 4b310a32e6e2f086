//! One pass over a token, sixteen experts at a time: scores, groups, the best experts, weights, load.
//!
//! ```text
//! scores, orders    of all experts, as `scores.rs` and `select.rs` define them
//! groups            the two best orders of each, in the columns of a vector, then across it
//! threshold         the k-th best of the sixteen column maxima of what is kept: at least k orders are as good
//! candidates        orders at or above the threshold, about 11 for the best 8 whatever the number of experts
//! ranks             of each candidate: how many others beat it
//! ```
//!
//! Sigmoid scores in one group are found roughly first, and exactly for the candidates alone (`rough.rs`).
//!
//! Each step waits for the one before, so a few tokens take each step together, and the processor overlaps them.
//! Rows of few experts are taken sixteen at a time (`columns.rs`). Shapes that the vectors do not cover (more than 16 experts per token or 16 groups), rows with many ties and rows
//! without enough experts are chosen from by the specification.

use crate::columns;
use crate::lane_scores::score;
use crate::lane_select::{MOST, best_groups};
use crate::logits::Logits;
use crate::rough::look;
use crate::route::{Job, Output, Rule, Scratch, count};
use crate::scores::Scoring;
use crate::simd::lanes::{Lanes, WIDTH};

/// Routes the rows of a job that was checked; the same bits as `route::rows`.
#[inline(always)]
pub(crate) fn rows<L: Lanes>(
    l: L,
    job: &Job<'_>,
    output: &mut Output<'_>,
    scratch: &mut Scratch<'_>,
) -> usize {
    let Job { rule, logits, bias } = *job;
    let finite_bias = bias.is_none_or(|bias| bias.iter().all(|bias| bias.is_finite()));
    let tokens = output.weights.len() / rule.top_k;
    let columns = match logits {
        Logits::F32(logits) if finite_bias && tokens >= WIDTH && columns::covers(rule) => logits,
        _ => &[],
    };
    let mut incomplete = 0;
    let (mut token, mut by_rows) = (0, 0);
    while token < tokens {
        if !columns.is_empty() && tokens - token >= WIDTH && token >= by_rows {
            let cells = token * rule.top_k;
            let (weights, indices) = (&mut output.weights[cells..], &mut output.indices[cells..]);
            let logits = &columns[token * rule.num_experts..];
            let done = columns::leading_rows(l, rule, logits, bias, weights, indices);
            count(output.load.as_deref_mut(), &indices[..done * rule.top_k]);
            token += done;
            // The next sixteen are not all tame.
            by_rows = token + WIDTH;
            continue;
        }
        let rest = tokens - token;
        let tokens = scratch.choices.len().min(rest);
        incomplete += some_rows(l, job, finite_bias, token, tokens, output, scratch);
        token += tokens;
    }
    incomplete
}

/// Writes the exact scores and orders of one row.
#[inline(always)]
fn score_row<L: Lanes>(
    l: L,
    job: &Job<'_>,
    finite_bias: bool,
    row: &[f32],
    scores: &mut [[f32; WIDTH]],
    orders: &mut [[i32; WIDTH]],
) {
    let scoring = job.rule.scoring;
    match job.bias {
        Some(bias) => score::<L, true>(l, scoring, row, bias, finite_bias, scores, orders),
        None => score::<L, false>(l, scoring, row, &[], true, scores, orders),
    }
}

/// Routes some rows, each step for all of them.
#[inline(always)]
fn some_rows<L: Lanes>(
    l: L,
    job: &Job<'_>,
    finite_bias: bool,
    first: usize,
    tokens: usize,
    output: &mut Output<'_>,
    scratch: &mut Scratch<'_>,
) -> usize {
    let Job { rule, logits, bias } = *job;
    let experts = rule.num_experts;
    let padded = experts.next_multiple_of(WIDTH);
    let grouped = rule.top_groups < rule.num_groups;
    let covered = rule.top_k <= MOST && (!grouped || rule.num_groups <= MOST);
    let size = if grouped {
        experts / rule.num_groups
    } else {
        padded
    };
    let Scratch {
        widened,
        scores,
        orders,
        choices,
    } = scratch;
    let choices = &mut choices[..tokens];
    let rough = covered && !grouped && finite_bias && rule.scoring == Scoring::Sigmoid;
    let rows = scores
        .chunks_exact_mut(padded)
        .zip(orders.chunks_exact_mut(padded + WIDTH));
    for (token, (scores, orders)) in rows.take(tokens).enumerate() {
        let row = logits.row(first + token, experts, widened);
        let (scores, orders) = (scores.as_chunks_mut().0, orders.as_chunks_mut().0);
        if rough {
            choices[token].tame = match bias {
                Some(bias) => look::<L, true>(l, row, bias, orders),
                None => look::<L, false>(l, row, &[], orders),
            };
        } else {
            score_row(l, job, finite_bias, row, scores, orders);
        }
    }
    if rough {
        for (choice, orders) in choices.iter_mut().zip(orders.chunks_exact(padded + WIDTH)) {
            choice.find_least(l, rule.top_k, size, orders);
            choice.tame &= choice.allow_for_error();
        }
        for (choice, orders) in choices.iter_mut().zip(orders.chunks_exact(padded + WIDTH)) {
            choice.collect(l, size, orders);
        }
        let rows = scores
            .chunks_exact_mut(padded)
            .zip(orders.chunks_exact_mut(padded + WIDTH));
        for (token, (choice, (scores, orders))) in choices.iter_mut().zip(rows).enumerate() {
            let row = logits.row(first + token, experts, widened);
            let refined = choice.tame
                && match bias {
                    Some(bias) => choice.refine::<L, true>(l, row, bias, scores),
                    None => choice.refine::<L, false>(l, row, &[], scores),
                };
            if !refined {
                let (blocks, orders_of) = (scores.as_chunks_mut().0, orders.as_chunks_mut().0);
                score_row(l, job, finite_bias, row, blocks, orders_of);
                choice.find_least(l, rule.top_k, size, orders);
                choice.collect(l, size, orders);
            }
        }
    } else if covered {
        let rows = || orders.chunks_exact(padded + WIDTH);
        if grouped {
            for (choice, orders) in choices.iter_mut().zip(rows()) {
                choice.kept = best_groups(l, rule, orders);
            }
        }
        for (choice, orders) in choices.iter_mut().zip(rows()) {
            choice.find_least(l, rule.top_k, size, orders);
        }
        for (choice, orders) in choices.iter_mut().zip(rows()) {
            choice.collect(l, size, orders);
        }
    }
    let mut incomplete = 0;
    let cells = first * rule.top_k..(first + tokens) * rule.top_k;
    let outputs = output.weights[cells.clone()]
        .chunks_exact_mut(rule.top_k)
        .zip(output.indices[cells].chunks_exact_mut(rule.top_k));
    let rows = scores
        .chunks_exact(padded)
        .zip(orders.chunks_exact_mut(padded + WIDTH));
    for ((choice, (scores, orders)), (weights, indices)) in
        choices.iter_mut().zip(rows).zip(outputs)
    {
        if covered && choice.rank(l) {
            choice.deliver(l, rule, scores, weights, indices);
        } else if !by_specification(rule, scores, orders, weights, indices) {
            incomplete += 1;
            continue;
        }
        count(output.load.as_deref_mut(), indices);
    }
    incomplete
}

#[cold]
#[inline(never)]
fn by_specification(
    rule: &Rule,
    scores: &[f32],
    orders: &mut [i32],
    weights: &mut [f32],
    indices: &mut [i32],
) -> bool {
    let orders = &mut orders[..rule.num_experts];
    rule.choose(&scores[..rule.num_experts], orders, weights, indices)
}
