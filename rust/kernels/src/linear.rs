//! `x @ W.T` on weights as they are stored.
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
//! rows by 1024 columns are unpacked into the second-level cache and multiplied with all tokens there.

use abyssal_quant::{Element, Scales};

use crate::activation::{BlockScales, Panel};
use crate::error::{Result, expect_length};
use crate::lanes::{Lanes, REGISTERS, prefetch};
use crate::matrix::{Bf16Rows, F32Rows, FP8_BLOCK, Fp8Rows, Matrix, Mxfp4Rows, Rows, Weights};
use crate::pool;
use crate::tier::{Kind, Tier};

/// Rows of a task; they lie in one row of FP8 blocks.
const TASK_ROWS: usize = 64;
/// Rows multiplied together.
const TILE_ROWS: usize = 4;
/// More tokens than this go through scratch memory.
const MOST_DIRECT_TOKENS: usize = 4;
/// Tokens of a panel.
const PANEL_TOKENS: usize = 256;
/// Columns unpacked together: with 64 rows, half of a small second-level cache.
const SCRATCH_COLUMNS: usize = 1024;
/// How far ahead lines are asked for.
const AHEAD_BYTES: usize = 8192;
const LINE: usize = 64;
/// Multiplications that are worth a thread.
const WORK_PER_THREAD: usize = 1 << 15;

/// Multiplies tokens by the transposed matrix: `out[t, n]` is the product of token `t` and row `n`, rounded once.
///
/// `x` is `[tokens, columns]`, `out` `[tokens, rows]`.
///
/// # Errors
/// [`Error::Length`](crate::Error::Length); nothing is written then.
pub fn linear<T: Element, O: Element>(
    tier: Tier,
    matrix: &Matrix<'_>,
    x: &[T],
    out: &mut [O],
    num_threads: usize,
) -> Result<()> {
    let tokens = x.len() / matrix.columns;
    expect_length("x", tokens * matrix.columns, x.len())?;
    expect_length("out", tokens * matrix.rows, out.len())?;
    if matrix.rows == 0 {
        return Ok(());
    }
    let panels = x
        .chunks(PANEL_TOKENS * matrix.columns)
        .zip(out.chunks_mut(PANEL_TOKENS * matrix.rows));
    for (x, out) in panels {
        match tier.0 {
            Kind::Scalar => {
                panel::<crate::scalar::Scalar<8>, T, O>(tier, matrix, x, out, num_threads);
            }
            #[cfg(target_arch = "x86_64")]
            Kind::Avx2 => panel::<crate::avx2::Avx2, T, O>(tier, matrix, x, out, num_threads),
            #[cfg(target_arch = "x86_64")]
            Kind::Avx512 => panel::<crate::avx512::Avx512, T, O>(tier, matrix, x, out, num_threads),
            #[cfg(target_arch = "aarch64")]
            Kind::Neon => panel::<crate::neon::Neon, T, O>(tier, matrix, x, out, num_threads),
        }
    }
    Ok(())
}

/// Where tasks write: rows of different tasks never overlap.
#[derive(Clone, Copy)]
struct Output<O> {
    start: *mut O,
    stride: usize,
}

// SAFETY: tasks write the columns of their own rows, which no other task has.
unsafe impl<O: Send> Send for Output<O> {}
// SAFETY: as above.
unsafe impl<O: Send> Sync for Output<O> {}

impl<O: Element> Output<O> {
    /// Writes one product.
    ///
    /// # Safety
    /// The token and the row lie in the output, and the row is the calling task's.
    unsafe fn set(self, token: usize, row: usize, value: f32) {
        // SAFETY: as the caller promises.
        unsafe { *self.start.add(token * self.stride + row) = O::store(value) };
    }
}

