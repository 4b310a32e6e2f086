//! A routing rule, and the choice of experts and weights for each row of logits.

use crate::error::{Error, Result, expect_length};
use crate::lane_select::Choice;
use crate::logits::Logits;
use crate::scores::{Scoring, scores_row};
use crate::select::{GroupScore, NEVER, group_order, index_of, order, top};
use crate::simd::Tier;
use crate::simd::lanes::WIDTH;

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
    /// Checks the lengths.
    ///
    /// # Errors
    /// The first that does not fit.
    pub fn check(&self, tokens: usize, top_k: usize, num_experts: usize) -> Result<()> {
        expect_length("weights", tokens * top_k, self.weights.len())?;
        expect_length("indices", tokens * top_k, self.indices.len())?;
        self.load.as_ref().map_or(Ok(()), |load| {
            expect_length("load", num_experts, load.len())
        })
    }
}

pub(crate) fn check_experts(num_experts: usize) -> Result<()> {
    match num_experts {
        0 => Err(Error::NoExperts),
        1..=0x7fff_ffff => Ok(()),
        _ => Err(Error::TooManyExperts { num_experts }),
    }
}

impl Rule {
    /// Checks that the numbers fit together.
    ///
    /// # Errors
    /// The first that does not.
    pub fn check(&self) -> Result<()> {
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
    fn keep_groups(&self, orders: &mut [i32]) {
        let size = self.num_experts / self.num_groups;
        with_ranks(self.top_groups, |best| {
            let groups = orders.chunks_exact(size);
            top(
                groups.map(|orders| group_order(self.group_score, orders)),
                best,
            );
            for (group, orders) in orders.chunks_exact_mut(size).enumerate() {
                if !best.iter().any(|&rank| index_of(rank) == group) {
                    orders.fill(NEVER);
                }
            }
        });
    }

    /// Chooses and weighs the experts of one row; returns whether there were enough.
    pub(crate) fn choose(
        &self,
        scores: &[f32],
        orders: &mut [i32],
        weights: &mut [f32],
        indices: &mut [i32],
    ) -> bool {
        if self.top_groups < self.num_groups {
            self.keep_groups(orders);
        }
        with_ranks(self.top_k, |best| {
            top(orders.iter().copied(), best);
            for ((&rank, weight), index) in best.iter().zip(weights.iter_mut()).zip(indices) {
                *index = index_of(rank) as i32;
                *weight = scores[index_of(rank)];
            }
            // Ranks descend, so the last one tells whether all may be chosen.
            let complete = orders[index_of(best[self.top_k - 1])] != NEVER;
            if complete {
                self.weighting.apply(weights);
            } else {
                weights.fill(f32::NAN);
            }
            complete
        })
    }
}

/// Runs `work` with memory for `count` ranks, on the stack if they are few.
fn with_ranks<T>(count: usize, work: impl FnOnce(&mut [i64]) -> T) -> T {
    const FEW: usize = 64;
    if count <= FEW {
        work(&mut [0; FEW][..count])
    } else {
        work(&mut vec![0; count])
    }
}

impl Weighting {
    /// Turns a row of scores into weights, in place.
    #[inline]
    pub(crate) fn apply(self, weights: &mut [f32]) {
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

/// A call that was checked.
pub(crate) struct Job<'a> {
    pub(crate) rule: &'a Rule,
    pub(crate) logits: Logits<'a>,
    pub(crate) bias: Option<&'a [f32]>,
}

/// Memory of the rows that are routed together. Rows are those of the experts, rounded up to whole vectors.
pub(crate) struct Scratch<'a> {
    /// Logits of one row that came in a narrower format.
    pub(crate) widened: &'a mut [f32],
    pub(crate) scores: &'a mut [f32],
    /// Each row is one vector longer, so that a vector can be read from the start of every expert.
    pub(crate) orders: &'a mut [i32],
    /// One for each row.
    pub(crate) choices: &'a mut [Choice],
}

impl Scratch<'_> {
    /// Runs `work` with scratch memory for some of the tokens, on the stack unless rows are very long.
    fn with<T>(
        num_experts: usize,
        tokens: usize,
        narrow: bool,
        work: impl FnOnce(&mut Scratch<'_>) -> T,
    ) -> T {
        macro_rules! on_stack {
            ($experts:literal, $widened:literal, $rows:literal) => {
                work(&mut Scratch {
                    widened: &mut [0.0; $widened],
                    scores: &mut [0.0; $experts * $rows],
                    orders: &mut [NEVER; ($experts + WIDTH) * $rows],
                    choices: &mut [Choice::EMPTY; $rows],
                })
            };
        }
        match (num_experts, tokens, narrow) {
            (..=256, ..=1, false) => on_stack!(256, 0, 1),
            (..=64, _, _) => on_stack!(64, 64, 8),
            (..=256, _, _) => on_stack!(256, 256, 8),
            (..=1024, ..=1, _) => on_stack!(1024, 1024, 1),
            (..=512, _, _) => on_stack!(512, 512, 4),
            (..=1024, _, _) => on_stack!(1024, 1024, 3),
            _ => {
                let padded = num_experts.next_multiple_of(WIDTH);
                work(&mut Scratch {
                    widened: &mut vec![0.0; if narrow { padded } else { 0 }],
                    scores: &mut vec![0.0; padded],
                    orders: &mut vec![NEVER; padded + WIDTH],
                    choices: &mut [Choice::EMPTY],
                })
            }
        }
    }
}

/// Chooses experts and weights for each row of logits; returns how many rows got NaN weights because fewer than
/// `top_k` of their experts could be chosen.
///
/// Ties go to the lower index. A NaN logit counts as negative infinity and is never chosen; experts outside the kept
/// groups neither. A row without enough experts has in-range indices without meaning and adds nothing to the load.
/// Up to 1024 experts, 64 groups kept and 64 experts per token, nothing is allocated.
///
/// # Errors
/// A rule or a length that does not fit; nothing is written then.
pub fn route<'a>(
    tier: Tier,
    rule: &Rule,
    logits: impl Into<Logits<'a>>,
    bias: Option<&[f32]>,
    mut output: Output<'_>,
) -> Result<usize> {
    let logits = logits.into();
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
    let job = Job { rule, logits, bias };
    let narrow = logits.is_narrow();
    Ok(Scratch::with(num_experts, tokens, narrow, |scratch| {
        tier.rows(&job, &mut output, scratch)
    }))
}

