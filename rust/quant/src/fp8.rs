//! FP8 e4m3 with one scale per block of rows and columns.

use crate::error::{Error, Result, expect_length};
use crate::float::{Element, e4m3_to_f32, e8m0_to_f32, f32_to_e4m3};

/// The largest finite e4m3 number.
const LARGEST: f32 = 448.0;
/// Blocks smaller than this in size share its scale, so that no scale is zero or subnormal.
const SMALLEST_AMAX: f32 = 1e-4;
const LANES: usize = 16;

/// A matrix and how it is cut into blocks; the last block of a direction may be ragged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Blocks {
    /// Rows of the matrix.
    pub rows: usize,
    /// Columns of the matrix.
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
    /// Blocks across the matrix.
    pub fn across(&self) -> usize {
        self.columns.div_ceil(self.block_columns)
    }

    /// The number of scales.
    pub fn num_scales(&self) -> usize {
        self.rows.div_ceil(self.block_rows) * self.across()
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
        expect_length(name, self.rows * self.columns, matrix)?;
        expect_length("scales", self.num_scales(), scales)
    }
}

/// The largest size of the elements, NaN left out.
#[inline(always)]
fn amax<T: Element>(values: &[T], start: f32) -> f32 {
    let mut lanes = [start; LANES];
    for chunk in values.chunks(LANES) {
        for (lane, value) in lanes.iter_mut().zip(chunk) {
            let size = value.load().abs();
            // False for NaN.
            *lane = if size > *lane { size } else { *lane };
        }
    }
    lanes.into_iter().fold(start, f32::max)
}

/// The scale of a block whose largest element is `amax`.
#[inline(always)]
fn scale_of(amax: f32, format: ScaleFormat) -> f32 {
    let scale = amax.max(SMALLEST_AMAX) / LARGEST;
    match format {
        ScaleFormat::F32 => scale,
        // A mantissa that is not zero carries into the exponent.
        ScaleFormat::Ue8m0 => f32::from_bits((scale.to_bits() + 0x7f_ffff) & 0x7f80_0000),
    }
}

#[inline(always)]
fn encode<T: Element>(values: &[T], scale: f32, codes: &mut [u8]) {
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

/// Quantizes checked slices.
#[inline(always)]
pub(crate) fn quantize<T: Element>(
    x: &[T],
    blocks: Blocks,
    format: ScaleFormat,
    codes: &mut [u8],
    scales: &mut [f32],
) {
    let Blocks {
        columns,
        block_rows,
        block_columns,
        ..
    } = blocks;
    let bands = x
        .chunks(block_rows * columns)
        .zip(codes.chunks_mut(block_rows * columns));
    for ((x, codes), scales) in bands.zip(scales.chunks_mut(blocks.across())) {
        scales.fill(0.0);
        for row in x.chunks_exact(columns) {
            for (scale, block) in scales.iter_mut().zip(row.chunks(block_columns)) {
                *scale = amax(block, *scale);
            }
        }
        for scale in &mut *scales {
            *scale = scale_of(*scale, format);
        }
        for (row, codes) in x.chunks_exact(columns).zip(codes.chunks_exact_mut(columns)) {
            let parts = row
                .chunks(block_columns)
                .zip(codes.chunks_mut(block_columns));
            for (&scale, (block, codes)) in scales.iter().zip(parts) {
                encode(block, scale, codes);
            }
        }
    }
}

/// Dequantizes checked slices.
#[inline(always)]
pub(crate) fn dequantize<T: Element>(
    codes: &[u8],
    scales: Scales<'_>,
    blocks: Blocks,
    out: &mut [T],
) {
    let Blocks {
        columns,
        block_rows,
        block_columns,
        ..
    } = blocks;
    for (row, (codes, out)) in codes
        .chunks_exact(columns)
        .zip(out.chunks_exact_mut(columns))
        .enumerate()
    {
        let first = row / block_rows * blocks.across();
        for (block, (codes, out)) in codes
            .chunks(block_columns)
            .zip(out.chunks_mut(block_columns))
            .enumerate()
        {
            let scale = scales.get(first + block);
            for (value, &code) in out.iter_mut().zip(codes) {
                *value = T::store(e4m3_to_f32(code) * scale);
            }
        }
    }
}
