//! FP8 e4m3 with one scale per block of rows and columns.

use crate::error::{Error, Result, expect_length};
use crate::float::{Element, e8m0_to_f32};
use crate::kernels::{AHEAD, INFINITY, Kernels, LARGE, STREAMED};
use crate::rows::Rows;
use crate::scalar::{self, LARGEST};

/// Blocks smaller than this in size share its scale, so that no scale is zero or subnormal.
const SMALLEST_AMAX: f32 = 1e-4;
/// The usual width of a block.
const USUAL: usize = 128;
/// Blocks side by side that are quantized together, at most. More would not stay in the second cache when a block has
/// many rows, and fewer leave the rows in pieces too short to read fast.
const GROUP: usize = 8;

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

/// The scale of a block whose largest element has these bits.
#[inline(always)]
fn scale_of(amax: u32, format: ScaleFormat) -> f32 {
    let scale = f32::from_bits(amax).max(SMALLEST_AMAX) / LARGEST;
    match format {
        ScaleFormat::F32 => scale,
        // A mantissa that is not zero carries into the exponent.
        ScaleFormat::Ue8m0 => f32::from_bits((scale.to_bits() + 0x7f_ffff) & 0x7f80_0000),
    }
}

/// Calls `visit` with the number and the elements of each block of a row. Blocks of the usual width are arrays, so that
/// the loops over their elements have a known length.
#[inline(always)]
fn each_block<T>(row: &[T], block_columns: usize, mut visit: impl FnMut(usize, &[T])) {
    let usual = if block_columns == USUAL {
        row.as_chunks::<USUAL>().0
    } else {
        &[]
    };
    for (index, block) in usual.iter().enumerate() {
        visit(index, block);
    }
    let rest = &row[usual.len() * USUAL..];
    for (index, block) in rest.chunks(block_columns).enumerate() {
        visit(usual.len() + index, block);
    }
}

/// As [`each_block`], with what belongs to the elements in another row.
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

/// How a matrix is walked through: what was best on one core of a Zen 3, by up to a third.
struct Walk {
    /// Blocks side by side that are quantized together, so that their elements are still in a near cache when they are
    /// read again and the divisions of their scales overlap.
    group: usize,
    /// Bytes ahead that are asked for while looking for the largest elements.
    ahead: usize,
    /// Bytes ahead that are asked for while encoding.
    ahead_encoding: usize,
    /// Whether codes go past the caches. Where blocks have many rows they would push out elements still to be encoded.
    streams: bool,
}

impl Walk {
    fn of<T>(blocks: &Blocks, codes: usize) -> Self {
        if blocks.block_rows == 1 {
            return Self {
                group: if size_of::<T>() == 4 { 2 } else { GROUP },
                ahead: AHEAD,
                ahead_encoding: 0,
                streams: false,
            };
        }
        let group = if size_of::<T>() == 4 { GROUP } else { 4 };
        Self {
            group,
            ahead: 0,
            // The group to the right, while that to the left leaves.
            ahead_encoding: blocks.block_columns.saturating_mul(group * size_of::<T>()),
            streams: codes >= STREAMED,
        }
    }
}

/// Quantizes checked slices.
///
/// Looking for the largest elements of the next group while this one is encoded, row by row, was slower: 1.4 times for
/// single rows, and no faster for blocks of many.
#[inline(always)]
pub(crate) fn quantize<T: Element, K: Kernels>(
    kernels: K,
    x: Rows<'_, T>,
    blocks: Blocks,
    format: ScaleFormat,
    codes: &mut [u8],
    scales: &mut [f32],
) {
    let Blocks {
        rows,
        columns,
        block_rows,
        block_columns,
        ..
    } = blocks;
    let walk = Walk::of::<T>(&blocks, codes.len());
    let kernels = kernels.streaming(walk.streams);
    let (across, bands) = (blocks.across(), rows.div_ceil(block_rows));
    let width = block_columns.saturating_mul(walk.group).min(columns);
    for (band, scales) in scales.chunks_exact_mut(across).enumerate() {
        let (matrix, first) = (band / bands, band % bands * block_rows);
        let band_rows = first..rows.min(first + block_rows);
        for (index, scales) in scales.chunks_mut(walk.group).enumerate() {
            let part = index * width..columns.min(index * width + width);
            let mut amax = [0; GROUP];
            for row in band_rows.clone() {
                let row = x.part(matrix, row, part.clone());
                each_block(row, block_columns, |block, elements| {
                    kernels.prefetch(elements, walk.ahead);
                    amax[block] = kernels.largest(elements, amax[block]);
                });
            }
            let mut numbers = true;
            for (scale, &amax) in scales.iter_mut().zip(&amax) {
                *scale = scale_of(amax, format);
                numbers &= amax <= INFINITY;
            }
            if !numbers {
                let rows = band_rows
                    .clone()
                    .map(|row| x.part(matrix, row, part.clone()));
                set_scales(rows, block_columns, format, scales);
            }
            let mut divisors = [K::Divisor::default(); GROUP];
            for (divisor, &scale) in divisors.iter_mut().zip(&*scales) {
                *divisor = kernels.divisor(scale);
            }
            for row in band_rows.clone() {
                let codes = &mut codes[(matrix * rows + row) * columns..][part.clone()];
                let row = x.part(matrix, row, part.clone());
                each_block_into(row, codes, block_columns, |block, elements, codes| {
                    kernels.prefetch(elements, walk.ahead_encoding);
                    if amax[block] < LARGE {
                        kernels.encode_fp8(elements, divisors[block], codes);
                    } else {
                        scalar::encode_fp8_slowly(elements, scales[block], codes);
                    }
                });
            }
        }
    }
    kernels.finish();
}

/// Sets the scales of blocks of which some hold NaN.
#[cold]
fn set_scales<'a, T: Element + 'a>(
    rows: impl Iterator<Item = &'a [T]>,
    block_columns: usize,
    format: ScaleFormat,
    scales: &mut [f32],
) {
    let mut amax = [0; GROUP];
    for row in rows {
        for (amax, block) in amax.iter_mut().zip(row.chunks(block_columns)) {
            *amax = scalar::largest_number(block, *amax);
        }
    }
    for (scale, amax) in scales.iter_mut().zip(amax) {
        *scale = scale_of(amax, format);
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
    for (index, (codes, out)) in codes.iter().zip(out.chunks_exact_mut(columns)).enumerate() {
        let first = (index / rows * bands + index % rows / block_rows) * across;
        each_block_into(codes, out, block_columns, |block, codes, out| {
            kernels.prefetch(codes, AHEAD);
            kernels.decode_fp8(codes, scales.get(first + block), out);
        });
    }
    kernels.finish();
}
