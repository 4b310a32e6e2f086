//! Router scores in exactly defined float32 arithmetic: the specification.
//!
//! `exp` and `log1p` are polynomials in single additions, multiplications and divisions, each rounded to nearest
//! even, none contracted. So the bits are the same on every machine, in every instruction tier, and in PyTorch, where
//! `reference/scores.py` does the same steps. `exp` is within 0.97 units in the last place and `log1p` within 1.97 over
//! every float32 of their domain.

/// Coefficients of `(exp(r) - 1 - r) / r^2` for `|r| <= ln(2) / 2`, highest power first.
pub(crate) const EXP: [f32; 6] = [
    0.000_199_183_87,
    0.001_394_607_4,
    0.008_333_264,
    0.041_666_27,
    0.166_666_67,
    0.5,
];
/// Coefficients of `(atanh(s) / s - 1) / s^2` in `z = s^2` for `0 <= s <= 1/3`, highest power first.
pub(crate) const LOG: [f32; 5] = [
    0.121_504_664,
    0.107_138_29,
    0.143_084_42,
    0.199_994_39,
    0.333_333_37,
];
/// Nine bits: its product with an exponent is exact.
pub(crate) const LN_2_HIGH: f32 = 355.0 / 512.0;
pub(crate) const LN_2_LOW: f32 = -0.000_212_194_44;
/// Below this the exponential is under half the smallest subnormal number, so zero.
pub(crate) const EXP_FLOOR: f32 = -104.0;
/// Adding this to a number below 2^22 in size rounds it to an integer, held in the lowest bits.
pub(crate) const ROUND: f32 = 12_582_912.0;
/// Lanes of a row's sum.
const LANES: usize = 16;

/// How logits become scores.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scoring {
    /// Softmax over all experts.
    Softmax,
    /// The logistic function of each logit.
    Sigmoid,
    /// The square root of the softplus of each logit.
    SqrtSoftplus,
}

#[inline(always)]
fn horner(x: f32, coefficients: &[f32]) -> f32 {
    coefficients[1..]
        .iter()
        .fold(coefficients[0], |value, &next| value * x + next)
}

#[inline(always)]
fn power_of_two(exponent: i32) -> f32 {
    f32::from_bits(((exponent + 127) as u32) << 23)
}

/// `exp(x)` for `x <= 0`, negative infinity included.
#[inline(always)]
pub fn exp_nonpositive(x: f32) -> f32 {
    let x = if x > EXP_FLOOR { x } else { EXP_FLOOR };
    let rounded = x * std::f32::consts::LOG2_E + ROUND;
    let steps = rounded - ROUND;
    let rest = (x - steps * LN_2_HIGH) - steps * LN_2_LOW;
    let value = (horner(rest, &EXP) * (rest * rest) + rest) + 1.0;
    // Two factors, because 2^-150 is no float32: the first product is exact, the second rounds once.
    let exponent = (rounded.to_bits() as i32).wrapping_sub(ROUND.to_bits() as i32);
    let half = exponent >> 1;
    value * power_of_two(half) * power_of_two(exponent - half)
}

/// `log(1 + x)` for `x` in `[0, 1]`.
#[inline(always)]
pub(crate) fn log1p_unit(x: f32) -> f32 {
    let s = x / (x + 2.0);
    let z = s * s;
    let double = s + s;
    horner(z, &LOG) * z * double + double
}

/// NaN counts as negative infinity.
#[inline(always)]
fn cleaned(logit: f32) -> f32 {
    if logit.is_nan() {
        f32::NEG_INFINITY
    } else {
        logit
    }
}

#[inline(always)]
fn sigmoid(logits: &[f32], scores: &mut [f32]) {
    for (score, &logit) in scores.iter_mut().zip(logits) {
        let logit = cleaned(logit);
        let small = exp_nonpositive(-logit.abs());
        *score = if logit >= 0.0 { 1.0 } else { small } / (small + 1.0);
    }
}

