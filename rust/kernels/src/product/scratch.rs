//! Many tokens: weights are unpacked into the second-level cache and used for all of them.
//!
//! ```text
//! for each chunk of columns:  unpack the rows, scale the tokens
//!   for each strip of rows (first-level cache):  for each three tokens:  for each four rows of the strip:  multiply
//! ```

use std::ops::Range;

use crate::matrix::group_at;
use crate::memory::Buffer;

use super::{
    BlockScales, Lanes, Product, REGISTERS, Rows, SCRATCH_COLUMNS, STRIP_ROWS, TASK_ROWS, TILE_ROWS,
};

/// Tokens multiplied together.
pub(super) const TILE_TOKENS: usize = 3;

impl Product<'_> {
    #[inline(always)]
    pub(super) unsafe fn through_scratch<L: Lanes, R: Rows<L>>(
        &self,
        rows: R,
        scales: Option<&BlockScales>,
        these: Range<usize>,
        out: &mut [f32],
    ) {
        let (count, tokens, width) = (self.rows.len(), these.len(), self.panel.width);
        let row_of = |token: usize| self.panel.token(self.token(these.start + token));
        let chunk = SCRATCH_COLUMNS.min(width);
        let tile_lanes = TILE_ROWS * L::WIDTH;
        let row_tiles = count.div_ceil(TILE_ROWS);
        let sizes = [
            row_tiles * TILE_ROWS * chunk,
            if scales.is_some() { tokens * chunk } else { 0 },
            row_tiles * tokens * tile_lanes,
        ];
        let mut buffer = Buffer::take();
        let scratch = buffer.some(sizes.iter().sum());
        let (unpacked, rest) = scratch.split_at_mut(sizes[0]);
        let (scaled, lanes) = rest.split_at_mut(sizes[1]);
        lanes.fill(0.0);
        let mut broken = [false; TASK_ROWS];
        let mut start = 0;
        while start < width {
            let size = chunk.min(width - start);
            // SAFETY: the caller has the tier's instructions; the buffers have room for whole tiles of rows of a
            // chunk, for the tokens of a chunk and for the lanes of every output.
            unsafe {
                self.unpack_chunk::<L, R>(rows, start, size, unpacked, &mut broken);
                if let Some(scales) = scales {
                    for (token, out) in scaled.chunks_exact_mut(size).take(tokens).enumerate() {
                        scales.apply(row_of(token), start, out);
                    }
                }
                let x = |token: usize| match scales {
                    None => row_of(token)[start..].as_ptr(),
                    Some(_) => scaled[token * size..].as_ptr(),
                };
                let block = Block {
                    weights: unpacked.as_ptr(),
                    size,
                    tokens,
                    lanes: lanes.as_mut_ptr(),
                };
                let strip = STRIP_ROWS / TILE_ROWS;
                for first in (0..row_tiles).step_by(strip) {
                    block.strip::<L>(first..row_tiles.min(first + strip), x);
                }
            }
            start += size;
        }
        for token in 0..tokens {
            for (row, &broken) in broken.iter().enumerate().take(count) {
                let tile = row / TILE_ROWS * tokens + token;
                let at = tile * tile_lanes + row % TILE_ROWS * L::WIDTH;
                let sum = if broken {
                    f32::NAN
                } else {
                    // SAFETY: the lanes of an output.
                    unsafe { L::load(lanes[at..].as_ptr()).sum() }
                };
                out[token * count + row] = self.undone(these.start + token, sum, scales);
            }
        }
    }

    /// Unpacks the elements `[start, start + size)` of every row, one row after the other.
    #[inline(always)]
    unsafe fn unpack_chunk<L: Lanes, R: Rows<L>>(
        &self,
        rows: R,
        start: usize,
        size: usize,
        unpacked: &mut [f32],
        broken: &mut [bool; TASK_ROWS],
    ) {
        let whole = self.matrix.columns / L::GROUP;
        let groups = start / L::GROUP..(start + size) / L::GROUP;
        for (row, out) in self.rows.clone().zip(unpacked.chunks_exact_mut(size)) {
            // SAFETY: the caller has the tier's instructions; whole groups lie in their row, and the chunk of a row has
            // room for its groups.
            unsafe {
                let mut seen = L::zero();
                for group in groups.clone() {
                    let mut rest = None;
                    let at = group_at(&rows, row, (group, whole), R::GROUP_BYTES, &mut rest);
                    if R::WATCHED {
                        seen = L::fp8_largest(seen, at);
                    }
                    let to = out.as_mut_ptr().add(group * L::GROUP - start);
                    for (register, weight) in rows.unpack(at, row, group).into_iter().enumerate() {
                        weight.store(to.add(register * L::WIDTH));
                    }
                }
                if R::WATCHED && L::has_nan_code(seen) {
                    broken[row - self.rows.start] = true;
                }
            }
        }
    }
}

/// Unpacked rows of one chunk of the columns, and the lanes that they add to.
struct Block {
    /// Row after row, `size` elements each, whole tiles.
    weights: *const f32,
    size: usize,
    tokens: usize,
    /// The registers of every tile of rows, token after token.
    lanes: *mut f32,
}

impl Block {
    /// Goes on with the chains of some tiles of rows and all tokens.
    #[inline(always)]
    unsafe fn strip<L: Lanes>(&self, tiles: Range<usize>, x: impl Fn(usize) -> *const f32) {
        let mut token = 0;
        while token < self.tokens {
            let here = TILE_TOKENS.min(self.tokens - token);
            for tile in tiles.clone() {
                // SAFETY: the caller has the tier's instructions and gives room for all of it.
                unsafe {
                    match here {
                        3 => {
                            let x = [x(token), x(token + 1), x(token + 2)];
                            self.multiply::<L, 3>(tile, token, x);
                        }
                        2 => self.multiply::<L, 2>(tile, token, [x(token), x(token + 1)]),
                        _ => self.multiply::<L, 1>(tile, token, [x(token)]),
                    }
                }
            }
            token += here;
        }
    }

    /// Goes on with the chains of one tile of rows and `T` tokens.
    #[inline(always)]
    unsafe fn multiply<L: Lanes, const T: usize>(
        &self,
        tile: usize,
        token: usize,
        x: [*const f32; T],
    ) {
        let size = self.size;
        // SAFETY: the caller has the tier's instructions; the tile, the tokens and their lanes lie in their buffers.
        unsafe {
            let weights = self.weights.add(tile * TILE_ROWS * size);
            let place = |row: usize, offset: usize| {
                let tile = tile * self.tokens + token + offset;
                self.lanes.add((tile * TILE_ROWS + row) * L::WIDTH)
            };
            let mut sums = [[L::zero(); T]; TILE_ROWS];
            for (row, sums) in sums.iter_mut().enumerate() {
                for (offset, sum) in sums.iter_mut().enumerate() {
                    *sum = L::load(place(row, offset));
                }
            }
            let mut at = 0;
            while at < size {
                for at in (0..REGISTERS).map(|register| at + register * L::WIDTH) {
                    let mut values = [L::zero(); T];
                    for (value, x) in values.iter_mut().zip(x) {
                        *value = L::load(x.add(at));
                    }
                    for (row, sums) in sums.iter_mut().enumerate() {
                        let weight = L::load(weights.add(row * size + at));
                        for (sum, value) in sums.iter_mut().zip(values) {
                            *sum = weight.mul_add(value, *sum);
                        }
                    }
                }
                at += L::GROUP;
            }
            for (row, sums) in sums.iter().enumerate() {
                for (offset, sum) in sums.iter().enumerate() {
                    sum.store(place(row, offset));
                }
            }
        }
    }
}