/// Routes the rows of a job: the specification.
pub(crate) fn rows(job: &Job<'_>, output: &mut Output<'_>, scratch: &mut Scratch<'_>) -> usize {
    let Job { rule, logits, bias } = *job;
    let scores = &mut scratch.scores[..rule.num_experts];
    let orders = &mut scratch.orders[..rule.num_experts];
    let mut incomplete = 0;
    let outputs = output
        .weights
        .chunks_exact_mut(rule.top_k)
        .zip(output.indices.chunks_exact_mut(rule.top_k));
    for (token, (weights, indices)) in outputs.enumerate() {
        let row = logits.row(token, rule.num_experts, scratch.widened);
        scores_row(rule.scoring, row, scores);
        for (expert, (slot, logit)) in orders.iter_mut().zip(row).enumerate() {
            let key = scores[expert] + bias.map_or(0.0, |bias| bias[expert]);
            *slot = if logit.is_nan() || key.is_nan() {
                NEVER
            } else {
                order(key)
            };
        }
        if rule.choose(scores, orders, weights, indices) {
            count(output.load.as_deref_mut(), indices);
        } else {
            incomplete += 1;
        }
    }
    incomplete
}

#[inline(always)]
pub(crate) fn count(load: Option<&mut [i64]>, indices: &[i32]) {
    if let Some(load) = load {
        for &index in indices {
            load[index as usize] += 1;
        }
    }
}
