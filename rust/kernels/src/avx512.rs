//! Sixteen lanes with AVX-512 F, BW and DQ.
#![cfg(target_arch = "x86_64")]

#[allow(
    clippy::wildcard_imports,
    reason = "a list of instructions would say nothing"
)]
use std::arch::x86_64::*;

use crate::lanes::{Lanes, Packing, REGISTERS};
use crate::mxfp4::{E2M1, E8M0};
use crate::scalar::Scalar;

/// Sixteen lanes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Avx512(pub(crate) __m512);

impl Lanes for Avx512 {
    const WIDTH: usize = 16;

    #[inline(always)]
    unsafe fn zero() -> Self {
        // SAFETY: the caller's tier has the instructions.
        Self(unsafe { _mm512_setzero_ps() })
    }

    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        // SAFETY: the caller gives sixteen numbers.
        Self(unsafe { _mm512_loadu_ps(from) })
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        // SAFETY: the caller gives room for sixteen numbers.
        unsafe { _mm512_storeu_ps(to, self.0) };
    }

    #[inline(always)]
    unsafe fn mul_add(self, other: Self, sum: Self) -> Self {
        // SAFETY: the caller's tier has the instructions.
        Self(unsafe { _mm512_fmadd_ps(self.0, other.0, sum.0) })
    }

    #[inline(always)]
    unsafe fn sum(self) -> f32 {
        // SAFETY: the caller's tier has the instructions.
        unsafe {
            let upper = _mm512_extractf32x8_ps::<1>(self.0);
            let eight = _mm256_add_ps(_mm512_castps512_ps256(self.0), upper);
            let upper = _mm256_extractf128_ps::<1>(eight);
            let four = _mm_add_ps(_mm256_castps256_ps128(eight), upper);
            let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
            _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)))
        }
    }

    #[inline(always)]
    unsafe fn fp8(codes: *const u8) -> [Self; REGISTERS] {
        // SAFETY: the caller gives 64 codes and its tier has the instructions.
        unsafe {
            let four = _mm512_loadu_si512(codes.cast());
            // Sign, exponent and mantissa of a code, moved to where a float32 has them.
            let mask = _mm512_set1_epi32(0x87f0_0000_u32.cast_signed());
            let place = |top| {
                let bits = _mm512_and_si512(_mm512_srai_epi32::<4>(top), mask);
                Self(_mm512_castsi512_ps(bits))
            };
            [
                place(_mm512_slli_epi32::<24>(four)),
                place(_mm512_slli_epi32::<16>(four)),
                place(_mm512_slli_epi32::<8>(four)),
                place(four),
            ]
        }
    }

    #[inline(always)]
    unsafe fn fp8_largest(seen: Self, codes: *const u8) -> Self {
        // SAFETY: the caller gives 64 codes and its tier has the instructions.
        unsafe {
            let codes = _mm512_loadu_si512(codes.cast());
            let sizes = _mm512_and_si512(codes, _mm512_set1_epi8(0x7f));
            let largest = _mm512_max_epu8(_mm512_castps_si512(seen.0), sizes);
            Self(_mm512_castsi512_ps(largest))
        }
    }

    #[inline(always)]
    unsafe fn has_nan_code(seen: Self) -> bool {
        // SAFETY: the caller's tier has the instructions.
        unsafe { _mm512_cmpeq_epi8_mask(_mm512_castps_si512(seen.0), _mm512_set1_epi8(0x7f)) != 0 }
    }

    #[inline(always)]
    unsafe fn mxfp4(codes: *const u8, scales: [u8; 2]) -> [Self; REGISTERS] {
        // SAFETY: the caller gives 32 bytes and its tier has the instructions.
        unsafe {
            let values = _mm512_loadu_ps(E2M1.as_ptr());
            let block = |at: usize, scale: u8| {
                let bytes = _mm512_cvtepu8_epi32(_mm_loadu_si128(codes.add(at).cast()));
                // The look-up takes the lowest four bits of an index.
                let scale = _mm512_set1_ps(E8M0[usize::from(scale)]);
                let table = _mm512_mul_ps(values, scale);
                [
                    Self(_mm512_permutexvar_ps(bytes, table)),
                    Self(_mm512_permutexvar_ps(_mm512_srli_epi32::<4>(bytes), table)),
                ]
            };
            let ([a, b], [c, d]) = (block(0, scales[0]), block(16, scales[1]));
            [a, b, c, d]
        }
    }

    #[inline(always)]
    unsafe fn bf16(values: *const u16) -> [Self; REGISTERS] {
        // SAFETY: the caller gives 64 numbers and its tier has the instructions.
        unsafe {
            let odd = _mm512_set1_epi32(0xffff_0000_u32.cast_signed());
            let pair = |at| {
                let pairs = _mm512_loadu_si512(values.add(at).cast());
                [
                    Self(_mm512_castsi512_ps(_mm512_slli_epi32::<16>(pairs))),
                    Self(_mm512_castsi512_ps(_mm512_and_si512(pairs, odd))),
                ]
            };
            let ([a, b], [c, d]) = (pair(0), pair(32));
            [a, b, c, d]
        }
    }

    fn element(packing: Packing, place: usize) -> usize {
        Scalar::<16>::element(packing, place)
    }
}
