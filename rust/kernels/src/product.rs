//! Some rows of a matrix times some tokens: what every task of a region computes.
//!
//! ```text
//! lanes of an output = 0;  for each group of the row, ascending:  lanes = x * w + lanes, each register in its order
//! output = the lanes, halves added until one is left
//! ```
//!
//! One chain of fused multiply-adds runs along a row, so an output's bits follow from the row and its token alone: not
//! from the number of tokens, their places, the threads, or whether the weights were unpacked on the way (few tokens) or
//! to scratch memory first (many). FP8 scales are part of the activation, a copy for each row of blocks.
//!
//! Few tokens: four rows at once, straight from memory, the lines of the rows to come asked for early. Many tokens: 64
//! rows by 512 columns are unpacked into the second-level cache and multiplied with all tokens there.

use std::ops::Range;

use abyssal_quant::Scales;

use crate::activation::{BlockScales, Form, PanelView};
use crate::lanes::{Lanes, REGISTERS, prefetch};
use crate::matrix::{
    Bf16Rows, F32Rows, FP8_BLOCK, Fp8Rows, Matrix, Mxfp4Rows, Place, Rows, Stored, Weights,
};
use crate::tier::{Kind, Tier};

/// Rows of a task; they lie in one row of FP8 blocks.
pub(crate) const TASK_ROWS: usize = 64;
/// Rows multiplied together.
const TILE_ROWS: usize = 4;
/// Rows that stay in the first-level cache while all tokens pass.
const STRIP_ROWS: usize = 8;
/// More tokens than this go through scratch memory.
const MOST_DIRECT_TOKENS: usize = 4;
/// Tokens that go through scratch memory together, whole tiles of three: with the lanes of 64 rows they take half of a
/// small second-level cache.
const SCRATCH_TOKENS: usize = 63;
/// Tokens laid out together.
pub(crate) const PANEL_TOKENS: usize = 256;
/// Columns unpacked together: with 64 rows, a quarter of a small second-level cache.
const SCRATCH_COLUMNS: usize = 512;
/// How far ahead lines are asked for, at least.
const AHEAD_BYTES: usize = 16_384;
const LINE: usize = 64;
/// Multiplications that are worth a thread.
const WORK_PER_THREAD: usize = 1 << 15;

/// Some rows of a matrix, and the tokens to multiply them with.
pub(crate) struct Product<'a> {
    pub(crate) matrix: &'a Matrix<'a>,
    pub(crate) panel: PanelView<'a>,
    /// Numbers of tokens of the panel; all of them if `None`.
    pub(crate) tokens: Option<&'a [u32]>,
    /// At most [`TASK_ROWS`], in one row of FP8 blocks.
    pub(crate) rows: Range<usize>,
    /// What this thread will probably read next: memory is asked for it while there is still work.
    pub(crate) next: Place,
}

