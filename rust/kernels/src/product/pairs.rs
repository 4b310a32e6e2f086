//! Products of pairs of bfloat16 numbers.
//!
//! ```text
//! lanes of an output = 0
//! for each group of 128 columns, ascending:  lanes = lanes + w[0] . x[0] + w[1] . x[1] + w[2] . x[2] + w[3] . x[3]
//! of FP4 weights:  lanes = (0 + w[0] . x[0] + w[1] . x[1] + w[2] . x[2] + w[3] . x[3]) * factors + lanes
//! output = the lanes, halves added until one is left
//! ```
//!
//! As in the other form, few tokens take their weights straight from memory and many tokens unpacked ones from a cache, and
//! an output's operations are the same either way.
#![cfg(target_arch = "x86_64")]

#[allow(
    clippy::wildcard_imports,
    reason = "a list of instructions would say nothing"
)]
use std::arch::x86_64::*;

use super::Product;
use crate::activation::{BlockScales, Form, wide_power};
use crate::avx512::Avx512;
use crate::matrix::{Bf16Rows, FP8_BLOCK, Fp8Rows, Mxfp4Rows, Weights};
use crate::memory::Buffer;
use crate::pairs::{LANES, PairRows, ScaledFp8Rows, TABLE};

/// Tokens multiplied together: with four rows sixteen sums, which are added up together too.
const TILE_TOKENS: usize = 4;
/// Tokens that take their weights straight from memory: with two rows sixteen sums.
const MOST_DIRECT_PAIR_TOKENS: usize = 8;
/// Tokens that go through scratch memory together, whole tiles.
const SCRATCH_TOKENS: usize = 128;

/// Does the same for each of at most eight rows, tokens or registers, whose number is known to the compiler: a loop would
/// leave their sums in memory.
macro_rules! each {
    ($count:ident, $which:ident, $body:block) => {
        each!($count, $which, $body, 0 1 2 3 4 5 6 7)
    };
    ($count:ident, $which:ident, $body:block, $($number:literal)*) => {$(
        if $number < $count {
            let $which = $number;
            $body
        }
    )*};
}

impl Product<'_> {
    /// The products of a panel of pairs.
    ///
    /// # Safety
    /// The tier's instructions are there.
    #[target_feature(enable = "avx2,fma,avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi,avx512bf16")]
    pub(super) unsafe fn multiply_pairs(&self, out: &mut [f32]) {
        let columns = self.matrix.columns;
        // SAFETY: the instructions are there, as this function's own features say; the matrix was checked when it was
        // made.
        unsafe {
            match self.matrix.weights {
                Weights::Fp8 { codes, scales } => {
                    let across = columns.div_ceil(FP8_BLOCK);
                    let row = self.rows.start / FP8_BLOCK;
                    let scales = BlockScales::new(Form::Pairs, scales, row, across);
                    let mut buffer = Buffer::take();
                    let tables = buffer.some(across * TABLE / 4);
                    let rows =
                        ScaledFp8Rows::new(Fp8Rows { codes, columns }, scales.factors(), tables);
                    self.with_pairs(rows, Some(&scales), out);
                }
                Weights::Mxfp4 { codes, scales } => {
                    let rows = Mxfp4Rows {
                        codes,
                        scales,
                        columns,
                    };
                    self.with_pairs(rows, None, out);
                }
                Weights::Bf16(values) => self.with_pairs(Bf16Rows { values, columns }, None, out),
                // Panels for float32 weights are lanes.
                Weights::F32(_) => self.multiply::<Avx512>(out),
            }
        }
    }

    #[inline(always)]
    unsafe fn with_pairs<R: PairRows>(
        &self,
        rows: R,
        scales: Option<&BlockScales>,
        out: &mut [f32],
    ) {
        let most = self.together(SCRATCH_TOKENS, TILE_TOKENS);
        let mut undo = [0.0; SCRATCH_TOKENS];
        for first in (0..self.len()).step_by(most) {
            let tokens = first..self.len().min(first + most);
            for (undo, token) in undo.iter_mut().zip(tokens.clone()) {
                let exponent = self.panel.exponents[self.token(token)];
                *undo =
                    scales.map_or_else(|| wide_power(exponent), |scales| scales.undoing(exponent));
            }
            let out = &mut out[first * self.rows.len()..tokens.end * self.rows.len()];
            // SAFETY: the caller has the tier's instructions.
            unsafe {
                if tokens.len() <= MOST_DIRECT_PAIR_TOKENS {
                    self.direct_pairs(rows, tokens, &undo, out);
                } else {
                    self.pairs_through_scratch(rows, tokens, &undo, out);
                }
            }
        }
    }

    /// A token's numbers.
    #[inline(always)]
    fn pairs_of(&self, token: usize) -> *const u16 {
        self.panel.token(self.token(token)).as_ptr().cast()
    }

    /// The numbers of some tokens.
    #[inline(always)]
    fn pairs_from<const T: usize>(&self, first: usize) -> [*const u16; T] {
        std::array::from_fn(|token| self.pairs_of(first + token))
    }
}

/// Sums, taken back to their own sizes: one rounding each.
#[inline(always)]
unsafe fn undone(sums: __m512, factors: &[f64; LANES]) -> [f32; LANES] {
    let mut out = [0.0; LANES];
    // SAFETY: the caller has the tier's instructions; sixteen factors, and as many products.
    unsafe {
        let (lower, upper) = (
            _mm512_castps512_ps256(sums),
            _mm512_extractf32x8_ps::<1>(sums),
        );
        let lower = _mm512_mul_pd(_mm512_cvtps_pd(lower), _mm512_loadu_pd(factors.as_ptr()));
        let upper = _mm512_mul_pd(
            _mm512_cvtps_pd(upper),
            _mm512_loadu_pd(factors.as_ptr().add(LANES / 2)),
        );
        _mm256_storeu_ps(out.as_mut_ptr(), _mm512_cvtpd_ps(lower));
        _mm256_storeu_ps(out.as_mut_ptr().add(LANES / 2), _mm512_cvtpd_ps(upper));
    }
    out
}

mod direct;
mod scratch;
