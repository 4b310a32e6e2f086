//! Scores and orders of one row, sixteen experts at a time: the bits of `scores.rs` and `select.rs`.
//!
//! A row is *tame* when no logit is so large that an exponential could underflow and nothing is NaN or infinite; that
//! is found out on the way, and a row that is not is computed again with all cases minded.

use crate::scores::{EXP, EXP_FLOOR, LN_2_HIGH, LN_2_LOW, LOG, ROUND, Scoring};
use crate::select::NEVER;
use crate::simd::lanes::{Lanes, WIDTH};

/// Below this size, an exponential of a logit is a normal number.
pub(crate) const TAME: f32 = 80.0;
pub(crate) const INDEX: [i32; WIDTH] = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15];
const SIGN: i32 = i32::MIN;
pub(crate) const MAGNITUDE: i32 = i32::MAX;

type Floats = [[f32; WIDTH]];
type Ints = [[i32; WIDTH]];

/// Writes the scores and orders of one row, and `NEVER` behind the last expert.
#[inline(always)]
pub(crate) fn score<L: Lanes, const BIAS: bool>(
    l: L,
    scoring: Scoring,
    row: &[f32],
    bias: &[f32],
    finite_bias: bool,
    scores: &mut Floats,
    orders: &mut Ints,
) {
    match scoring {
        Scoring::Sigmoid => {
            if !(finite_bias && each::<L, BIAS, false, true>(l, row, bias, scores, orders)) {
                each::<L, BIAS, false, false>(l, row, bias, scores, orders);
            }
        }
        Scoring::SqrtSoftplus => {
            if !(finite_bias && each::<L, BIAS, true, true>(l, row, bias, scores, orders)) {
                each::<L, BIAS, true, false>(l, row, bias, scores, orders);
            }
        }
        Scoring::Softmax => {
            let (largest, tame) = extremes(l, row);
            if finite_bias && tame {
                softmax::<L, BIAS, true>(l, row, largest, bias, scores, orders);
            } else {
                softmax::<L, BIAS, false>(l, row, cleaned_largest(row), bias, scores, orders);
            }
        }
    }
}

/// Sixteen numbers from the start of a shorter slice.
#[inline(always)]
fn padded(values: &[f32]) -> [f32; WIDTH] {
    let mut block = [0.0; WIDTH];
    for (to, from) in block.iter_mut().zip(values) {
        *to = *from;
    }
    block
}

/// Calls `$body` with the number of each vector of a row, the vector, that of the bias, and how many lanes are
/// experts.
macro_rules! for_each_vector {
    ($row:expr, $bias:expr, $biased:expr, |$at:ident, $x:ident, $b:ident, $lanes:ident| $body:block) => {
        let (full, rest) = $row.as_chunks::<WIDTH>();
        let (full_bias, rest_bias) = $bias.as_chunks::<WIDTH>();
        for $at in 0..full.len() {
            let ($x, $lanes) = (&full[$at], None::<usize>);
            let $b = if $biased {
                &full_bias[$at]
            } else {
                &[0.0; WIDTH]
            };
            $body
        }
        if !rest.is_empty() {
            let ($at, $lanes) = (full.len(), Some(rest.len()));
            let ($x, $b) = (&padded(rest), &padded(rest_bias));
            $body
        }
    };
}

/// Scores that depend on one logit each; returns whether the row was tame, or had all cases minded.
#[inline(always)]
fn each<L: Lanes, const BIAS: bool, const SOFTPLUS: bool, const TAME_ROW: bool>(
    l: L,
    row: &[f32],
    bias: &[f32],
    scores: &mut Floats,
    orders: &mut Ints,
) -> bool {
    // The size of the largest logit, by its bits: those of a negative number grow with its size, and NaN comes last.
    let mut worst = l.int_splat(SIGN);
    for_each_vector!(row, bias, BIAS, |at, logits, bias, lanes| {
        let given = l.load(logits);
        let x = if TAME_ROW { given } else { cleaned(l, given) };
        let negative = l.or(l.bits(x), l.int_splat(SIGN));
        if TAME_ROW {
            worst = l.int_max(worst, negative);
        }
        let score = if SOFTPLUS {
            sqrt_softplus::<L, TAME_ROW>(l, x)
        } else {
            sigmoid::<L, TAME_ROW>(l, x)
        };
        finish::<L, BIAS, TAME_ROW>(
            l,
            given,
            score,
            bias,
            lanes,
            &mut scores[at],
            &mut orders[at],
        );
    });
    !TAME_ROW || l.mask_bits(l.greater(worst, l.int_splat((-TAME).to_bits() as i32))) == 0
}

