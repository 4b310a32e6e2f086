//! The walk through a matrix that becomes FP8.
//!
//! A block is read twice: for its largest element, then for its codes. What bounds the first is how memory is asked
//! for. On a Zen 4 with pages of 4 KB, one row after another came at 20 GB/s, pieces of a row for 128 rows one below the
//! other at 11, and eight rows in turn at 27: the processor fetches ahead by itself, within a page, for several pages at
//! once. So eight rows are read in turn, in pieces of 2 KB. While a piece is encoded, which takes no memory but the second
//! cache's, the piece to its right is asked for, into that cache: asked into the first one it came no sooner than unasked.
//!
//! Looking for the largest elements of the piece to the right while this one is encoded was slower, by up to a half.

use std::ops::Range;

use crate::float::Element;
use crate::fp8::{Blocks, ScaleFormat, USUAL};
use crate::kernels::{GROUP, INFINITY, Kernels, LARGE, STREAMED};
use crate::rows::Rows;
use crate::scalar::{self, LARGEST};

/// Blocks smaller than this in size share its scale, so that no scale is zero or subnormal.
const SMALLEST_AMAX: f32 = 1e-4;
/// Rows that are read in turn.
const ROWS: usize = 8;
/// Bytes of a row that are read before those below them, about.
const PIECE: usize = 2048;
/// From so many bytes on, a matrix is asked for ahead: smaller ones are in the caches, or soon will be.
const FAR: usize = 1 << 19;

/// The scales of blocks whose largest elements have these bits.
#[inline(always)]
fn scales_of(amax: &[u32; GROUP], format: ScaleFormat) -> [f32; GROUP] {
    let scales = amax.map(|amax| f32::from_bits(amax).max(SMALLEST_AMAX) / LARGEST);
    match format {
        ScaleFormat::F32 => scales,
        // A mantissa that is not zero carries into the exponent.
        ScaleFormat::Ue8m0 => {
            scales.map(|scale| f32::from_bits((scale.to_bits() + 0x7f_ffff) & 0x7f80_0000))
        }
    }
}

/// Some blocks side by side, in bands of rows one below the other.
#[derive(Clone)]
struct Part {
    matrix: usize,
    bands: Range<usize>,
    blocks: Range<usize>,
    /// Bytes from an element to the one that is asked for while it is encoded; none for zero.
    ahead: usize,
}

/// What does not change on the way.
#[derive(Clone, Copy)]
struct Walk<'a, T, K> {
    kernels: K,
    x: Rows<'a, T>,
    blocks: Blocks,
    format: ScaleFormat,
}

/// Quantizes checked slices.
#[inline(always)]
pub(crate) fn quantize<T: Element, K: Kernels>(
    kernels: K,
    x: Rows<'_, T>,
    blocks: Blocks,
    format: ScaleFormat,
    codes: &mut [u8],
    scales: &mut [f32],
) {
    // Codes go past the caches: they would push out elements still to be encoded.
    let kernels = kernels.streaming(codes.len() >= STREAMED);
    let walk = Walk {
        kernels,
        x,
        blocks,
        format,
    };
    let block_size = blocks.block_columns.saturating_mul(size_of::<T>());
    let bands = blocks.rows.div_ceil(blocks.block_rows);
    // Of flat blocks, several bands at once.
    let together = (ROWS / blocks.block_rows).max(1);
    let far = size_of_val(codes) * size_of::<T>() >= FAR;
    let group = if far {
        (PIECE / block_size).clamp(1, GROUP)
    } else {
        GROUP
    };
    for matrix in 0..blocks.matrices {
        for band in (0..bands).step_by(together) {
            for block in (0..blocks.across()).step_by(group) {
                let right = block + group;
                let ahead = if right < blocks.across() {
                    group * block_size
                } else {
                    // The left end of the bands below.
                    let below = together.saturating_mul(blocks.block_rows);
                    let below = below.saturating_mul(x.row_step() * size_of::<T>());
                    below.saturating_sub(block * block_size)
                };
                let part = Part {
                    matrix,
                    bands: band..bands.min(band + together),
                    blocks: block..right.min(blocks.across()),
                    ahead: if far { ahead } else { 0 },
                };
                walk.quantize_part(&part, codes, scales);
            }
        }
    }
    kernels.finish();
}

