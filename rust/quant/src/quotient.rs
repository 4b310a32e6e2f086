//! A quotient without division has the codes of the true one.
//!
//! `x / scale` decides a code by where it lies among the midpoints between neighboring codes. Rounded to float32 first,
//! it may become a midpoint that it was only close to; the tie then goes to the even code. So a quotient computed
//! otherwise must round to a midpoint exactly when the true one does, and lie on the same side of it otherwise.
//!
//! Powers of two in `x` and `scale` do not change any rounding, so the mantissas of scales and midpoints are all cases:
//! 2^23 times 16. For each, the numbers `x` within four units in the last place of `midpoint * scale` are tried. For
//! every other `x` the quotient is over two units away from the midpoint, and no tier's error reaches one.

use crate::Tier;
use crate::kernels::{GROUP, Kernels};
use crate::scalar;

/// Midpoints of normal numbers, then of subnormal ones, as multiples of 2^-4 and of 2^-10.
const MIDPOINTS: [f32; 16] = [
    17.0, 19.0, 21.0, 23.0, 25.0, 27.0, 29.0, 31.0, 1.0, 3.0, 5.0, 7.0, 9.0, 11.0, 13.0, 15.0,
];
const NEIGHBORS: i32 = 8;

/// Fills `x` with the numbers around `midpoint * scale`.
fn hardest(scale: f32, x: &mut [f32; 128]) {
    for (index, (x, midpoint)) in x
        .as_chunks_mut::<8>()
        .0
        .iter_mut()
        .zip(MIDPOINTS)
        .enumerate()
    {
        let unit = if index < 8 { 0.0625 } else { 1.0 / 1024.0 };
        let center = (midpoint * unit * scale).to_bits() as i32 - NEIGHBORS / 2;
        for (offset, x) in (0..).zip(x) {
            *x = f32::from_bits((center + offset) as u32);
        }
    }
}

/// How many of some scales have other codes than the scalar tier's.
#[inline(always)]
pub(crate) fn count_differences<K: Kernels>(kernels: K, exponent: u32, step: usize) -> usize {
    let mut count = 0;
    let (mut x, mut codes, mut expected) = ([0.0; 128], [0; 128], [0; 128]);
    for mantissa in (0..1 << 23).step_by(step) {
        let scale = f32::from_bits(exponent << 23 | mantissa);
        hardest(scale, &mut x);
        kernels.encode_fp8(&x, kernels.divisors(&[scale; GROUP])[0], &mut codes);
        scalar::encode_fp8(&x, scale, &mut expected);
        count += usize::from(codes != expected);
    }
    count
}

#[test]
fn every_scale_and_midpoint_gets_the_code_of_the_true_quotient() {
    let emulated = std::env::var("ABYSSAL_TEST_PROFILE").is_ok_and(|name| name == "emulated");
    let step = if emulated { 1009 } else { 1 };
    // The first tier is the one that divides.
    for tier in &Tier::available()[1..] {
        println!("{}: every {step}th of 2^23 scales", tier.name());
        assert_eq!(tier.count_differences(127, step), 0);
    }
}
