//! Rows of few experts, sixteen tokens at a time: a lane is a token, so nothing goes across a vector.
//!
//! ```text
//! x[e]      the logits of expert e, one of each token; then its exponentials or scores
//! best[s]   the s-th best order so far of each token, and `places[s]` its expert
//! ```
//!
//! An expert is put into the sorted list of each token by one comparison per place, whatever the tokens: an equal order
//! stays behind the ones before it, so ties go to the lower index. Only tame rows (see `lane_scores.rs`) are taken, in
//! one group of at most 64 experts, at most 8 of them chosen; the others go row by row.

use crate::lane_scores::{MAGNITUDE, TAME, exp_nonpositive, sigmoid, sqrt_softplus};
use crate::route::Rule;
use crate::scores::Scoring;
use crate::select::NEVER;
use crate::simd::lanes::{Lanes, WIDTH};

/// Most experts of a row.
pub(crate) const EXPERTS: usize = 64;
/// Most experts per token.
const PLACES: usize = 8;

/// Whether a rule's rows can be taken this way.
pub(crate) fn covers(rule: &Rule) -> bool {
    rule.num_experts <= EXPERTS && rule.top_k <= PLACES && rule.top_groups == rule.num_groups
}

/// Chooses and weighs the experts of rows, sixteen at a time, as long as they are tame; returns how many it did, all of
/// them complete.
#[inline(always)]
pub(crate) fn leading_rows<L: Lanes>(
    l: L,
    rule: &Rule,
    logits: &[f32],
    bias: Option<&[f32]>,
    weights: &mut [f32],
    indices: &mut [i32],
) -> usize {
    let mut columns = [[0.0_f32; WIDTH]; EXPERTS];
    let outputs = weights
        .chunks_exact_mut(WIDTH * rule.top_k)
        .zip(indices.chunks_exact_mut(WIDTH * rule.top_k));
    let mut done = 0;
    for (logits, (weights, indices)) in logits.chunks_exact(WIDTH * rule.num_experts).zip(outputs) {
        if !sixteen_rows(l, rule, logits, bias, &mut columns, weights, indices) {
            break;
        }
        done += WIDTH;
    }
    done
}

/// Chooses and weighs the experts of sixteen rows; whether it did.
#[inline(always)]
fn sixteen_rows<L: Lanes>(
    l: L,
    rule: &Rule,
    logits: &[f32],
    bias: Option<&[f32]>,
    columns: &mut [[f32; WIDTH]; EXPERTS],
    weights: &mut [f32],
    indices: &mut [i32],
) -> bool {
    let experts = rule.num_experts;
    transpose(l, logits, experts, columns);
    let x = &mut columns[..experts];
    let (mut largest, mut worst) = (l.load(&x[0]), l.int_splat(0));
    for x in &*x {
        let x = l.load(x);
        largest = l.max(largest, x);
        worst = l.int_max(worst, l.and(l.bits(x), l.int_splat(MAGNITUDE)));
    }
    // Differences of two logits of half the size are tame.
    let softmax = rule.scoring == Scoring::Softmax;
    let limit = if softmax { TAME / 2.0 } else { TAME };
    if l.mask_bits(l.greater(worst, l.int_splat(limit.to_bits() as i32))) != 0 {
        return false;
    }
    match rule.scoring {
        Scoring::Softmax => softmax_scores(l, largest, x),
        Scoring::Sigmoid => {
            for x in &mut *x {
                l.store(sigmoid::<L, true>(l, l.load(x)), x);
            }
        }
        Scoring::SqrtSoftplus => {
            for x in &mut *x {
                l.store(sqrt_softplus::<L, true>(l, l.load(x)), x);
            }
        }
    }
    if rule.top_k <= 4 {
        choose::<L, 4>(l, rule, x, bias, weights, indices);
    } else if rule.top_k <= 6 {
        choose::<L, 6>(l, rule, x, bias, weights, indices);
    } else {
        choose::<L, PLACES>(l, rule, x, bias, weights, indices);
    }
    true
}

#[inline(always)]
fn transpose<L: Lanes>(l: L, logits: &[f32], experts: usize, to: &mut [[f32; WIDTH]; EXPERTS]) {
    let full = experts - experts % WIDTH;
    let none = [0.0; WIDTH];
    for first in (0..full).step_by(WIDTH) {
        let mut from = [&none; WIDTH];
        for (token, from) in from.iter_mut().enumerate() {
            *from = logits[token * experts + first..]
                .first_chunk()
                .unwrap_or(&none);
        }
        if let Some(to) = to[first..].first_chunk_mut() {
            l.transpose(&from, to);
        }
    }
    for expert in full..experts {
        for token in 0..WIDTH {
            to[expert][token] = logits[token * experts + expert];
        }
    }
}

/// Exponentials over their sum: those of the experts 16 apart are added first, in order, then halves of the rest.
#[inline(always)]
fn softmax_scores<L: Lanes>(l: L, largest: L::Float, x: &mut [[f32; WIDTH]]) {
    let mut sums = [[0.0_f32; WIDTH]; WIDTH];
    for chunk in x.chunks_mut(WIDTH) {
        for (x, sum) in chunk.iter_mut().zip(&mut sums) {
            let value = exp_nonpositive::<L, true>(l, l.sub(l.load(x), largest));
            l.store(value, x);
            l.store(l.add(l.load(sum), value), sum);
        }
    }
    let mut width = WIDTH;
    while width > 1 {
        width /= 2;
        for lane in 0..width {
            let sum = l.add(l.load(&sums[lane]), l.load(&sums[lane + width]));
            l.store(sum, &mut sums[lane]);
        }
    }
    let sum = l.load(&sums[0]);
    for x in x {
        l.store(l.div(l.load(x), sum), x);
    }
}

/// Keeps the best `N` experts of each token, and writes the first of them.
#[inline(always)]
fn choose<L: Lanes, const N: usize>(
    l: L,
    rule: &Rule,
    scores: &[[f32; WIDTH]],
    bias: Option<&[f32]>,
    weights: &mut [f32],
    indices: &mut [i32],
) {
    let (mut best, mut chosen) = ([[NEVER; WIDTH]; N], [[0; WIDTH]; N]);
    l.insert_all(scores, bias, &mut best, &mut chosen);
    let mut values = [[0.0_f32; WIDTH]; N];
    for place in 0..N {
        if bias.is_none() {
            // Without a bias the order of a score is its bits.
            l.store(l.with_bits(l.int_load(&best[place])), &mut values[place]);
        } else {
            for token in 0..WIDTH {
                values[place][token] = scores[chosen[place][token] as usize][token];
            }
        }
    }
    let count = rule.top_k.min(N);
    let mut total = l.load(&values[0]);
    for value in &values[1..count] {
        total = l.add(total, l.load(value));
    }
    let total = l.add(total, l.splat(1e-20));
    for value in &mut values[..count] {
        let mut weight = l.load(value);
        if rule.weighting.normalize {
            weight = l.div(weight, total);
        }
        l.store(l.mul(weight, l.splat(rule.weighting.scale)), value);
    }
    let rows = weights
        .chunks_exact_mut(count)
        .zip(indices.chunks_exact_mut(count));
    for (token, (weights, indices)) in rows.enumerate().take(WIDTH) {
        for place in 0..count {
            weights[place] = values[place][token];
            indices[place] = chosen[place][token];
        }
    }
}
