//! Looking the experts of each token up, and weighing them by their scores.

use crate::error::{Error, Result, expect_length};
use crate::route::{Output, Weighting, check_experts, count};
use crate::scores::{Scoring, scores_row};
use crate::simd::Tier;

/// A table of the experts of each token id.
#[derive(Debug, Clone, Copy)]
pub struct Table<'a, T> {
    /// `[rows * top_k]` expert indices.
    pub experts: &'a [T],
    /// Experts per token.
    pub top_k: usize,
}

/// Looks the experts of each token up and weighs them by their scores; returns how many rows got NaN weights because
/// an expert's logit is NaN.
///
/// # Errors
/// A length that does not fit, a token id outside the table, an index in a used row that is no expert; nothing is
/// written then.
pub fn route_table<I, T>(
    tier: Tier,
    (scoring, weighting): (Scoring, Weighting),
    num_experts: usize,
    logits: &[f32],
    token_ids: &[I],
    table: Table<'_, T>,
    output: Output<'_>,
) -> Result<usize>
where
    I: Copy + Into<i64>,
    T: Copy + Into<i64>,
{
    check_experts(num_experts)?;
    let Table { experts, top_k } = table;
    if top_k == 0 || top_k > num_experts {
        return Err(Error::TopK {
            top_k,
            allowed: num_experts,
        });
    }
    let rows = experts.len() / top_k;
    expect_length("table", rows * top_k, experts.len())?;
    expect_length("logits", token_ids.len() * num_experts, logits.len())?;
    output.check(token_ids.len(), top_k, num_experts)?;
    let row_of = |id: I| {
        let id = id.into();
        let row = usize::try_from(id)
            .ok()
            .filter(|&row| row < rows)
            .ok_or(Error::Token { id, rows })?;
        Ok(&experts[row * top_k..(row + 1) * top_k])
    };
    for &id in token_ids {
        for &expert in row_of(id)? {
            let index = expert.into();
            if !usize::try_from(index).is_ok_and(|index| index < num_experts) {
                return Err(Error::Expert { index, num_experts });
            }
        }
    }
    let Output {
        weights,
        indices,
        mut load,
    } = output;
    let mut scores = vec![
        0.0_f32;
        if scoring == Scoring::Softmax {
            num_experts
        } else {
            0
        }
    ];
    let mut chosen_logits = vec![0.0_f32; top_k];
    let mut incomplete = 0;
    let results = weights
        .chunks_exact_mut(top_k)
        .zip(indices.chunks_exact_mut(top_k));
    for ((&id, logits), (weights, indices)) in token_ids
        .iter()
        .zip(logits.chunks_exact(num_experts))
        .zip(results)
    {
        let mut complete = true;
        let chosen = row_of(id)?.iter().map(|&expert| expert.into() as usize);
        for ((expert, chosen), index) in chosen.zip(&mut chosen_logits).zip(indices.iter_mut()) {
            complete &= !logits[expert].is_nan();
            *index = expert as i32;
            *chosen = logits[expert];
        }
        if scoring == Scoring::Softmax {
            tier.scores(scoring, logits, &mut scores);
            for (weight, &index) in weights.iter_mut().zip(indices.iter()) {
                *weight = scores[index as usize];
            }
        } else {
            // Such a score depends on its own logit alone.
            scores_row(scoring, &chosen_logits, weights);
        }
        if complete {
            weighting.apply(weights);
            count(load.as_deref_mut(), indices);
        } else {
            incomplete += 1;
            weights.fill(f32::NAN);
        }
    }
    Ok(incomplete)
}
