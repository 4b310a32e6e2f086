//! MXFP4: e2m1 elements, two to a byte, one power-of-two scale per 32.

use crate::error::{Error, Result, expect_length};
use crate::float::{Element, e8m0_to_f32};

/// Elements that share a scale.
pub(crate) const BLOCK: usize = 32;

/// Checks that columns fall into whole blocks, and the lengths of elements, codes and scales.
pub(crate) fn check(rows: usize, columns: usize, codes: usize, scales: usize) -> Result<()> {
    if columns == 0 || !columns.is_multiple_of(BLOCK) {
        return Err(Error::Columns { columns });
    }
    expect_length("codes", rows * columns / 2, codes)?;
    expect_length("scales", rows * columns / BLOCK, scales)
}

/// Counts the NaN of a slice.
pub(crate) fn check_no_nan<T: Element>(x: &[T]) -> Result<()> {
    match x.iter().filter(|value| value.load().is_nan()).count() {
        0 => Ok(()),
        count => Err(Error::Nan { count }),
    }
}

/// The code of the least power of two not below `amax / 6`, held to 0..=254.
fn scale_code(amax: f32) -> u8 {
    let bits = amax.to_bits();
    let exponent = (bits >> 23) as i32;
    if amax == f32::INFINITY {
        return 254;
    }
    // 6 is 1.5 * 2^2: a mantissa over 1.5 needs the next power.
    let above = i32::from(bits & 0x7f_ffff > 0x40_0000);
    (exponent - 2 + above).max(0) as u8
}

/// The e2m1 code nearest to a number, ties to even, held to 6 in size.
#[inline(always)]
fn encode(value: f32) -> u8 {
    let size = value.abs();
    let code = u8::from(size > 0.25)
        + u8::from(size >= 0.75)
        + u8::from(size > 1.25)
        + u8::from(size >= 1.75)
        + u8::from(size > 2.5)
        + u8::from(size >= 3.5)
        + u8::from(size > 5.0);
    code | (value.to_bits() >> 28 & 8) as u8
}

/// Quantizes checked slices without NaN.
#[inline(always)]
pub(crate) fn quantize<T: Element>(x: &[T], codes: &mut [u8], scales: &mut [u8]) {
    for ((block, codes), scale) in x
        .chunks_exact(BLOCK)
        .zip(codes.chunks_exact_mut(BLOCK / 2))
        .zip(scales)
    {
        let amax = block
            .iter()
            .fold(0.0_f32, |amax, value| amax.max(value.load().abs()));
        *scale = scale_code(amax);
        // The inverse is a power of two from 2^-127 to 2^127, so the product is the exact quotient.
        let inverse = e8m0_to_f32(254 - *scale);
        for (code, pair) in codes.iter_mut().zip(block.chunks_exact(2)) {
            *code = encode(pair[0].load() * inverse) | encode(pair[1].load() * inverse) << 4;
        }
    }
}

/// The value of an e2m1 code, without a table so that loops compile to vector code.
#[inline(always)]
fn e2m1_to_f32(code: u8) -> f32 {
    let bits = u32::from(code);
    let magnitude = bits & 7;
    let small = if magnitude == 1 { 0.5_f32.to_bits() } else { 0 };
    let size = if magnitude < 2 {
        small
    } else {
        (magnitude << 22) + (126 << 23)
    };
    f32::from_bits(size | (bits & 8) << 28)
}

/// Decodes checked whole blocks.
#[inline(always)]
pub(crate) fn decode<T: Element>(codes: &[u8], scales: &[u8], out: &mut [T]) {
    let blocks = codes
        .chunks_exact(BLOCK / 2)
        .zip(out.chunks_exact_mut(BLOCK));
    for ((codes, out), &scale) in blocks.zip(scales) {
        let scale = e8m0_to_f32(scale);
        // A copy cannot overlap `out`, which the compiler would check for at run time.
        let mut copy = [0; BLOCK / 2];
        copy.copy_from_slice(codes);
        for (pair, &code) in out.chunks_exact_mut(2).zip(&copy) {
            pair[0] = T::store(e2m1_to_f32(code & 15) * scale);
            pair[1] = T::store(e2m1_to_f32(code >> 4) * scale);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The values of the sixteen codes.
    const VALUES: [f32; 16] = [
        0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0,
    ];

    #[test]
    fn every_code_has_its_value() {
        for (code, value) in VALUES.iter().enumerate() {
            assert_eq!(e2m1_to_f32(code as u8).to_bits(), value.to_bits());
        }
    }

    #[test]
    fn the_scale_is_the_least_power_of_two_that_reaches_the_block() {
        for exponent in -120..120 {
            let power = 2.0_f32.powi(exponent);
            let code = (exponent + 127) as u8;
            assert_eq!(scale_code(6.0 * power), code);
            assert_eq!(scale_code((6.0 * power).next_up()), code + 1);
            assert_eq!(scale_code((3.0 * power).next_up()), code);
        }
        assert_eq!(
            [0.0, 1e-45, f32::MAX, f32::INFINITY].map(scale_code),
            [0, 0, 253, 254]
        );
    }

    #[test]
    fn elements_round_to_the_nearest_code_and_midpoints_to_the_even_one() {
        for code in 0..7_u8 {
            let middle = f32::midpoint(VALUES[usize::from(code)], VALUES[usize::from(code) + 1]);
            let even = code + (code & 1);
            assert_eq!(encode(middle), even);
            assert_eq!(encode(-middle), even | 8);
            assert_eq!(encode(middle.next_down()), code);
            assert_eq!(encode(middle.next_up()), code + 1);
        }
        assert_eq!([6.0, 7.0, f32::INFINITY, -0.0].map(encode), [7, 7, 7, 8]);
    }
}
