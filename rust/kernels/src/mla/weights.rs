//! Rows of the up projection, unpacked to float32 a few at a time.
//!
//! A strip's elements stand where the tier's registers have them, so the other side of a product is permuted: vectors of
//! one row, once, rather than the whole weight.

use std::ops::Range;

use abyssal_quant::Scales;

use super::arithmetic::Arithmetic;
use crate::lanes::{Packing, prefetch};
use crate::matrix::{
    Bf16Rows, F32Rows, FP8_BLOCK, Fp8Rows, Matrix, Mxfp4Rows, Rest, Rows, Weights,
};

mod narrow;

#[cfg(target_arch = "x86_64")]
pub(super) use narrow::Narrow;

/// Rows unpacked together: with 512 columns, half of the nearest cache.
pub(super) const STRIP: usize = 8;
/// How far ahead lines are asked for.
const AHEAD_BYTES: usize = 2048;

/// Which element stands at each place of a row that was unpacked.
pub(super) struct Order {
    places: Vec<usize>,
    columns: usize,
}

impl Order {
    /// The order of a tier, for rows of `columns` elements.
    pub(super) fn new<L: Arithmetic>(packing: Packing, columns: usize) -> Self {
        let places = (0..columns.next_multiple_of(L::GROUP))
            .map(|place| place / L::GROUP * L::GROUP + L::element(packing, place % L::GROUP))
            .collect();
        Self { places, columns }
    }

    /// Places of a row, the ones without an element included.
    pub(super) fn width(&self) -> usize {
        self.places.len()
    }

    /// Puts elements at their places, and zeros elsewhere.
    pub(super) fn place(&self, elements: &[f32], places: &mut [f32]) {
        for (place, &element) in places.iter_mut().zip(&self.places) {
            *place = if element < self.columns {
                elements[element]
            } else {
                0.0
            };
        }
    }

    /// Takes elements from their places.
    pub(super) fn take(&self, places: &[f32], elements: &mut [f32]) {
        for (&place, &element) in places.iter().zip(&self.places) {
            if element < self.columns {
                elements[element] = place;
            }
        }
    }
}

/// Unpacks rows of a matrix, each to whole groups.
///
/// # Safety
/// The tier's instructions are there, and `to` has room for the rows.
#[inline(always)]
pub(super) unsafe fn unpack<L: Arithmetic>(matrix: &Matrix<'_>, rows: Range<usize>, to: *mut f32) {
    let columns = matrix.columns;
    // SAFETY: as the caller promises; the matrix was checked when it was made.
    unsafe {
        match matrix.weights {
            Weights::Fp8 { codes, scales } => {
                unpack_rows::<L, _>(Fp8Rows { codes, columns }, columns, rows, Some(scales), to);
            }
            Weights::Mxfp4 { codes, scales } => {
                let source = Mxfp4Rows {
                    codes,
                    scales,
                    columns,
                };
                unpack_rows::<L, _>(source, columns, rows, None, to);
            }
            Weights::Bf16(values) => {
                unpack_rows::<L, _>(Bf16Rows { values, columns }, columns, rows, None, to);
            }
            Weights::F32(values) => {
                unpack_rows::<L, _>(F32Rows { values, columns }, columns, rows, None, to);
            }
        }
    }
}

#[inline(always)]
unsafe fn unpack_rows<L: Arithmetic, R: Rows<L>>(
    source: R,
    columns: usize,
    rows: Range<usize>,
    scales: Option<Scales<'_>>,
    to: *mut f32,
) {
    let groups = columns.div_ceil(L::GROUP);
    let whole = columns / L::GROUP;
    for (number, row) in rows.enumerate() {
        // SAFETY: as the caller promises; whole groups lie in their row, the rest is copied, and rows of `groups` groups
        // have room.
        unsafe {
            let to = to.add(number * groups * L::GROUP);
            let start = source.start(row);
            let mut seen = L::zero();
            for group in 0..whole {
                let at = start.add(group * R::GROUP_BYTES);
                prefetch(at.wrapping_add(AHEAD_BYTES));
                let scale = scale_of(scales, row, columns, group * L::GROUP);
                let to = to.add(group * L::GROUP);
                unpack_group::<L, R>(source, (row, group), at, scale, &mut seen, to);
            }
            if whole < groups {
                let rest = Rest::read(&source, row, whole * R::GROUP_BYTES);
                let scale = scale_of(scales, row, columns, whole * L::GROUP);
                let to = to.add(whole * L::GROUP);
                unpack_group::<L, R>(source, (row, whole), rest.start(), scale, &mut seen, to);
            }
            if R::WATCHED && L::has_nan_code(seen) {
                for place in 0..columns {
                    *to.add(place) = f32::NAN;
                }
            }
        }
    }
}

/// The scale of the block that an element lies in; 1 where rows have their own.
#[inline(always)]
pub(super) fn scale_of(
    scales: Option<Scales<'_>>,
    row: usize,
    columns: usize,
    column: usize,
) -> f32 {
    let block = row / FP8_BLOCK * columns.div_ceil(FP8_BLOCK) + column / FP8_BLOCK;
    scales.map_or(1.0, |scales| scales.get(block))
}

/// Unpacks the group at `at`, which has this row and number.
#[inline(always)]
unsafe fn unpack_group<L: Arithmetic, R: Rows<L>>(
    source: R,
    (row, group): (usize, usize),
    at: *const u8,
    scale: f32,
    seen: &mut L,
    to: *mut f32,
) {
    // SAFETY: the caller has the tier's instructions and gives a group, and room for one.
    unsafe {
        let mut registers = source.unpack(at, row, group);
        if R::WATCHED {
            *seen = L::fp8_largest(*seen, at);
            // Codes are unpacked 2^120 too small; that factor alone is exact, so each weight rounds once.
            let (raise, scale) = (L::splat(POWER_120), L::splat(scale));
            for register in &mut registers {
                *register = register.multiply(raise).multiply(scale);
            }
        }
        for (register, values) in registers.into_iter().enumerate() {
            values.store(to.add(register * L::WIDTH));
        }
    }
}

/// 2^120.
const POWER_120: f32 = f32::from_bits((120 + 127) << 23);
