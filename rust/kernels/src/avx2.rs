//! Eight lanes with AVX2 and fused multiply-add.
#![cfg(target_arch = "x86_64")]

#[allow(
    clippy::wildcard_imports,
    reason = "a list of instructions would say nothing"
)]
use std::arch::x86_64::*;

use crate::lanes::{Lanes, Packing, REGISTERS};
use crate::mxfp4::{LOWEST, SCALED};
use crate::scalar::Scalar;

/// Eight lanes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Avx2(pub(crate) __m256);

impl Lanes for Avx2 {
    const WIDTH: usize = 8;
    const FEW: bool = true;

    #[inline(always)]
    unsafe fn zero() -> Self {
        // SAFETY: the caller's tier has the instructions.
        Self(unsafe { _mm256_setzero_ps() })
    }

    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        // SAFETY: the caller gives eight numbers.
        Self(unsafe { _mm256_loadu_ps(from) })
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        // SAFETY: the caller gives room for eight numbers.
        unsafe { _mm256_storeu_ps(to, self.0) };
    }

    #[inline(always)]
    unsafe fn mul_add(self, other: Self, sum: Self) -> Self {
        // SAFETY: the caller's tier has the instructions.
        Self(unsafe { _mm256_fmadd_ps(self.0, other.0, sum.0) })
    }

    #[inline(always)]
    unsafe fn sum(self) -> f32 {
        // SAFETY: the caller's tier has the instructions.
        unsafe {
            let upper = _mm256_extractf128_ps::<1>(self.0);
            let four = _mm_add_ps(_mm256_castps256_ps128(self.0), upper);
            let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
            _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)))
        }
    }

    #[inline(always)]
    unsafe fn fp8(codes: *const u8) -> [Self; REGISTERS] {
        // SAFETY: the caller gives 32 codes and its tier has the instructions.
        unsafe {
            let four = _mm256_loadu_si256(codes.cast());
            // Sign, exponent and mantissa of a code, moved to where a float32 has them.
            let mask = _mm256_set1_epi32(0x87f0_0000_u32.cast_signed());
            let place = |top| {
                let bits = _mm256_and_si256(_mm256_srai_epi32::<4>(top), mask);
                Self(_mm256_castsi256_ps(bits))
            };
            [
                place(_mm256_slli_epi32::<24>(four)),
                place(_mm256_slli_epi32::<16>(four)),
                place(_mm256_slli_epi32::<8>(four)),
                place(four),
            ]
        }
    }

    #[inline(always)]
    unsafe fn fp8_largest(seen: Self, codes: *const u8) -> Self {
        // SAFETY: the caller gives 32 codes and its tier has the instructions.
        unsafe {
            let sizes = _mm256_and_si256(_mm256_loadu_si256(codes.cast()), _mm256_set1_epi8(0x7f));
            let largest = _mm256_max_epu8(_mm256_castps_si256(seen.0), sizes);
            Self(_mm256_castsi256_ps(largest))
        }
    }

    #[inline(always)]
    unsafe fn has_nan_code(seen: Self) -> bool {
        // SAFETY: the caller's tier has the instructions.
        unsafe {
            let equal = _mm256_cmpeq_epi8(_mm256_castps_si256(seen.0), _mm256_set1_epi8(0x7f));
            _mm256_movemask_epi8(equal) != 0
        }
    }

    #[inline(always)]
    unsafe fn mxfp4(codes: *const u8, scales: [u8; 2]) -> [Self; REGISTERS] {
        let table = &SCALED[usize::from(scales[0])];
        // SAFETY: the caller gives 16 bytes and its tier has the instructions.
        unsafe {
            let both =
                |bytes: *const u8| _mm256_broadcastsi128_si256(_mm_loadu_si128(bytes.cast()));
            // The lower codes in the lower half, the upper ones in the other.
            let places = _mm256_setr_epi64x(0, 0, 4, 4);
            let codes =
                _mm256_and_si256(_mm256_srlv_epi64(both(codes), places), _mm256_set1_epi8(15));
            let upper = _mm256_shuffle_epi8(both(table.upper.as_ptr()), codes);
            let lower = _mm256_shuffle_epi8(both(table.lower.as_ptr()), codes);
            let (first, second) = (
                _mm256_unpacklo_epi8(lower, upper),
                _mm256_unpackhi_epi8(lower, upper),
            );
            // A mask of whole words would be made a shuffle, of which there are many.
            let odd = _mm256_set1_epi32(-1 << LOWEST);
            [
                Self(_mm256_castsi256_ps(_mm256_slli_epi32::<16>(first))),
                Self(_mm256_castsi256_ps(_mm256_and_si256(first, odd))),
                Self(_mm256_castsi256_ps(_mm256_slli_epi32::<16>(second))),
                Self(_mm256_castsi256_ps(_mm256_and_si256(second, odd))),
            ]
        }
    }

    #[inline(always)]
    unsafe fn bf16(values: *const u16) -> [Self; REGISTERS] {
        // SAFETY: the caller gives 32 numbers and its tier has the instructions.
        unsafe {
            let odd = _mm256_set1_epi32(0xffff_0000_u32.cast_signed());
            let pair = |at| {
                let pairs = _mm256_loadu_si256(values.add(at).cast());
                [
                    Self(_mm256_castsi256_ps(_mm256_slli_epi32::<16>(pairs))),
                    Self(_mm256_castsi256_ps(_mm256_and_si256(pairs, odd))),
                ]
            };
            let ([a, b], [c, d]) = (pair(0), pair(16));
            [a, b, c, d]
        }
    }

    fn element(packing: Packing, place: usize) -> usize {
        Scalar::<8>::element(packing, place)
    }
}