impl Product<'_> {
    /// Writes the products to `out`, `[tokens, rows]`.
    pub(crate) fn run(&self, tier: Tier, out: &mut [f32]) {
        assert_eq!(out.len(), self.len() * self.rows.len());
        match tier.0 {
            // SAFETY: scalar lanes need no instructions beyond the target's.
            Kind::Scalar => unsafe { self.multiply::<crate::scalar::Scalar<8>>(out) },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: a tier of this kind is made only where the processor has its instructions.
            Kind::Avx2 => unsafe { self.multiply_avx2(out) },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: as above.
            Kind::Avx512Bf16 if self.panel.form == Form::Pairs => unsafe {
                self.multiply_pairs(out);
            },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: as above.
            Kind::Avx512 | Kind::Avx512Bf16 => unsafe { self.multiply_avx512(out) },
            #[cfg(target_arch = "aarch64")]
            // SAFETY: as above.
            Kind::Neon => unsafe { self.multiply_neon(out) },
        }
    }

    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx2,fma")]
    unsafe fn multiply_avx2(&self, out: &mut [f32]) {
        // SAFETY: the instructions are there, as this function's own features say.
        unsafe { self.multiply::<crate::avx2::Avx2>(out) }
    }

    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx2,fma,avx512f,avx512bw,avx512dq")]
    unsafe fn multiply_avx512(&self, out: &mut [f32]) {
        // SAFETY: the instructions are there, as this function's own features say.
        unsafe { self.multiply::<crate::avx512::Avx512>(out) }
    }

    #[cfg(target_arch = "aarch64")]
    #[target_feature(enable = "neon")]
    unsafe fn multiply_neon(&self, out: &mut [f32]) {
        // SAFETY: the instructions are there, as this function's own features say.
        unsafe { self.multiply::<crate::neon::Neon>(out) }
    }

    #[inline(always)]
    unsafe fn multiply<L: Lanes>(&self, out: &mut [f32]) {
        let columns = self.matrix.columns;
        // SAFETY: the caller has the tier's instructions; the matrix was checked when it was made.
        unsafe {
            match self.matrix.weights {
                Weights::Fp8 { codes, scales } => {
                    self.with_rows::<L, _>(Fp8Rows { codes, columns }, Some(scales), out);
                }
                Weights::Mxfp4 { codes, scales } => {
                    let rows = Mxfp4Rows {
                        codes,
                        scales,
                        columns,
                    };
                    self.with_rows::<L, _>(rows, None, out);
                }
                Weights::Bf16(values) => {
                    self.with_rows::<L, _>(Bf16Rows { values, columns }, None, out);
                }
                Weights::F32(values) => {
                    self.with_rows::<L, _>(F32Rows { values, columns }, None, out);
                }
            }
        }
    }

    #[inline(always)]
    unsafe fn with_rows<L: Lanes, R: Rows<L>>(
        &self,
        rows: R,
        scales: Option<Scales<'_>>,
        out: &mut [f32],
    ) {
        let scales = scales.map(|scales| {
            let across = self.matrix.columns.div_ceil(FP8_BLOCK);
            BlockScales::new(Form::Lanes, scales, self.rows.start / FP8_BLOCK, across)
        });
        let most = self.together(SCRATCH_TOKENS, scratch::TILE_TOKENS);
        for first in (0..self.len()).step_by(most) {
            let tokens = first..self.len().min(first + most);
            let out = &mut out[first * self.rows.len()..tokens.end * self.rows.len()];
            // SAFETY: the caller has the tier's instructions.
            unsafe {
                if tokens.len() <= MOST_DIRECT_TOKENS {
                    self.direct::<L, R>(rows, scales.as_ref(), tokens, out);
                } else {
                    self.through_scratch::<L, R>(rows, scales.as_ref(), tokens, out);
                }
            }
        }
    }

    /// How many tokens are multiplied together: few as they are, many in parts of about the same size, whole tiles of at
    /// most `scratch` tokens.
    fn together(&self, scratch: usize, tile: usize) -> usize {
        if self.len() <= MOST_DIRECT_TOKENS {
            return MOST_DIRECT_TOKENS;
        }
        let parts = self.len().div_ceil(scratch);
        self.len().div_ceil(parts).next_multiple_of(tile)
    }

    /// Number of tokens.
    fn len(&self) -> usize {
        self.tokens.map_or(self.panel.len(), <[u32]>::len)
    }

    /// How far ahead lines are asked for while `rows` rows pass side by side: the last of them begins a tile away from the
    /// first, and its first bytes are read right at the beginning.
    #[inline(always)]
    fn ahead(rows: usize, stored: &impl Stored) -> usize {
        let tile = rows * stored.row_bytes();
        AHEAD_BYTES.max(tile + tile / 4)
    }

    /// Asks for the line at an offset from the beginning of row `first` of a task; behind its last row what comes next lies.
    #[inline(always)]
    fn ask(&self, rows: &impl Stored, first: usize, offset: usize) {
        let left = (self.rows.end - first) * rows.row_bytes();
        prefetch(if offset < left {
            rows.start(first).wrapping_add(offset)
        } else {
            self.next.start.wrapping_add(offset - left)
        });
    }

    /// The number, in the panel, of a token of this product.
    #[inline(always)]
    fn token(&self, token: usize) -> usize {
        self.tokens.map_or(token, |tokens| tokens[token] as usize)
    }

    /// The sum as a product, undoing what FP8 activations were multiplied by.
    #[inline(always)]
    fn undone(&self, token: usize, sum: f32, scales: Option<&BlockScales>) -> f32 {
        scales.map_or(sum, |scales| {
            scales.undo(sum, self.panel.exponents[self.token(token)])
        })
    }
}

/// The rows of a thread's next task, if all go on in step.
pub(crate) fn following(rows: &Range<usize>, threads: usize) -> Range<usize> {
    let distance = threads * TASK_ROWS;
    rows.start + distance..rows.end + distance
}

/// How many threads so many multiplications are worth.
pub(crate) fn threads_for(work: usize, num_threads: usize) -> usize {
    num_threads.min(work / WORK_PER_THREAD).max(1)
}

mod direct;
mod pairs;
mod scratch;
