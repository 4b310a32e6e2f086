//! The inner loops, one element at a time: the specification of every tier.

use crate::float::{Element, e4m3_to_f32, e8m0_to_f32, f32_to_e4m3};
use crate::mxfp4::BLOCK;

/// The largest finite e4m3 number.
pub(crate) const LARGEST: f32 = 448.0;
const LANES: usize = 16;

#[inline(always)]
pub(crate) fn largest<T: Element>(x: &[T], start: u32) -> u32 {
    let mut lanes = [start; LANES];
    for chunk in x.chunks(LANES) {
        for (lane, value) in lanes.iter_mut().zip(chunk) {
            *lane = (*lane).max(value.load().to_bits() & 0x7fff_ffff);
        }
    }
    lanes.into_iter().fold(start, u32::max)
}

/// As [`largest`], NaN left out.
#[inline(never)]
pub(crate) fn largest_number<T: Element>(x: &[T], start: u32) -> u32 {
    x.iter()
        .map(|value| value.load().to_bits() & 0x7fff_ffff)
        .filter(|&bits| bits <= 0x7f80_0000)
        .fold(start, u32::max)
}

/// For any element and scale.
#[inline(always)]
pub(crate) fn encode_fp8<T: Element>(values: &[T], scale: f32, codes: &mut [u8]) {
    for (code, value) in codes.iter_mut().zip(values) {
        let value = value.load();
        let quotient = value / scale;
        let low = if quotient < -LARGEST {
            -LARGEST
        } else {
            quotient
        };
        let held = if low > LARGEST { LARGEST } else { low };
        // The sign of the NaN that inf / inf makes differs between processors: take it from the element.
        *code = f32_to_e4m3(held) & 0x7f | (value.to_bits() >> 24 & 0x80) as u8;
    }
}

/// As [`encode_fp8`], out of the way of usual blocks.
#[cold]
#[inline(never)]
pub(crate) fn encode_fp8_slowly<T: Element>(values: &[T], scale: f32, codes: &mut [u8]) {
    encode_fp8(values, scale, codes);
}

/// As [`decode_fp8`], out of the way of usual codes.
#[cold]
#[inline(never)]
pub(crate) fn decode_fp8_slowly<T: Element>(codes: &[u8], scale: f32, out: &mut [T]) {
    decode_fp8(codes, scale, out);
}

/// As [`encode_mxfp4`], out of the way of usual blocks.
#[cold]
#[inline(never)]
pub(crate) fn encode_mxfp4_slowly<T: Element>(x: &[T], codes: &mut [u8], scale: &mut u8) {
    encode_mxfp4(x, codes, std::slice::from_mut(scale));
}

/// For any codes and scale.
#[inline(always)]
pub(crate) fn decode_fp8<T: Element>(codes: &[u8], scale: f32, out: &mut [T]) {
    for (value, &code) in out.iter_mut().zip(codes) {
        *value = T::store(e4m3_to_f32(code) * scale);
    }
}

/// The code of the least power of two not below `amax / 6`, held to 0..=254.
#[inline(always)]
pub(crate) fn scale_code(amax: u32) -> u8 {
    let exponent = (amax >> 23) as i32;
    // 6 is 1.5 * 2^2: a mantissa over 1.5 needs the next power.
    let above = i32::from(amax & 0x7f_ffff > 0x40_0000);
    let code = (exponent - 2 + above).max(0) as u8;
    if amax == 0x7f80_0000 { 254 } else { code }
}

/// The e2m1 code nearest to a number, ties to even, held to 6 in size.
#[inline(always)]
fn encode_e2m1(value: f32) -> u8 {
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

/// For elements without NaN.
#[inline(always)]
pub(crate) fn encode_mxfp4<T: Element>(x: &[T], codes: &mut [u8], scales: &mut [u8]) {
    for ((block, codes), scale) in x
        .chunks_exact(BLOCK)
        .zip(codes.chunks_exact_mut(BLOCK / 2))
        .zip(scales)
    {
        *scale = scale_code(largest(block, 0));
        // The inverse is a power of two from 2^-127 to 2^127, so the product is the exact quotient.
        let inverse = e8m0_to_f32(254 - *scale);
        for (code, pair) in codes.iter_mut().zip(block.chunks_exact(2)) {
            *code =
                encode_e2m1(pair[0].load() * inverse) | encode_e2m1(pair[1].load() * inverse) << 4;
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

/// For whole blocks; scale code 255 makes every element the same NaN.
#[inline(always)]
pub(crate) fn decode_mxfp4<T: Element>(codes: &[u8], scales: &[u8], out: &mut [T]) {
    let blocks = codes
        .chunks_exact(BLOCK / 2)
        .zip(out.chunks_exact_mut(BLOCK));
    for ((codes, out), &scale) in blocks.zip(scales) {
        if scale == 255 {
            out.fill(T::store(e8m0_to_f32(255)));
            continue;
        }
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
            assert_eq!(scale_code((6.0 * power).to_bits()), code);
            assert_eq!(scale_code((6.0 * power).next_up().to_bits()), code + 1);
            assert_eq!(scale_code((3.0 * power).next_up().to_bits()), code);
        }
        assert_eq!(
            [0.0, 1e-45, f32::MAX, f32::INFINITY].map(|amax: f32| scale_code(amax.to_bits())),
            [0, 0, 253, 254]
        );
    }

    #[test]
    fn elements_round_to_the_nearest_code_and_midpoints_to_the_even_one() {
        for code in 0..7_u8 {
            let middle = f32::midpoint(VALUES[usize::from(code)], VALUES[usize::from(code) + 1]);
            let even = code + (code & 1);
            assert_eq!(encode_e2m1(middle), even);
            assert_eq!(encode_e2m1(-middle), even | 8);
            assert_eq!(encode_e2m1(middle.next_down()), code);
            assert_eq!(encode_e2m1(middle.next_up()), code + 1);
        }
        assert_eq!(
            [6.0, 7.0, f32::INFINITY, -0.0].map(encode_e2m1),
            [7, 7, 7, 8]
        );
    }
}