impl<T: Element, K: Kernels> Walk<'_, T, K> {
    #[inline(always)]
    fn quantize_part(self, part: &Part, codes: &mut [u8], scales: &mut [f32]) {
        let mut amax = [[0; GROUP]; ROWS];
        self.each_tile(part, |slot, at, rows, columns| {
            let elements = rows.map(|row| self.x.part(part.matrix, row, columns.clone()));
            amax[slot][at] = if columns.len() == USUAL {
                self.kernels
                    .largest(elements.map(|elements| &elements[..USUAL]), amax[slot][at])
            } else {
                self.kernels.largest(elements, amax[slot][at])
            };
        });
        let mut divisors = [[K::Divisor::default(); GROUP]; ROWS];
        let bands = self.blocks.rows.div_ceil(self.blocks.block_rows);
        let first = |band| (part.matrix * bands + band) * self.blocks.across() + part.blocks.start;
        for (slot, band) in part.bands.clone().enumerate() {
            let found = if amax[slot].iter().all(|&amax| amax <= INFINITY) {
                scales_of(&amax[slot], self.format)
            } else {
                scales_of(&self.largest_numbers(part, band), self.format)
            };
            divisors[slot] = self.kernels.divisors(&found);
            let count = part.blocks.len();
            scales[first(band)..][..count].copy_from_slice(&found[..count]);
        }
        self.each_tile(part, |slot, at, rows, columns| {
            for row in rows {
                let elements = self.x.part(part.matrix, row, columns.clone());
                let row = (part.matrix * self.blocks.rows + row) * self.blocks.columns;
                let codes = &mut codes[row + columns.start..row + columns.end];
                self.kernels.prefetch(elements, part.ahead);
                if amax[slot][at] >= LARGE {
                    let scale = scales[first(part.bands.start + slot) + at];
                    scalar::encode_fp8_slowly(elements, scale, codes);
                } else if columns.len() == USUAL {
                    let codes = &mut codes[..USUAL];
                    self.kernels
                        .encode_fp8(&elements[..USUAL], divisors[slot][at], codes);
                } else {
                    self.kernels.encode_fp8(elements, divisors[slot][at], codes);
                }
            }
        });
    }

    /// Calls `visit` for all rows of all blocks of a part, some rows of a block at a time: with the number of the band
    /// and of the block in the part, the rows, and the columns.
    #[inline(always)]
    fn each_tile(
        self,
        part: &Part,
        mut visit: impl FnMut(usize, usize, Range<usize>, Range<usize>),
    ) {
        let Blocks {
            rows,
            columns,
            block_rows,
            block_columns,
            ..
        } = self.blocks;
        for top in (0..block_rows.min(rows)).step_by(ROWS) {
            for (at, block) in part.blocks.clone().enumerate() {
                let left = block * block_columns;
                let columns = left..columns.min(left.saturating_add(block_columns));
                for (slot, band) in part.bands.clone().enumerate() {
                    let first = band * block_rows;
                    let bottom = block_rows.min(top + ROWS);
                    visit(
                        slot,
                        at,
                        rows.min(first + top)..rows.min(first.saturating_add(bottom)),
                        columns.clone(),
                    );
                }
            }
        }
    }

    /// The bits of the largest elements of a band's blocks, NaN left out.
    #[cold]
    fn largest_numbers(self, part: &Part, band: usize) -> [u32; GROUP] {
        let mut amax = [0; GROUP];
        let band = Part {
            bands: band..band + 1,
            ..part.clone()
        };
        self.each_tile(&band, |_, at, rows, columns| {
            for row in rows {
                let elements = self.x.part(part.matrix, row, columns.clone());
                amax[at] = scalar::largest_number(elements, amax[at]);
            }
        });
        amax
    }
}
