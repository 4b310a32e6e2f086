//! Many tokens: four rows at once are unpacked to the first-level cache, and all tokens pass, four at once.

#[allow(
    clippy::wildcard_imports,
    reason = "a list of instructions would say nothing"
)]
use std::arch::x86_64::*;
use std::ops::Range;

use super::super::{AHEAD_BYTES, LINE, Product, TILE_ROWS, prefetch};
use super::{SCRATCH_TOKENS, TILE_TOKENS, undone};
use crate::matrix::{Place, group_at};
use crate::memory::Buffer;
use crate::pairs::{GROUP, LANES, PairRows, REGISTERS, WIDTH, dot, sums};

/// Tokens multiplied together where sums and what they are added to need registers.
const SCALED_TILE_TOKENS: usize = 2;
/// Columns unpacked together, whole groups: whole rows of many models, so that sums stay in registers. Four such rows take
/// half of the first-level cache while all tokens pass.
const SCRATCH_COLUMNS: usize = 2048;
/// Lanes of the outputs of a tile of rows and one token.
const TILE_LANES: usize = TILE_ROWS * LANES;

impl Product<'_> {
    #[inline(always)]
    pub(super) unsafe fn pairs_through_scratch<R: PairRows>(
        &self,
        rows: R,
        these: Range<usize>,
        undo: &[f64; SCRATCH_TOKENS],
        out: &mut [f32],
    ) {
        let (count, tokens) = (self.rows.len(), these.len());
        let width = self.matrix.columns.next_multiple_of(GROUP);
        let chunk = SCRATCH_COLUMNS.min(width);
        let row_tiles = count.div_ceil(TILE_ROWS);
        let sizes = [
            TILE_ROWS * chunk / 2,
            if R::SCALED {
                TILE_ROWS * chunk / GROUP * LANES
            } else {
                0
            },
            tokens.next_multiple_of(TILE_TOKENS) * TILE_LANES,
        ];
        let mut buffer = Buffer::take();
        let scratch = buffer.some(sizes.iter().sum());
        let (numbers, rest) = scratch.split_at_mut(sizes[0]);
        let (scales, lanes) = rest.split_at_mut(sizes[1]);
        let block = Block {
            numbers: numbers.as_mut_ptr().cast(),
            factors: scales.as_mut_ptr(),
            lanes: lanes.as_mut_ptr(),
            tokens,
        };
        // The last tokens go through while memory is asked for what comes next.
        let tiles = row_tiles * tokens.div_ceil(TILE_TOKENS) * width.div_ceil(chunk);
        let last = these.end == self.len();
        let mut coming = Coming {
            place: self.next,
            asked: if last { 0 } else { self.next.len },
            each: self.next.len.div_ceil(tiles),
        };
        let mut results = Results { count, undo, out };
        let mut starts = [std::ptr::null(); SCRATCH_TOKENS];
        for (token, start) in starts.iter_mut().take(tokens).enumerate() {
            *start = self.pairs_of(these.start + token);
        }
        for row in (0..count).step_by(TILE_ROWS) {
            for start in (0..width).step_by(chunk) {
                let part = Part {
                    size: chunk.min(width - start),
                    first: start == 0,
                    last: start + chunk >= width,
                };
                let x = |token: usize| starts[token].wrapping_add(start);
                // SAFETY: the caller has the tier's instructions; the buffers have room for a tile of rows of a chunk, their
                // factors, and the lanes of its outputs.
                unsafe {
                    self.unpack_pairs(rows, row, start..start + part.size, &block);
                    block.tokens_of::<R>(row, part, x, &mut coming, &mut results);
                }
            }
        }
    }

    /// Unpacks some columns of a tile of rows, one row after the other, and the factors of their groups.
    #[inline(always)]
    unsafe fn unpack_pairs<R: PairRows>(
        &self,
        rows: R,
        first: usize,
        columns: Range<usize>,
        block: &Block,
    ) {
        let whole = self.matrix.columns / GROUP;
        let groups = columns.start / GROUP..columns.end / GROUP;
        let tile = self.rows.clone().skip(first).take(TILE_ROWS);
        for (place, row) in tile.enumerate() {
            let begin = rows.start(row);
            for (number, group) in groups.clone().enumerate() {
                let number = place * groups.len() + number;
                // SAFETY: the caller has the tier's instructions; whole groups lie in their row, and the block has room.
                unsafe {
                    let mut rest = None;
                    let at = group_at(&rows, row, (group, whole), R::GROUP_BYTES, &mut rest);
                    for line in (0..R::GROUP_BYTES).step_by(LINE) {
                        prefetch(begin.wrapping_add(group * R::GROUP_BYTES + AHEAD_BYTES + line));
                    }
                    let read = rows.read(at, row, group);
                    for (register, numbers) in read.numbers.into_iter().enumerate() {
                        let to = block.numbers.add(number * GROUP + register * WIDTH);
                        _mm512_store_si512(to.cast(), numbers);
                    }
                    if R::SCALED {
                        _mm512_store_ps(block.factors.add(number * LANES), read.factors);
                    }
                }
            }
        }
    }
}

