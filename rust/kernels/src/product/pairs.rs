//! Products of pairs of bfloat16 numbers.
//!
//! ```text
//! lanes of an output = 0
//! for each group of 128 columns, ascending:  lanes = lanes + w[0] . x[0] + w[1] . x[1] + w[2] . x[2] + w[3] . x[3]
//! of FP4 weights:  lanes = (0 + w[0] . x[0] + w[1] . x[1] + w[2] . x[2] + w[3] . x[3]) * factors + lanes
//! output = the lanes, halves added until one is left
//! ```
//!
//! As in the other form, few tokens take their weights straight from memory and many tokens from the second-level cache,
//! and an output's operations are the same either way.
#![cfg(target_arch = "x86_64")]

#[allow(
    clippy::wildcard_imports,
    reason = "a list of instructions would say nothing"
)]
use std::arch::x86_64::*;
use std::ops::Range;

use super::direct::Rest;
use super::{AHEAD_BYTES, LINE, Product, TILE_ROWS, prefetch};
use crate::activation::{BlockScales, Form, wide_power};
use crate::avx512::Avx512;
use crate::lanes::Lanes;
use crate::matrix::{Bf16Rows, FP8_BLOCK, Fp8Rows, Mxfp4Rows, Place, Weights};
use crate::memory::Buffer;
use crate::pairs::{
    GROUP, Group, LANES, PairRows, REGISTERS, ScaledFp8Rows, TABLE, WIDTH, dot, sums,
};

/// Tokens multiplied together: with four rows sixteen sums, which are added up together too.
const TILE_TOKENS: usize = 4;
/// The same where sums and what they are added to need registers.
const SCALED_TILE_TOKENS: usize = 2;
/// Tokens that take their weights straight from memory: with two rows sixteen sums.
const MOST_DIRECT_PAIR_TOKENS: usize = 8;
/// Wider rows are read eight at once with one token: the token and the tables of its blocks fill the first-level cache by
/// themselves, come from the second, and so come half as often.
const MOST_NARROW_COLUMNS: usize = 4096;
/// Tokens that go through scratch memory together, whole tiles.
const SCRATCH_TOKENS: usize = 128;
/// Columns unpacked together, whole groups: whole rows of many models, so that memory is read from end to end and sums
/// stay in registers. Four such rows take half of the first-level cache while all tokens pass.
const SCRATCH_COLUMNS: usize = 2048;
/// Lanes of the outputs of a tile of rows and one token.
const TILE_LANES: usize = TILE_ROWS * LANES;

/// Does the same for each of at most eight rows, whose number is known to the compiler: a loop would leave their sums in
/// memory.
macro_rules! each_row {
    ($count:ident, $row:ident, $body:block) => {
        each_row!($count, $row, $body, 0 1 2 3 4 5 6 7)
    };
    ($count:ident, $row:ident, $body:block, $($number:literal)*) => {$(
        if $number < $count {
            let $row = $number;
            $body
        }
    )*};
}

