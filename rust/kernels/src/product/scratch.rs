//! Many tokens: weights are unpacked into the second-level cache and used for all of them.

use super::direct::Rest;
use std::cell::Cell;
use std::ops::Range;

use super::{BlockScales, Lanes, Product, REGISTERS, Rows, SCRATCH_COLUMNS, TASK_ROWS, TILE_ROWS};

/// Tokens multiplied together.
const TILE_TOKENS: usize = 3;

/// The memory of one thread's tasks, kept from one to the next: fresh memory would cost more than the products.
#[derive(Default)]
struct Scratch {
    /// Weights of a chunk, row after row.
    unpacked: Vec<f32>,
    /// Activations of a tile's tokens, with their scales.
    scaled: Vec<f32>,
    /// The lanes of every output, from chunk to chunk.
    lanes: Vec<f32>,
}

thread_local! {
    static SCRATCH: Cell<Scratch> = Cell::default();
}

impl Scratch {
    /// Makes room; `lanes` begin at zero, what the others hold does not matter.
    fn reserve(&mut self, unpacked: usize, scaled: usize, lanes: usize) {
        let grow = |buffer: &mut Vec<f32>, size: usize| {
            if buffer.len() < size {
                buffer.resize(size, 0.0);
            }
        };
        grow(&mut self.unpacked, unpacked);
        grow(&mut self.scaled, scaled);
        self.lanes.clear();
        self.lanes.resize(lanes, 0.0);
    }
}

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
        let mut scratch = SCRATCH.take();
        scratch.reserve(
            row_tiles * TILE_ROWS * chunk,
            TILE_TOKENS * chunk,
            row_tiles * tokens * tile_lanes,
        );
        let Scratch {
            unpacked,
            scaled,
            lanes,
        } = &mut scratch;
        let mut broken = [false; TASK_ROWS];
        let mut start = 0;
        while start < width {
            let size = chunk.min(width - start);
            // SAFETY: the caller has the tier's instructions; the buffers have room for `count` rows of a chunk, for
            // the tokens of a tile and for the lanes of every output.
            unsafe {
                self.unpack_chunk::<L, R>(rows, start, size, unpacked, &mut broken);
                let mut token = 0;
                while token < tokens {
                    let here = TILE_TOKENS.min(tokens - token);
                    let x: [*const f32; TILE_TOKENS] = std::array::from_fn(|offset| {
                        // Places behind the last token repeat it; they are not used.
                        let token = token + offset.min(here - 1);
                        match scales {
                            None => row_of(token)[start..].as_ptr(),
                            Some(scales) => {
                                let out = &mut scaled[offset * size..][..size];
                                scales.apply(row_of(token), start, out);
                                out.as_ptr()
                            }
                        }
                    });
                    let weights = unpacked.as_ptr();
                    let lanes = lanes.as_mut_ptr().add(token * row_tiles * tile_lanes);
                    match here {
                        3 => multiply_tile::<L, 3>(weights, row_tiles, size, x, lanes),
                        2 => multiply_tile::<L, 2>(weights, row_tiles, size, x, lanes),
                        _ => multiply_tile::<L, 1>(weights, row_tiles, size, x, lanes),
                    }
                    token += here;
                }
            }
            start += size;
        }
        // SAFETY: as above.
        unsafe {
            for token in 0..tokens {
                for (row, &broken) in broken.iter().enumerate().take(count) {
                    let tile = token * row_tiles + row / TILE_ROWS;
                    let at = tile * tile_lanes + row % TILE_ROWS * L::WIDTH;
                    let sum = if broken {
                        f32::NAN
                    } else {
                        L::load(lanes.as_ptr().add(at)).sum()
                    };
                    out[token * count + row] = self.undone(these.start + token, sum, scales);
                }
            }
        }
        SCRATCH.set(scratch);
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
            let begin = rows.start(row);
            // SAFETY: the caller has the tier's instructions; whole groups lie in their row, and the chunk of a row has
            // room for its groups.
            unsafe {
                let mut seen = L::zero();
                for group in groups.clone() {
                    let rest;
                    let at = if group < whole {
                        begin.add(group * R::GROUP_BYTES)
                    } else {
                        rest = Rest::read::<L, R>(&rows, row, whole);
                        rest.start()
                    };
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

/// Goes on with the chains of all rows and `T` tokens over one chunk of the columns.
///
/// `weights` holds `row_tiles` times four rows of `size` elements; `lanes` the registers of each token's row tiles.
#[inline(always)]
unsafe fn multiply_tile<L: Lanes, const T: usize>(
    weights: *const f32,
    row_tiles: usize,
    size: usize,
    x: [*const f32; TILE_TOKENS],
    lanes: *mut f32,
) {
    for tile in 0..row_tiles {
        // SAFETY: the caller gives room for all of it.
        unsafe {
            let weights = weights.add(tile * TILE_ROWS * size);
            let place = |row: usize, token: usize| {
                lanes.add(((token * row_tiles + tile) * TILE_ROWS + row) * L::WIDTH)
            };
            let mut sums = [[L::zero(); T]; TILE_ROWS];
            for (row, sums) in sums.iter_mut().enumerate() {
                for (token, sum) in sums.iter_mut().enumerate() {
                    *sum = L::load(place(row, token));
                }
            }
            let mut at = 0;
            while at < size {
                for at in (0..REGISTERS).map(|register| at + register * L::WIDTH) {
                    let mut values = [L::zero(); T];
                    for (token, value) in values.iter_mut().enumerate() {
                        *value = L::load(x[token].add(at));
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
                for (token, sum) in sums.iter().enumerate() {
                    sum.store(place(row, token));
                }
            }
        }
    }
}
