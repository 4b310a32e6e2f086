//! A routing rule, and the choice of experts and weights for each row of logits.

use crate::error::{Error, Result, expect_length};
use crate::scores::Scoring;
use crate::select::{GroupScore, NEVER, group_order, index_of, order, top};
use crate::simd::Tier;

/// Which experts a token gets, and with what weight.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Rule {
    /// Number of experts, zero experts included.
    pub num_experts: usize,
    /// Experts per token.
    pub top_k: usize,
    /// How logits become scores.
    pub scoring: Scoring,
    /// Number of equal groups of consecutive experts.
    pub num_groups: usize,
    /// Groups kept per token.
    pub top_groups: usize,
    /// How groups are ranked.
    pub group_score: GroupScore,
    /// How scores become weights.
    pub weighting: Weighting,
}

/// How the scores of the chosen experts become weights.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Weighting {
    /// Divide by the sum plus 1e-20.
    pub normalize: bool,
    /// Factor, last.
    pub scale: f32,
}

/// Where a call writes: rows of `top_k` weights and indices, and a counter per expert that is added to.
#[derive(Debug)]
pub struct Output<'a> {
    /// `[num_tokens * top_k]`.
    pub weights: &'a mut [f32],
    /// `[num_tokens * top_k]`.
    pub indices: &'a mut [i32],
    /// `[num_experts]`: how many tokens each expert got.
    pub load: Option<&'a mut [i64]>,
}

impl Output<'_> {
    fn check(&self, tokens: usize, top_k: usize, num_experts: usize) -> Result<()> {
        expect_length("weights", tokens * top_k, self.weights.len())?;
        expect_length("indices", tokens * top_k, self.indices.len())?;
        self.load.as_ref().map_or(Ok(()), |load| {
            expect_length("load", num_experts, load.len())
        })
    }
}

fn check_experts(num_experts: usize) -> Result<()> {
    match num_experts {
        0 => Err(Error::NoExperts),
        1..=0x7fff_ffff => Ok(()),
        _ => Err(Error::TooManyExperts { num_experts }),
    }
}

impl Rule {
    fn check(&self) -> Result<()> {
        let Self {
            num_experts,
            top_k,
            num_groups,
            top_groups,
            ..
        } = *self;
        check_experts(num_experts)?;
        if num_groups == 0 || !num_experts.is_multiple_of(num_groups) {
            return Err(Error::Groups {
                num_groups,
                num_experts,
            });
        }
        if top_groups == 0 || top_groups > num_groups {
            return Err(Error::TopGroups {
                top_groups,
                num_groups,
            });
        }
        let allowed = num_experts / num_groups * top_groups;
        if top_k == 0 || top_k > allowed {
            return Err(Error::TopK { top_k, allowed });
        }
        Ok(())
    }

    /// Bars the experts outside the best groups.
    fn keep_groups(&self, keys: &[f32], orders: &mut [u32], best: &mut [u64]) {
        let size = self.num_experts / self.num_groups;
        let groups = keys.chunks_exact(size).zip(orders.chunks_exact(size));
        top(
            groups.map(|(keys, orders)| group_order(self.group_score, keys, orders)),
            best,
        );
        for (group, orders) in orders.chunks_exact_mut(size).enumerate() {
            if !best.iter().any(|&rank| index_of(rank) == group) {
                orders.fill(NEVER);
            }
        }
    }
}

impl Weighting {
    /// Turns a row of scores into weights, in place.
    fn apply(self, weights: &mut [f32]) {
        if self.normalize {
            // Infinite scores share the weight: the limit, where their quotients would be NaN.
            if weights.contains(&f32::INFINITY) {
                for weight in weights.iter_mut() {
                    *weight = f32::from(*weight == f32::INFINITY);
                }
            }
            let total = weights[1..]
                .iter()
                .fold(weights[0], |total, &weight| total + weight)
                + 1e-20;
            for weight in weights.iter_mut() {
                *weight /= total;
            }
        }
        for weight in weights {
            *weight *= self.scale;
        }
    }
}