impl Product<'_> {
    /// The products of a panel of pairs.
    ///
    /// # Safety
    /// The tier's instructions are there.
    #[target_feature(enable = "avx2,fma,avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi,avx512bf16")]
    pub(super) unsafe fn multiply_pairs(&self, out: &mut [f32]) {
        let columns = self.matrix.columns;
        // SAFETY: the instructions are there, as this function's own features say; the matrix was checked when it was
        // made.
        unsafe {
            match self.matrix.weights {
                Weights::Fp8 { codes, scales } => {
                    let across = columns.div_ceil(FP8_BLOCK);
                    let row = self.rows.start / FP8_BLOCK;
                    let scales = BlockScales::new(Form::Pairs, scales, row, across);
                    let mut buffer = Buffer::take();
                    let tables = buffer.some(across * TABLE / 4);
                    let rows =
                        ScaledFp8Rows::new(Fp8Rows { codes, columns }, scales.factors(), tables);
                    self.with_pairs(rows, Some(&scales), out);
                }
                Weights::Mxfp4 { codes, scales } => {
                    let rows = Mxfp4Rows {
                        codes,
                        scales,
                        columns,
                    };
                    self.with_pairs(rows, None, out);
                }
                Weights::Bf16(values) => self.with_pairs(Bf16Rows { values, columns }, None, out),
                // Panels for float32 weights are lanes.
                Weights::F32(_) => self.multiply::<Avx512>(out),
            }
        }
    }

    #[inline(always)]
    unsafe fn with_pairs<R: PairRows>(
        &self,
        rows: R,
        scales: Option<&BlockScales>,
        out: &mut [f32],
    ) {
        let most = self.together(SCRATCH_TOKENS, TILE_TOKENS);
        let mut undo = [0.0; SCRATCH_TOKENS];
        for first in (0..self.len()).step_by(most) {
            let tokens = first..self.len().min(first + most);
            for (undo, token) in undo.iter_mut().zip(tokens.clone()) {
                let exponent = self.panel.exponents[self.token(token)];
                *undo =
                    scales.map_or_else(|| wide_power(exponent), |scales| scales.undoing(exponent));
            }
            let out = &mut out[first * self.rows.len()..tokens.end * self.rows.len()];
            // SAFETY: the caller has the tier's instructions.
            unsafe {
                if tokens.len() <= MOST_DIRECT_PAIR_TOKENS {
                    self.direct_pairs(rows, tokens, &undo, out);
                } else {
                    self.pairs_through_scratch(rows, tokens, &undo, out);
                }
            }
        }
    }

    /// A token's numbers.
    #[inline(always)]
    fn pairs_of(&self, token: usize) -> *const u16 {
        self.panel.token(self.token(token)).as_ptr().cast()
    }

    /// The numbers of some tokens.
    #[inline(always)]
    fn pairs_from<const T: usize>(&self, first: usize) -> [*const u16; T] {
        std::array::from_fn(|token| self.pairs_of(first + token))
    }

    #[inline(always)]
    unsafe fn direct_pairs<R: PairRows>(
        &self,
        rows: R,
        tokens: Range<usize>,
        undo: &[f64],
        out: &mut [f32],
    ) {
        let first = tokens.start;
        // SAFETY: the caller has the tier's instructions; there are as many tokens as each arm says.
        unsafe {
            match tokens.len() {
                1 if self.matrix.columns > MOST_NARROW_COLUMNS => {
                    self.direct_pair_rows::<R, 8, 1>(rows, self.pairs_from(first), undo, out);
                }
                1 => self.direct_pair_rows::<R, 4, 1>(rows, self.pairs_from(first), undo, out),
                2 => self.direct_pair_rows::<R, 4, 2>(rows, self.pairs_from(first), undo, out),
                3 => self.direct_pair_rows::<R, 2, 3>(rows, self.pairs_from(first), undo, out),
                4 => self.direct_pair_rows::<R, 2, 4>(rows, self.pairs_from(first), undo, out),
                5 => self.direct_pair_rows::<R, 2, 5>(rows, self.pairs_from(first), undo, out),
                6 => self.direct_pair_rows::<R, 2, 6>(rows, self.pairs_from(first), undo, out),
                7 => self.direct_pair_rows::<R, 2, 7>(rows, self.pairs_from(first), undo, out),
                _ => self.direct_pair_rows::<R, 2, 8>(rows, self.pairs_from(first), undo, out),
            }
        }
    }

    /// All rows with `T` tokens, `N` rows at once.
    #[inline(always)]
    unsafe fn direct_pair_rows<R: PairRows, const N: usize, const T: usize>(
        &self,
        rows: R,
        x: [*const u16; T],
        undo: &[f64],
        out: &mut [f32],
    ) {
        let mut row = self.rows.start;
        // SAFETY: the caller has the tier's instructions; the rows are this task's.
        unsafe {
            while row + N <= self.rows.end {
                self.pair_tile::<R, N, T>(rows, row, x, undo, out);
                row += N;
            }
            while row < self.rows.end {
                self.pair_tile::<R, 1, T>(rows, row, x, undo, out);
                row += 1;
            }
        }
    }

    /// `N` rows with `T` tokens.
    #[inline(always)]
    unsafe fn pair_tile<R: PairRows, const N: usize, const T: usize>(
        &self,
        rows: R,
        first: usize,
        x: [*const u16; T],
        undo: &[f64],
        out: &mut [f32],
    ) {
        const { assert!(N <= 8, "each_row! names no more rows") };
        let whole = self.matrix.columns / GROUP;
        let starts: [*const u8; N] = std::array::from_fn(|row| rows.start(first + row));
        // What comes is asked for in the order of memory, not as the rows are read.
        let mut asked = 0;
        let ahead = Self::ahead(N, &rows);
        // SAFETY: the caller has the tier's instructions; whole groups lie in their rows, and the tokens have whole groups.
        unsafe {
            let mut lanes = [[_mm512_setzero_ps(); T]; N];
            for group in 0..whole {
                let offset = group * R::GROUP_BYTES;
                while asked < N * (offset + R::GROUP_BYTES) {
                    self.ask(&rows, first, asked + ahead);
                    asked += LINE;
                }
                let x = x.map(|x| x.wrapping_add(group * GROUP));
                each_row!(N, row, {
                    let weights = rows.read(starts[row].add(offset), first + row, group);
                    add_products::<R, T>(&weights, x, &mut lanes[row]);
                });
            }
            if whole * GROUP < self.matrix.columns {
                let x = x.map(|x| x.wrapping_add(whole * GROUP));
                for (row, lanes) in lanes.iter_mut().enumerate() {
                    let rest = Rest::read(&rows, first + row, whole * R::GROUP_BYTES);
                    let weights = rows.read(rest.start(), first + row, whole);
                    add_products::<R, T>(&weights, x, lanes);
                }
            }
            for (row, lanes) in lanes.into_iter().enumerate() {
                for (token, lanes) in lanes.into_iter().enumerate() {
                    let at = token * self.rows.len() + first + row - self.rows.start;
                    out[at] = (f64::from(Avx512(lanes).sum()) * undo[token]) as f32;
                }
            }
        }
    }

    #[inline(always)]
    unsafe fn pairs_through_scratch<R: PairRows>(
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
        let rows_room = row_tiles * TILE_ROWS;
        let sizes = [
            rows_room * chunk / 2,
            if R::SCALED {
                rows_room * chunk / GROUP * LANES
            } else {
                0
            },
            row_tiles * tokens.next_multiple_of(TILE_TOKENS) * TILE_LANES,
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
            tokens_room: tokens.next_multiple_of(TILE_TOKENS),
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
        // SAFETY: the caller has the tier's instructions; the buffers have room for whole tiles of rows of a chunk, their
        // factors, and the lanes of every output.
        unsafe {
            for start in (0..width).step_by(chunk) {
                let part = Part {
                    size: chunk.min(width - start),
                    first: start == 0,
                    last: start + chunk >= width,
                };
                self.unpack_pairs(rows, start..start + part.size, &block);
                let x = |token: usize| starts[token].wrapping_add(start);
                for tile in 0..row_tiles {
                    block.tokens_of::<R>(tile, part, x, &mut coming, &mut results);
                }
            }
        }
    }

    /// Unpacks some columns of every row, one row after the other, and the factors of their groups.
    #[inline(always)]
    unsafe fn unpack_pairs<R: PairRows>(&self, rows: R, columns: Range<usize>, block: &Block) {
        let whole = self.matrix.columns / GROUP;
        let groups = columns.start / GROUP..columns.end / GROUP;
        for (place, row) in self.rows.clone().enumerate() {
            let begin = rows.start(row);
            for (number, group) in groups.clone().enumerate() {
                let number = place * groups.len() + number;
                // SAFETY: the caller has the tier's instructions; whole groups lie in their row, and the block has room.
                unsafe {
                    let rest;
                    let at = if group < whole {
                        begin.add(group * R::GROUP_BYTES)
                    } else {
                        rest = Rest::read(&rows, row, whole * R::GROUP_BYTES);
                        rest.start()
                    };
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

/// Adds the products of one group with each token.
#[inline(always)]
unsafe fn add_products<R: PairRows, const T: usize>(
    weights: &Group,
    x: [*const u16; T],
    lanes: &mut [__m512; T],
) {
    for (lanes, x) in lanes.iter_mut().zip(x) {
        // SAFETY: the caller has the tier's instructions and gives a group of each token.
        unsafe {
            let mut sum = if R::SCALED {
                _mm512_setzero_ps()
            } else {
                *lanes
            };
            for (register, &numbers) in weights.numbers.iter().enumerate() {
                sum = dot(
                    sum,
                    numbers,
                    _mm512_load_si512(x.add(register * WIDTH).cast()),
                );
            }
            *lanes = if R::SCALED {
                _mm512_fmadd_ps(sum, weights.factors, *lanes)
            } else {
                sum
            };
        }
    }
}

/// Sums of four rows of four tokens, taken back to their own sizes: one rounding each.
#[inline(always)]
unsafe fn undone(sums: __m512, undo: [f64; TILE_TOKENS]) -> [f32; LANES] {
    let mut out = [0.0; LANES];
    // SAFETY: the caller has the tier's instructions.
    unsafe {
        let [a, b, c, d] = undo;
        let lower = _mm512_cvtps_pd(_mm512_castps512_ps256(sums));
        let upper = _mm512_cvtps_pd(_mm512_extractf32x8_ps::<1>(sums));
        let lower = _mm512_mul_pd(lower, _mm512_setr_pd(a, a, a, a, b, b, b, b));
        let upper = _mm512_mul_pd(upper, _mm512_setr_pd(c, c, c, c, d, d, d, d));
        _mm256_storeu_ps(out.as_mut_ptr(), _mm512_cvtpd_ps(lower));
        _mm256_storeu_ps(out.as_mut_ptr().add(LANES / 2), _mm512_cvtpd_ps(upper));
    }
    out
}

/// Unpacked rows of one chunk of the columns, and the lanes that they add to.
struct Block {
    /// Row after row, whole tiles.
    numbers: *mut u16,
    /// Row after row, for each group a factor for each lane.
    factors: *mut f32,
    /// For every tile of rows and token, the lanes of the tile's rows.
    lanes: *mut f32,
    tokens: usize,
    /// Tokens that there is room for.
    tokens_room: usize,
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

/// Some columns of all rows.
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
        let undo = std::array::from_fn(|offset| self.undo[(token + offset) % SCRATCH_TOKENS]);
        // SAFETY: the caller has the tier's instructions.
        let products = unsafe { undone(sums(*lanes), undo) };
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
        tile: usize,
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
                    1 => self.multiply::<R, 1>(tile, token, part, [x(token)], results),
                    2 => {
                        let x = [x(token), x(token + 1)];
                        self.multiply::<R, 2>(tile, token, part, x, results);
                    }
                    3 => {
                        let x = [x(token), x(token + 1), x(token + 2)];
                        self.multiply::<R, 3>(tile, token, part, x, results);
                    }
                    _ => {
                        let x = [x(token), x(token + 1), x(token + 2), x(token + 3)];
                        self.multiply::<R, 4>(tile, token, part, x, results);
                    }
                }
            }
        }
    }

    /// Where the lanes of a tile and a token begin.
    #[inline(always)]
    fn lanes_of(&self, tile: usize, token: usize) -> *mut f32 {
        self.lanes
            .wrapping_add((tile * self.tokens_room + token) * TILE_LANES)
    }

    /// Goes on with the chains of one tile of rows and `T` tokens.
    #[inline(always)]
    unsafe fn multiply<R: PairRows, const T: usize>(
        &self,
        tile: usize,
        token: usize,
        part: Part,
        x: [*const u16; T],
        results: &mut Results<'_>,
    ) {
        let size = part.size;
        let across = size / GROUP;
        // SAFETY: the caller has the tier's instructions; the tile, the tokens and their lanes lie in their buffers.
        unsafe {
            let numbers = self.numbers.add(tile * TILE_ROWS * size);
            let factors = self.factors.wrapping_add(tile * TILE_ROWS * across * LANES);
            let mut lanes = [[_mm512_setzero_ps(); T]; TILE_ROWS];
            if !part.first {
                for (row, lanes) in lanes.iter_mut().enumerate() {
                    for (offset, lanes) in lanes.iter_mut().enumerate() {
                        let from = self.lanes_of(tile, token + offset).add(row * LANES);
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
                for register in 0..REGISTERS {
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
                }
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
                results.write::<T>(tile * TILE_ROWS, token, &all);
                return;
            }
            for (row, lanes) in lanes.into_iter().enumerate() {
                for (offset, lanes) in lanes.into_iter().enumerate() {
                    let to = self.lanes_of(tile, token + offset).add(row * LANES);
                    _mm512_store_ps(to, lanes);
                }
            }
        }
    }
}