fn panel<L: Lanes, T: Element, O: Element>(
    tier: Tier,
    matrix: &Matrix<'_>,
    x: &[T],
    out: &mut [O],
    num_threads: usize,
) {
    let mut panel = Panel::default();
    panel.fill::<L, T>(matrix.packing(), x, matrix.columns);
    let output = Output {
        start: out.as_mut_ptr(),
        stride: matrix.rows,
    };
    let work = matrix.rows * matrix.columns * panel.len();
    let threads = num_threads.min(work / WORK_PER_THREAD).max(1);
    pool::for_each(threads, matrix.rows.div_ceil(TASK_ROWS), &|number| {
        let first = number * TASK_ROWS;
        let rows = first..matrix.rows.min(first + TASK_ROWS);
        let task = Task {
            matrix,
            panel: &panel,
            rows,
            output,
        };
        task.run(tier);
    });
}

/// Some rows of a matrix with all tokens of a panel.
struct Task<'a, O> {
    matrix: &'a Matrix<'a>,
    panel: &'a Panel,
    rows: std::ops::Range<usize>,
    output: Output<O>,
}

impl<O: Element> Task<'_, O> {
    fn run(&self, tier: Tier) {
        match tier.0 {
            // SAFETY: scalar lanes need no instructions beyond the target's.
            Kind::Scalar => unsafe { self.multiply::<crate::scalar::Scalar<8>>() },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: a tier of this kind is made only where the processor has its instructions.
            Kind::Avx2 => unsafe { self.multiply_avx2() },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: as above.
            Kind::Avx512 => unsafe { self.multiply_avx512() },
            #[cfg(target_arch = "aarch64")]
            // SAFETY: as above.
            Kind::Neon => unsafe { self.multiply_neon() },
        }
    }

    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx2,fma")]
    unsafe fn multiply_avx2(&self) {
        // SAFETY: the instructions are there, as this function's own features say.
        unsafe { self.multiply::<crate::avx2::Avx2>() }
    }

    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx2,fma,avx512f,avx512bw,avx512dq")]
    unsafe fn multiply_avx512(&self) {
        // SAFETY: the instructions are there, as this function's own features say.
        unsafe { self.multiply::<crate::avx512::Avx512>() }
    }

    #[cfg(target_arch = "aarch64")]
    #[target_feature(enable = "neon")]
    unsafe fn multiply_neon(&self) {
        // SAFETY: the instructions are there, as this function's own features say.
        unsafe { self.multiply::<crate::neon::Neon>() }
    }

    #[inline(always)]
    unsafe fn multiply<L: Lanes>(&self) {
        let columns = self.matrix.columns;
        // SAFETY: the caller has the tier's instructions; the matrix was checked when it was made.
        unsafe {
            match self.matrix.weights {
                Weights::Fp8 { codes, scales } => {
                    self.with_rows::<L, _>(Fp8Rows { codes, columns }, Some(scales));
                }
                Weights::Mxfp4 { codes, scales } => {
                    let rows = Mxfp4Rows {
                        codes,
                        scales,
                        columns,
                    };
                    self.with_rows::<L, _>(rows, None);
                }
                Weights::Bf16(values) => {
                    self.with_rows::<L, _>(Bf16Rows { values, columns }, None);
                }
                Weights::F32(values) => self.with_rows::<L, _>(F32Rows { values, columns }, None),
            }
        }
    }

    #[inline(always)]
    unsafe fn with_rows<L: Lanes, R: Rows<L>>(&self, rows: R, scales: Option<Scales<'_>>) {
        let scales = scales.map(|scales| {
            let across = self.matrix.columns.div_ceil(FP8_BLOCK);
            BlockScales::new(scales, self.rows.start / FP8_BLOCK, across)
        });
        // SAFETY: the caller has the tier's instructions.
        unsafe {
            if self.panel.len() <= MOST_DIRECT_TOKENS {
                self.direct::<L, R>(rows, scales.as_ref());
            } else {
                self.through_scratch::<L, R>(rows, scales.as_ref());
            }
        }
    }

    /// Writes a product, undoing what FP8 activations were multiplied by.
    #[inline(always)]
    unsafe fn write(&self, token: usize, row: usize, sum: f32, scales: Option<&BlockScales>) {
        let value = scales.map_or(sum, |scales| scales.undo(sum, self.panel.exponents[token]));
        // SAFETY: the row is this task's.
        unsafe { self.output.set(token, row, value) };
    }
}

mod direct;
mod scratch;