/// Chooses experts and weights for each row of logits; returns how many rows got NaN weights because fewer than
/// `top_k` of their experts could be chosen.
///
/// Ties go to the lower index. A NaN logit counts as negative infinity and is never chosen; experts outside the kept
/// groups neither. A row without enough experts has in-range indices without meaning and adds nothing to the load.
///
/// # Errors
/// A rule or a length that does not fit; nothing is written then.
pub fn route(
    tier: Tier,
    rule: &Rule,
    logits: &[f32],
    bias: Option<&[f32]>,
    output: Output<'_>,
) -> Result<usize> {
    rule.check()?;
    let Rule {
        num_experts, top_k, ..
    } = *rule;
    let tokens = logits.len() / num_experts;
    expect_length("logits", tokens * num_experts, logits.len())?;
    output.check(tokens, top_k, num_experts)?;
    if let Some(bias) = bias {
        expect_length("correction_bias", num_experts, bias.len())?;
    }
    let Output {
        weights,
        indices,
        mut load,
    } = output;
    let mut scores = vec![0.0_f32; num_experts];
    let mut biased = vec![0.0_f32; if bias.is_some() { num_experts } else { 0 }];
    let mut orders = vec![NEVER; num_experts];
    let mut best = vec![0_u64; top_k];
    let mut best_groups = vec![0_u64; rule.top_groups];
    let mut incomplete = 0;
    let rows = logits
        .chunks_exact(num_experts)
        .zip(weights.chunks_exact_mut(top_k))
        .zip(indices.chunks_exact_mut(top_k));
    for ((logits, weights), indices) in rows {
        tier.scores(rule.scoring, logits, &mut scores);
        let keys = match bias {
            None => &scores,
            Some(bias) => {
                for ((key, score), bias) in biased.iter_mut().zip(&scores).zip(bias) {
                    *key = score + bias;
                }
                &biased
            }
        };
        for ((slot, &key), logit) in orders.iter_mut().zip(keys).zip(logits) {
            *slot = if logit.is_nan() || key.is_nan() {
                NEVER
            } else {
                order(key)
            };
        }
        if rule.top_groups < rule.num_groups {
            rule.keep_groups(keys, &mut orders, &mut best_groups);
        }
        top(orders.iter().copied(), &mut best);
        for ((&rank, weight), index) in best.iter().zip(weights.iter_mut()).zip(indices.iter_mut())
        {
            *index = index_of(rank) as i32;
            *weight = scores[index_of(rank)];
        }
        // Ranks descend, so the last one tells whether all may be chosen.
        if orders[index_of(best[top_k - 1])] == NEVER {
            incomplete += 1;
            weights.fill(f32::NAN);
            continue;
        }
        rule.weighting.apply(weights);
        count(load.as_deref_mut(), indices);
    }
    Ok(incomplete)
}

fn count(load: Option<&mut [i64]>, indices: &[i32]) {
    if let Some(load) = load {
        for &index in indices {
            load[index as usize] += 1;
        }
    }
}

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
    let mut scores = vec![0.0_f32; num_experts];
    let mut incomplete = 0;
    let results = weights
        .chunks_exact_mut(top_k)
        .zip(indices.chunks_exact_mut(top_k));
    for ((&id, logits), (weights, indices)) in token_ids
        .iter()
        .zip(logits.chunks_exact(num_experts))
        .zip(results)
    {
        tier.scores(scoring, logits, &mut scores);
        let mut complete = true;
        for ((&expert, weight), index) in row_of(id)?
            .iter()
            .zip(weights.iter_mut())
            .zip(indices.iter_mut())
        {
            let expert = expert.into() as usize;
            complete &= !logits[expert].is_nan();
            *index = expert as i32;
            *weight = scores[expert];
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
