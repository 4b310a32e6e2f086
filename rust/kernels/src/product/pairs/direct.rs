//! Few tokens: several rows at once, straight from memory. An output's operations are the same whatever passes beside it.

#[allow(
    clippy::wildcard_imports,
    reason = "a list of instructions would say nothing"
)]
use std::arch::x86_64::*;
use std::array::{from_mut, from_ref};
use std::ops::Range;

use super::super::{LINE, Product, TILE_ROWS};
use super::{TILE_TOKENS, undone};
use crate::matrix::Rest;
use crate::pairs::{GROUP, Group, LANES, PairRows, REGISTERS, WIDTH, dot, sums};

/// Wider rows are read eight at once with one token: the token and the tables of its blocks fill the first-level cache by
/// themselves, come from the second, and so come half as often.
const MOST_NARROW_COLUMNS: usize = 4096;
/// Numbers of tokens that stay in a first-level cache of 32 KB, beside the rows that pass and the tables of their blocks.
const MOST_CACHED_NUMBERS: usize = 12_288;

impl Product<'_> {
    #[inline(always)]
    pub(super) unsafe fn direct_pairs<R: PairRows>(
        &self,
        rows: R,
        tokens: Range<usize>,
        undo: &[f64],
        out: &mut [f32],
    ) {
        let near = Self::ahead(TILE_ROWS, &rows);
        let count = tokens.len();
        if count <= TILE_TOKENS || count * self.matrix.columns <= MOST_CACHED_NUMBERS {
            // SAFETY: the caller has the tier's instructions.
            unsafe { self.direct_pass(rows, tokens, undo, near, out) };
            return;
        }
        // The second half finds the rows in the second-level cache, and memory is asked for what comes next instead.
        let half = count.div_ceil(2);
        let (lower, upper) = out.split_at_mut(half * self.rows.len());
        let next = self.rows.len() * rows.row_bytes();
        let middle = tokens.start + half;
        // SAFETY: as above.
        unsafe {
            self.direct_pass(rows, tokens.start..middle, undo, near, lower);
            self.direct_pass(rows, middle..tokens.end, &undo[half..], next, upper);
        }
    }

    /// Few tokens with all rows, while memory is asked for what lies `ahead` bytes behind.
    ///
    /// A function of its own: the two halves of many tokens share it.
    #[inline(never)]
    #[target_feature(enable = "avx2,fma,avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi,avx512bf16")]
    unsafe fn direct_pass<R: PairRows>(
        &self,
        rows: R,
        tokens: Range<usize>,
        undo: &[f64],
        ahead: usize,
        out: &mut [f32],
    ) {
        let first = tokens.start;
        macro_rules! pass {
            ($rows:literal, $tokens:literal, $ahead:expr) => {{
                let x = self.pairs_from(first);
                self.direct_pair_rows::<R, $rows, $tokens>(rows, x, undo, $ahead, out);
            }};
        }
        // SAFETY: the caller has the tier's instructions; there are as many tokens as each arm says.
        unsafe {
            match tokens.len() {
                1 if self.matrix.columns > MOST_NARROW_COLUMNS => {
                    pass!(8, 1, ahead.max(Self::ahead(8, &rows)));
                }
                1 => pass!(4, 1, ahead),
                2 => pass!(4, 2, ahead),
                3 => pass!(4, 3, ahead),
                4 => pass!(4, 4, ahead),
                5 => pass!(2, 5, ahead),
                6 => pass!(2, 6, ahead),
                7 => pass!(2, 7, ahead),
                _ => pass!(2, 8, ahead),
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
        ahead: usize,
        out: &mut [f32],
    ) {
        let mut row = self.rows.start;
        // SAFETY: the caller has the tier's instructions; the rows are this task's.
        unsafe {
            while row + N <= self.rows.end {
                self.pair_tile::<R, N, T>(rows, row, x, undo, ahead, out);
                row += N;
            }
            while row < self.rows.end {
                self.pair_tile::<R, 1, T>(rows, row, x, undo, ahead, out);
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
        ahead: usize,
        out: &mut [f32],
    ) {
        const { assert!(N <= 8, "each! names no more") };
        let whole = self.matrix.columns / GROUP;
        let starts: [*const u8; N] = std::array::from_fn(|row| rows.start(first + row));
        // What comes is asked for in the order of memory, not as the rows are read.
        let mut asked = 0;
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
                if T <= TILE_TOKENS {
                    each!(N, row, {
                        let weights = rows.read(starts[row].add(offset), first + row, group);
                        let lanes = from_mut(&mut lanes[row]);
                        add_tile::<R, 1, T>(from_ref(&weights), x, lanes);
                    });
                    continue;
                }
                let mut weights = [Group::zero(); N];
                each!(N, row, {
                    weights[row] = rows.read(starts[row].add(offset), first + row, group);
                });
                add_tile::<R, N, T>(&weights, x, &mut lanes);
            }
            if whole * GROUP < self.matrix.columns {
                let x = x.map(|x| x.wrapping_add(whole * GROUP));
                for (row, lanes) in lanes.iter_mut().enumerate() {
                    let rest = Rest::read(&rows, first + row, whole * R::GROUP_BYTES);
                    let weights = rows.read(rest.start(), first + row, whole);
                    add_tile::<R, 1, T>(from_ref(&weights), x, from_mut(lanes));
                }
            }
            let mut all = [_mm512_setzero_ps(); LANES];
            let mut factors = [0.0; LANES];
            each!(T, token, {
                each!(N, row, {
                    all[token * N + row] = lanes[row][token];
                    factors[token * N + row] = undo[token];
                });
            });
            let products = undone(sums(all), &factors);
            for (token, products) in products.chunks_exact(N).take(T).enumerate() {
                let at = token * self.rows.len() + first - self.rows.start;
                out[at..at + N].copy_from_slice(products);
            }
        }
    }
}

/// Adds the products of one group of some rows with each token, whose numbers are read once for all of them.
#[inline(always)]
unsafe fn add_tile<R: PairRows, const N: usize, const T: usize>(
    weights: &[Group; N],
    x: [*const u16; T],
    lanes: &mut [[__m512; T]; N],
) {
    each!(T, token, {
        // SAFETY: the caller has the tier's instructions and gives a group of each token.
        unsafe {
            let mut sums = [_mm512_setzero_ps(); N];
            if !R::SCALED {
                each!(N, row, {
                    sums[row] = lanes[row][token];
                });
            }
            for register in 0..REGISTERS {
                let x = _mm512_load_si512(x[token].add(register * WIDTH).cast());
                each!(N, row, {
                    sums[row] = dot(sums[row], weights[row].numbers[register], x);
                });
            }
            each!(N, row, {
                lanes[row][token] = if R::SCALED {
                    _mm512_fmadd_ps(sums[row], weights[row].factors, lanes[row][token])
                } else {
                    sums[row]
                };
            });
        }
    });
}