/// An unpacked tile of rows of one chunk of the columns, and the lanes that it adds to.
struct Block {
    /// Row after row.
    numbers: *mut u16,
    /// Row after row, for each group a factor for each lane.
    factors: *mut f32,
    /// For every token, the lanes of the tile's rows.
    lanes: *mut f32,
    tokens: usize,
}

/// What is asked for while tiles are multiplied, some of it with each.
struct Coming {
    place: Place,
    asked: usize,
    each: usize,
}

impl Coming {
    #[inline(always)]
    fn ask(&mut self) {
        let until = self.place.len.min(self.asked + self.each);
        while self.asked < until {
            prefetch(self.place.start.wrapping_add(self.asked));
            self.asked += LINE;
        }
    }
}

/// Some columns of a tile of rows.
#[derive(Clone, Copy)]
struct Part {
    /// Number of columns.
    size: usize,
    /// Whether they are a row's first ones, and its last ones.
    first: bool,
    last: bool,
}

/// Where products go.
struct Results<'a> {
    /// Number of rows.
    count: usize,
    /// What each token's sums are multiplied by; anything beyond the last token.
    undo: &'a [f64; SCRATCH_TOKENS],
    /// `[tokens, count]`.
    out: &'a mut [f32],
}

impl Results<'_> {
    /// Sums the lanes of `T` tokens of four rows, those of a token one after the other, and writes those that there are.
    #[inline(always)]
    unsafe fn write<const T: usize>(&mut self, row: usize, token: usize, lanes: &[__m512; LANES]) {
        let mut undo = [0.0; LANES];
        for (offset, undo) in undo.as_chunks_mut::<TILE_ROWS>().0.iter_mut().enumerate() {
            *undo = [self.undo[(token + offset) % SCRATCH_TOKENS]; TILE_ROWS];
        }
        // SAFETY: the caller has the tier's instructions.
        let products = unsafe { undone(sums(*lanes), &undo) };
        let products = products.as_chunks::<TILE_ROWS>().0;
        // Copies of a length known here need no call, around which all registers would be put away.
        if row + TILE_ROWS <= self.count {
            for (offset, products) in products.iter().take(T).enumerate() {
                let start = (token + offset) * self.count + row;
                self.out[start..start + TILE_ROWS].copy_from_slice(products);
            }
        } else {
            self.write_some(row, token, &products[..T]);
        }
    }

    /// Writes those of the products that there are rows for.
    #[cold]
    #[inline(never)]
    fn write_some(&mut self, row: usize, token: usize, products: &[[f32; TILE_ROWS]]) {
        let tokens = self.out.chunks_exact_mut(self.count).skip(token);
        for (out, products) in tokens.zip(products) {
            for (out, product) in out[row..].iter_mut().zip(products) {
                *out = *product;
            }
        }
    }
}