/// The exponential of minus the size of a number.
#[inline(always)]
fn exp_of_size<L: Lanes, const TAME_ROW: bool>(l: L, x: L::Float) -> L::Float {
    let negative = l.or(l.bits(x), l.int_splat(SIGN));
    exp_nonpositive::<L, TAME_ROW>(l, l.with_bits(negative))
}

#[inline(always)]
pub(crate) fn sigmoid<L: Lanes, const TAME_ROW: bool>(l: L, x: L::Float) -> L::Float {
    let small = exp_of_size::<L, TAME_ROW>(l, x);
    let one = l.splat(1.0);
    let minus = l.greater(l.int_splat(0), l.bits(x));
    let upper = l.with_bits(l.choose(minus, l.bits(small), l.bits(one)));
    l.div(upper, l.add(small, one))
}

#[inline(always)]
pub(crate) fn sqrt_softplus<L: Lanes, const TAME_ROW: bool>(l: L, x: L::Float) -> L::Float {
    let small = exp_of_size::<L, TAME_ROW>(l, x);
    let positive = l.max(x, l.splat(0.0));
    l.sqrt(l.add(positive, log1p_unit(l, small)))
}

/// The largest logit, and whether the differences of any two are tame.
#[inline(always)]
fn extremes<L: Lanes>(l: L, row: &[f32]) -> (f32, bool) {
    let mut largest = l.splat(f32::NEG_INFINITY);
    let mut worst = l.int_splat(0);
    for_each_vector!(row, &[0.0_f32; 0], false, |_at, logits, _bias, lanes| {
        let x = l.load(logits);
        let seen = match lanes {
            None => x,
            Some(lanes) => l.with_bits(only(l, lanes, l.bits(x), f32::NEG_INFINITY.to_bits())),
        };
        largest = l.max(largest, seen);
        worst = l.int_max(worst, l.and(l.bits(x), l.int_splat(MAGNITUDE)));
    });
    let limit = l.int_splat((TAME / 2.0).to_bits() as i32);
    let tame = l.mask_bits(l.greater(worst, limit)) == 0;
    (l.largest(largest), tame)
}

fn cleaned_largest(row: &[f32]) -> f32 {
    row.iter().copied().fold(f32::NEG_INFINITY, f32::max)
}

#[inline(always)]
fn softmax<L: Lanes, const BIAS: bool, const TAME_ROW: bool>(
    l: L,
    row: &[f32],
    largest: f32,
    bias: &[f32],
    scores: &mut Floats,
    orders: &mut Ints,
) {
    let largest = l.splat(largest);
    let mut sum = l.splat(0.0);
    for_each_vector!(row, &[0.0_f32; 0], false, |at, logits, _bias, lanes| {
        let x = l.load(logits);
        let shifted = if TAME_ROW {
            l.sub(x, largest)
        } else {
            // inf - inf is taken as zero: the largest logits share the mass, whatever their size.
            let shifted = l.bits(l.sub(cleaned(l, x), largest));
            l.with_bits(l.choose(is_nan(l, shifted), l.int_splat(0), shifted))
        };
        let mut value = exp_nonpositive::<L, TAME_ROW>(l, shifted);
        if let Some(lanes) = lanes {
            value = l.with_bits(only(l, lanes, l.bits(value), 0));
        }
        l.store(value, &mut scores[at]);
        sum = l.add(sum, value);
    });
    let sum = l.splat(l.tree_sum(sum));
    for_each_vector!(row, bias, BIAS, |at, logits, bias, lanes| {
        let score = l.div(l.load(&scores[at]), sum);
        let given = l.load(logits);
        finish::<L, BIAS, TAME_ROW>(
            l,
            given,
            score,
            bias,
            lanes,
            &mut scores[at],
            &mut orders[at],
        );
    });
}

/// The first lanes, and `other` behind them.
#[inline(always)]
pub(crate) fn only<L: Lanes>(l: L, lanes: usize, values: L::Int, other: u32) -> L::Int {
    let inside = l.greater(l.int_splat(lanes as i32), l.int_load(&INDEX));
    l.choose(inside, values, l.int_splat(other as i32))
}

