//! A first look at the experts of one row, for sigmoid scores in one group: which ones may be among the best.
//!
//! ```text
//! rough keys        sigmoid plus bias with an error below `SLACK`, in half the operations of the exact ones
//! threshold         the k-th best of the sixteen column maxima, less twice the error
//! candidates        experts above it: all that are among the best, and hardly any other
//! exact keys        of the candidates alone; the choice among them is that among all
//! ```
//!
//! With `|rough - key| <= error` for every expert, at least k keys reach `threshold - error`, so does the k-th best
//! key, and the rough keys of the best k reach `threshold - 2 * error`. An exponential here may be off by 4.2e-6 of
//! itself, a sigmoid by a quarter of that and some roundings, and the sum with a bias is rounded once in either.

use crate::lane_scores::{MAGNITUDE, TAME, finish, for_each_vector, only, padded, sigmoid};
use crate::lane_select::Choice;
use crate::scores::ROUND;
use crate::select::NEVER;
use crate::simd::lanes::{CANDIDATES, Lanes, WIDTH};

/// Coefficients of `2^f` for `|f| <= 1/2`, highest power first; off by at most 4e-6 of it.
const POWER: [f32; 5] = [
    0.009_570_102,
    0.055_917_86,
    0.240_247_44,
    0.693_121_8,
    0.999_999_3,
];
/// Twice the error of a sigmoid, and more.
const SLACK: f32 = 5e-6;
/// Twice the error of a sum over its size, and more.
const SLACK_OF_SIZE: f32 = 5e-7;

/// Writes rough orders of a row, those of keys below zero as zero, and `NEVER` behind the last expert; returns whether
/// the row was tame (`lane_scores.rs`).
#[inline(always)]
pub(crate) fn look<L: Lanes, const BIAS: bool>(
    l: L,
    row: &[f32],
    bias: &[f32],
    orders: &mut [[i32; WIDTH]],
) -> bool {
    let mut worst = l.int_splat(0);
    for_each_vector!(row, bias, BIAS, |at, logits, bias, lanes| {
        let x = l.load(logits);
        worst = l.int_max(worst, l.and(l.bits(x), l.int_splat(MAGNITUDE)));
        let mut key = rough_sigmoid(l, x);
        if BIAS {
            key = l.max(l.add(key, l.load(bias)), l.splat(0.0));
        }
        let mut order = l.bits(key);
        if let Some(lanes) = lanes {
            order = only(l, lanes, order, NEVER as u32);
        }
        l.int_store(order, &mut orders[at]);
    });
    l.mask_bits(l.greater(worst, l.int_splat(TAME.to_bits() as i32))) == 0
}

/// `1 / (1 + 2^(-x / ln 2))` for sizes up to `TAME`.
#[inline(always)]
fn rough_sigmoid<L: Lanes>(l: L, x: L::Float) -> L::Float {
    let scale = l.splat(-std::f32::consts::LOG2_E);
    let rounded = l.fused(x, scale, l.splat(ROUND));
    let rest = l.fused(x, scale, l.sub(l.splat(ROUND), rounded));
    let mut power = l.splat(POWER[0]);
    for &next in &POWER[1..] {
        power = l.fused(power, rest, l.splat(next));
    }
    // The lowest nine bits of `ROUND` are zero.
    let power = l.int_add(l.bits(power), l.shift_left_23(l.bits(rounded)));
    let one = l.splat(1.0);
    l.div(one, l.add(l.with_bits(power), one))
}

impl Choice {
    /// Lowers a threshold of rough orders so far that every expert among the best reaches it; whether it can.
    #[inline(always)]
    pub(crate) fn allow_for_error(&mut self) -> bool {
        let least = f32::from_bits(self.least.max(0).cast_unsigned());
        let least = least - (SLACK + SLACK_OF_SIZE * least);
        self.least = least.to_bits().cast_signed();
        least > 0.0
    }

    /// Puts the exact orders of the candidates in the place of the rough ones, and writes their scores; whether all
    /// candidates are there.
    #[inline(always)]
    pub(crate) fn refine<L: Lanes, const BIAS: bool>(
        &mut self,
        l: L,
        row: &[f32],
        bias: &[f32],
        scores: &mut [f32],
    ) -> bool {
        let candidates = self.candidates();
        let found = candidates.found;
        if found > CANDIDATES {
            return false;
        }
        for start in (0..found).step_by(WIDTH) {
            let end = (start + WIDTH).min(found);
            let indices = &candidates.indices[start..end];
            let (mut logits, mut biases, mut exact) = ([0.0; WIDTH], [0.0; WIDTH], [0.0; WIDTH]);
            for (lane, &index) in indices.iter().enumerate() {
                logits[lane] = row[index as usize];
                if BIAS {
                    biases[lane] = bias[index as usize];
                }
            }
            let given = l.load(&logits);
            let score = sigmoid::<L, true>(l, given);
            let Some(orders) = candidates.orders[start..].first_chunk_mut() else {
                return false;
            };
            finish::<L, BIAS, true>(l, given, score, &biases, None, &mut exact, orders);
            for (&index, score) in indices.iter().zip(exact) {
                scores[index as usize] = score;
            }
        }
        true
    }
}
