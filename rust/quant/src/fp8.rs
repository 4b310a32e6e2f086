//! FP8 e4m3 with one scale per block of rows and columns.

use crate::error::{Error, Result, expect_length};
use crate::float::{Element, e8m0_to_f32};
use crate::kernels::{AHEAD, Kernels, STREAMED};
use crate::pages::Pages;
use crate::rows::Rows;

/// The usual width of a block.
pub(crate) const USUAL: usize = 128;

/// Matrices and how each is cut into blocks; the last block of a direction may be ragged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Blocks {
    /// Matrices, one after the other.
    pub matrices: usize,
    /// Rows of a matrix.
    pub rows: usize,
    /// Columns of a matrix.
    pub columns: usize,
    /// Rows of a block.
    pub block_rows: usize,
    /// Columns of a block.
    pub block_columns: usize,
}

/// How scales are rounded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ScaleFormat {
    /// Not beyond float32.
    F32,
    /// Up to a power of two.
    Ue8m0,
}

/// Scales as they are stored.
#[derive(Debug, Clone, Copy)]
pub enum Scales<'a> {
    /// float32.
    F32(&'a [f32]),
    /// Exponents of powers of two.
    E8m0(&'a [u8]),
}

impl Scales<'_> {
    /// The number of scales.
    pub fn len(&self) -> usize {
        match self {
            Self::F32(scales) => scales.len(),
            Self::E8m0(scales) => scales.len(),
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The value of one scale.
    #[inline(always)]
    pub fn get(&self, index: usize) -> f32 {
        match self {
            Self::F32(scales) => scales[index],
            Self::E8m0(scales) => e8m0_to_f32(scales[index]),
        }
    }
}

impl Blocks {
    /// Blocks across a matrix.
    pub fn across(&self) -> usize {
        self.columns.div_ceil(self.block_columns)
    }

    /// The number of scales.
    pub fn num_scales(&self) -> usize {
        self.matrices * self.rows.div_ceil(self.block_rows) * self.across()
    }

    /// Checks the sizes and the lengths of a matrix and its scales.
    pub(crate) fn check(&self, name: &'static str, matrix: usize, scales: usize) -> Result<()> {
        if self.block_rows == 0 || self.block_columns == 0 {
            return Err(Error::Block {
                rows: self.block_rows,
                columns: self.block_columns,
            });
        }
        if self.columns == 0 {
            return Err(Error::NoColumns);
        }
        expect_length(name, self.matrices * self.rows * self.columns, matrix)?;
        expect_length("scales", self.num_scales(), scales)
    }
}

/// Calls `visit` with the number and the elements of each block of a row, and what belongs to them in another row.
/// Blocks of the usual width are arrays, so that the loops over their elements have a known length.
#[inline(always)]
fn each_block_into<T, U>(
    row: &[T],
    out: &mut [U],
    block_columns: usize,
    mut visit: impl FnMut(usize, &[T], &mut [U]),
) {
    let usual = if block_columns == USUAL {
        row.as_chunks::<USUAL>().0
    } else {
        &[]
    };
    let (usual_out, rest_out) = out.split_at_mut(usual.len() * USUAL);
    let usual_out = usual_out.as_chunks_mut::<USUAL>().0;
    for (index, (block, out)) in usual.iter().zip(usual_out).enumerate() {
        visit(index, block, out);
    }
    let rest = &row[usual.len() * USUAL..];
    let blocks = rest
        .chunks(block_columns)
        .zip(rest_out.chunks_mut(block_columns));
    for (index, (block, out)) in blocks.enumerate() {
        visit(usual.len() + index, block, out);
    }
}

/// Dequantizes checked slices.
#[inline(always)]
pub(crate) fn dequantize<T: Element, K: Kernels>(
    kernels: K,
    codes: Rows<'_, u8>,
    scales: Scales<'_>,
    blocks: Blocks,
    out: &mut [T],
) {
    let Blocks {
        rows,
        columns,
        block_rows,
        block_columns,
        ..
    } = blocks;
    let kernels = kernels.streaming(size_of_val(out) >= STREAMED);
    let (across, bands) = (blocks.across(), rows.div_ceil(block_rows));
    let mut pages = Pages::default();
    for (index, codes) in codes.iter().enumerate() {
        let (start, end) = (index * columns, (index + 1) * columns);
        pages.open(out, end);
        let out = &mut out[start..end];
        let first = (index / rows * bands + index % rows / block_rows) * across;
        each_block_into(codes, out, block_columns, |block, codes, out| {
            kernels.prefetch(codes, AHEAD);
            kernels.decode_fp8(codes, scales.get(first + block), out);
        });
    }
    kernels.finish();
}