#[inline(always)]
pub(crate) fn is_nan<L: Lanes>(l: L, bits: L::Int) -> L::Mask {
    let size = l.and(bits, l.int_splat(MAGNITUDE));
    l.greater(size, l.int_splat(f32::INFINITY.to_bits() as i32))
}

/// NaN counts as negative infinity.
#[inline(always)]
fn cleaned<L: Lanes>(l: L, x: L::Float) -> L::Float {
    let bits = l.bits(x);
    let floor = l.int_splat(f32::NEG_INFINITY.to_bits() as i32);
    l.with_bits(l.choose(is_nan(l, bits), floor, bits))
}

/// Writes the scores and the orders of a vector of experts.
#[inline(always)]
fn finish<L: Lanes, const BIAS: bool, const TAME_ROW: bool>(
    l: L,
    given: L::Float,
    score: L::Float,
    bias: &[f32; WIDTH],
    lanes: Option<usize>,
    to_score: &mut [f32; WIDTH],
    to_order: &mut [i32; WIDTH],
) {
    l.store(score, to_score);
    // Scores are no negative zeros, so neither are their sums with a bias, and keys without one order themselves.
    let mut order = l.bits(score);
    if BIAS {
        let key = l.bits(l.add(score, l.load(bias)));
        order = flip(l, key);
        if !TAME_ROW {
            order = l.choose(is_nan(l, key), l.int_splat(NEVER), order);
        }
    }
    if !TAME_ROW {
        order = l.choose(is_nan(l, l.bits(given)), l.int_splat(NEVER), order);
    }
    if let Some(lanes) = lanes {
        order = only(l, lanes, order, NEVER as u32);
    }
    l.int_store(order, to_order);
}

/// Bits to orders and back.
#[inline(always)]
pub(crate) fn flip<L: Lanes>(l: L, bits: L::Int) -> L::Int {
    l.xor(bits, l.and(l.sign(bits), l.int_splat(MAGNITUDE)))
}

#[inline(always)]
fn horner<L: Lanes>(l: L, x: L::Float, coefficients: &[f32]) -> L::Float {
    let mut value = l.splat(coefficients[0]);
    for &next in &coefficients[1..] {
        value = l.add(l.mul(value, x), l.splat(next));
    }
    value
}

/// As `scores::exp_nonpositive`; tame numbers need no floor, and their power of two is added to the exponent.
#[inline(always)]
pub(crate) fn exp_nonpositive<L: Lanes, const TAME_ROW: bool>(l: L, x: L::Float) -> L::Float {
    let x = if TAME_ROW {
        x
    } else {
        l.max(x, l.splat(EXP_FLOOR))
    };
    let rounded = l.add(l.mul(x, l.splat(std::f32::consts::LOG2_E)), l.splat(ROUND));
    let steps = l.sub(rounded, l.splat(ROUND));
    let rest = l.sub(x, l.mul(steps, l.splat(LN_2_HIGH)));
    let rest = l.sub(rest, l.mul(steps, l.splat(LN_2_LOW)));
    let value = l.mul(horner(l, rest, &EXP), l.mul(rest, rest));
    let value = l.add(l.add(value, rest), l.splat(1.0));
    if TAME_ROW {
        // The lowest nine bits of `ROUND` are zero.
        return l.with_bits(l.int_add(l.bits(value), l.shift_left_23(l.bits(rounded))));
    }
    let exponent = l.int_sub(l.bits(rounded), l.int_splat(ROUND.to_bits() as i32));
    let half = l.halve(exponent);
    let rest = l.int_sub(exponent, half);
    let bias = l.int_splat(127);
    let value = l.mul(value, l.with_bits(l.shift_left_23(l.int_add(half, bias))));
    l.mul(value, l.with_bits(l.shift_left_23(l.int_add(rest, bias))))
}

/// As `scores::log1p_unit`.
#[inline(always)]
fn log1p_unit<L: Lanes>(l: L, x: L::Float) -> L::Float {
    let s = l.div(x, l.add(x, l.splat(2.0)));
    let z = l.mul(s, s);
    let double = l.add(s, s);
    l.add(l.mul(l.mul(horner(l, z, &LOG), z), double), double)
}
