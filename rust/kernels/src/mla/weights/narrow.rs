//! Rows of the up projection in bfloat16, elements in their own order, FP8 codes without their scales.
//!
//! Codes of FP8 and of MXFP4 times its scales, powers of two, are exact there.
#![cfg(target_arch = "x86_64")]

#[allow(
    clippy::wildcard_imports,
    reason = "a list of instructions would say nothing"
)]
use std::arch::x86_64::*;

use abyssal_quant::{Bf16, Element, e4m3_to_f32};

use super::{Order, POWER_120, unpack};
use crate::avx512::Avx512;
use crate::matrix::{Matrix, Weights};
use crate::mla::pairs::{LANES, store_rounded};

/// Rows of a matrix.
#[derive(Clone, Copy)]
pub(in crate::mla) struct Narrow<'a> {
    pub(in crate::mla) matrix: &'a Matrix<'a>,
    pub(in crate::mla) order: &'a Order,
}

impl Narrow<'_> {
    /// Writes a row, and zeros up to `room` numbers; a row of FP8 with a code of NaN is NaN.
    ///
    /// # Safety
    /// AVX-512 F and BF16 are there; the row lies in the matrix and `room` numbers at `to`.
    #[inline(always)]
    pub(in crate::mla) unsafe fn row(&self, row: usize, to: *mut u16, room: usize) {
        let columns = self.matrix.columns;
        // SAFETY: as the caller promises; bfloat16 numbers are transparent over `u16`.
        unsafe {
            match self.matrix.weights {
                Weights::Fp8 { codes, .. } => {
                    let codes = &codes[row * columns..][..columns];
                    decode(codes, to);
                    if codes.iter().any(|&code| code & 0x7f == 0x7f) {
                        std::slice::from_raw_parts_mut(to, columns).fill(Bf16::store(f32::NAN).0);
                    }
                }
                Weights::Bf16(values) => {
                    let from = values[row * columns..][..columns].as_ptr().cast();
                    std::ptr::copy_nonoverlapping(from, to, columns);
                }
                Weights::Mxfp4 { .. } | Weights::F32(_) => {
                    let mut places = vec![0.0; self.order.width()];
                    unpack::<Avx512>(self.matrix, row..row + 1, places.as_mut_ptr());
                    let mut elements = vec![0.0; columns];
                    self.order.take(&places, &mut elements);
                    for (place, element) in elements.into_iter().enumerate() {
                        *to.add(place) = Bf16::store(element).0;
                    }
                }
            }
            std::slice::from_raw_parts_mut(to.add(columns), room - columns).fill(0);
        }
    }
}

/// Writes the values of codes.
#[inline(always)]
unsafe fn decode(codes: &[u8], to: *mut u16) {
    let (whole, rest) = codes.as_chunks::<LANES>();
    // SAFETY: the caller has the instructions and gives room.
    unsafe {
        let (sign, size) = (_mm512_set1_epi32(i32::MIN), _mm512_set1_epi32(0x7f << 20));
        for (number, codes) in whole.iter().enumerate() {
            let codes = _mm512_cvtepu8_epi32(_mm_loadu_si128(codes.as_ptr().cast()));
            // Exponent and mantissa where a float32 has them: 2^120 too small.
            let sign = _mm512_and_si512(_mm512_slli_epi32::<24>(codes), sign);
            let size = _mm512_and_si512(_mm512_slli_epi32::<20>(codes), size);
            let values = _mm512_castsi512_ps(_mm512_or_si512(sign, size));
            let values = _mm512_mul_ps(values, _mm512_set1_ps(POWER_120));
            store_rounded(values, to.add(number * LANES));
        }
        for (place, &code) in rest.iter().enumerate() {
            *to.add(whole.len() * LANES + place) = Bf16::store(e4m3_to_f32(code)).0;
        }
    }
}