impl Block {
    /// Goes on with the chains of a tile of rows and all tokens, and writes their sums after the last part.
    #[inline(always)]
    unsafe fn tokens_of<R: PairRows>(
        &self,
        row: usize,
        part: Part,
        x: impl Fn(usize) -> *const u16,
        coming: &mut Coming,
        results: &mut Results<'_>,
    ) {
        let most = if R::SCALED {
            SCALED_TILE_TOKENS
        } else {
            TILE_TOKENS
        };
        for token in (0..self.tokens).step_by(most) {
            coming.ask();
            // SAFETY: the caller has the tier's instructions and gives room for all of it.
            unsafe {
                match most.min(self.tokens - token) {
                    1 => self.multiply::<R, 1>(row, token, part, [x(token)], results),
                    2 => {
                        let x = [x(token), x(token + 1)];
                        self.multiply::<R, 2>(row, token, part, x, results);
                    }
                    3 => {
                        let x = [x(token), x(token + 1), x(token + 2)];
                        self.multiply::<R, 3>(row, token, part, x, results);
                    }
                    _ => {
                        let x = [x(token), x(token + 1), x(token + 2), x(token + 3)];
                        self.multiply::<R, 4>(row, token, part, x, results);
                    }
                }
            }
        }
    }

    /// Where the lanes of a token begin.
    #[inline(always)]
    fn lanes_of(&self, token: usize) -> *mut f32 {
        self.lanes.wrapping_add(token * TILE_LANES)
    }

    /// Goes on with the chains of one tile of rows and `T` tokens.
    #[inline(always)]
    unsafe fn multiply<R: PairRows, const T: usize>(
        &self,
        first: usize,
        token: usize,
        part: Part,
        x: [*const u16; T],
        results: &mut Results<'_>,
    ) {
        let size = part.size;
        let across = size / GROUP;
        // SAFETY: the caller has the tier's instructions; the tile, the tokens and their lanes lie in their buffers.
        unsafe {
            let (numbers, factors) = (self.numbers, self.factors);
            let mut lanes = [[_mm512_setzero_ps(); T]; TILE_ROWS];
            if !part.first {
                for (row, lanes) in lanes.iter_mut().enumerate() {
                    for (offset, lanes) in lanes.iter_mut().enumerate() {
                        let from = self.lanes_of(token + offset).add(row * LANES);
                        *lanes = _mm512_load_ps(from);
                    }
                }
            }
            for group in 0..across {
                let mut partial = if R::SCALED {
                    [[_mm512_setzero_ps(); T]; TILE_ROWS]
                } else {
                    lanes
                };
                each!(REGISTERS, register, {
                    let at = group * GROUP + register * WIDTH;
                    let mut values = [_mm512_setzero_si512(); T];
                    for (value, x) in values.iter_mut().zip(x) {
                        *value = _mm512_load_si512(x.add(at).cast());
                    }
                    for (row, partial) in partial.iter_mut().enumerate() {
                        let weights = _mm512_load_si512(numbers.add(row * size + at).cast());
                        for (partial, value) in partial.iter_mut().zip(values) {
                            *partial = dot(*partial, weights, value);
                        }
                    }
                });
                if R::SCALED {
                    for (row, (lanes, partial)) in lanes.iter_mut().zip(partial).enumerate() {
                        let factors = _mm512_load_ps(factors.add((row * across + group) * LANES));
                        for (lanes, partial) in lanes.iter_mut().zip(partial) {
                            *lanes = _mm512_fmadd_ps(partial, factors, *lanes);
                        }
                    }
                } else {
                    lanes = partial;
                }
            }
            if part.last {
                let mut all = [_mm512_setzero_ps(); LANES];
                for (row, lanes) in lanes.into_iter().enumerate() {
                    for (offset, lanes) in lanes.into_iter().enumerate() {
                        all[offset * TILE_ROWS + row] = lanes;
                    }
                }
                results.write::<T>(first, token, &all);
                return;
            }
            for (row, lanes) in lanes.into_iter().enumerate() {
                for (offset, lanes) in lanes.into_iter().enumerate() {
                    let to = self.lanes_of(token + offset).add(row * LANES);
                    _mm512_store_ps(to, lanes);
                }
            }
        }
    }
}