#[inline(always)]
fn sqrt_softplus(logits: &[f32], scores: &mut [f32]) {
    for (score, &logit) in scores.iter_mut().zip(logits) {
        let logit = cleaned(logit);
        let positive = if logit > 0.0 { logit } else { 0.0 };
        *score = (positive + log1p_unit(exp_nonpositive(-logit.abs()))).sqrt();
    }
}

#[inline(always)]
fn softmax(logits: &[f32], scores: &mut [f32]) {
    let mut largest = [f32::NEG_INFINITY; LANES];
    for chunk in logits.chunks(LANES) {
        for (most, &logit) in largest.iter_mut().zip(chunk) {
            // False for NaN.
            *most = if logit > *most { logit } else { *most };
        }
    }
    let largest = largest.into_iter().fold(f32::NEG_INFINITY, f32::max);
    let mut lanes = [0.0_f32; LANES];
    for (scores, logits) in scores.chunks_mut(LANES).zip(logits.chunks(LANES)) {
        for ((score, &logit), lane) in scores.iter_mut().zip(logits).zip(&mut lanes) {
            let logit = cleaned(logit);
            // inf - inf is taken as zero: the largest logits share the mass, whatever their size.
            let shifted = if logit == largest {
                0.0
            } else {
                logit - largest
            };
            *score = exp_nonpositive(shifted);
            *lane += *score;
        }
    }
    let mut width = LANES;
    while width > 1 {
        width /= 2;
        for lane in 0..width {
            lanes[lane] += lanes[lane + width];
        }
    }
    for score in scores {
        *score /= lanes[0];
    }
}

/// Writes the scores of one row of logits. Lengths are equal.
#[inline(always)]
pub(crate) fn scores_row(scoring: Scoring, logits: &[f32], scores: &mut [f32]) {
    match scoring {
        Scoring::Softmax => softmax(logits, scores),
        Scoring::Sigmoid => sigmoid(logits, scores),
        Scoring::SqrtSoftplus => sqrt_softplus(logits, scores),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Error in units in the last place of the exact value, at least those of the smallest normal number.
    fn ulps(value: f32, exact: f64) -> f64 {
        let exponent = exact.max(f64::from(f32::MIN_POSITIVE)).log2().floor() as i32;
        (f64::from(value) - exact).abs() / 2.0_f64.powi(exponent - 23)
    }

    /// Every float32 in steps, an odd number so that all low bits occur; `ABYSSAL_TEST_PROFILE=full` takes them all.
    fn step() -> usize {
        match std::env::var("ABYSSAL_TEST_PROFILE").as_deref() {
            Ok("full") => 1,
            Ok("emulated") => 60_013,
            _ => 61,
        }
    }

    #[test]
    fn exp_is_within_one_unit_in_the_last_place() {
        let mut worst = 0.0_f64;
        for bits in (0..=105.0_f32.to_bits()).step_by(step()) {
            let x = -f32::from_bits(bits);
            worst = worst.max(ulps(exp_nonpositive(x), f64::from(x).exp()));
        }
        println!("exp: {worst:.4} ulp");
        assert!(worst <= 0.97, "{worst}");
    }

    #[test]
    fn log1p_is_within_two_units_in_the_last_place() {
        let mut worst = 0.0_f64;
        for bits in (0..=1.0_f32.to_bits()).step_by(step()) {
            let x = f32::from_bits(bits);
            worst = worst.max(ulps(log1p_unit(x), f64::from(x).ln_1p()));
        }
        println!("log1p: {worst:.4} ulp");
        assert!(worst <= 1.97, "{worst}");
    }

    #[test]
    fn scores_of_infinite_logits_are_their_limits() {
        let logits = [f32::INFINITY, f32::NEG_INFINITY, f32::NAN, -0.0];
        let mut scores = [7.0; 4];
        scores_row(Scoring::Sigmoid, &logits, &mut scores);
        assert_eq!(scores, [1.0, 0.0, 0.0, 0.5]);
        scores_row(Scoring::Softmax, &logits, &mut scores);
        assert_eq!(scores, [1.0, 0.0, 0.0, 0.0]);
        scores_row(Scoring::SqrtSoftplus, &logits, &mut scores);
        assert_eq!(scores[..3], [f32::INFINITY, 0.0, 0.0]);
    }
}
