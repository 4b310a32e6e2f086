//! Few tokens: weights go from memory to the registers.

use std::array::{from_mut, from_ref};
use std::ops::Range;
use std::sync::atomic::{Ordering, compiler_fence};

use crate::matrix::Rest;
use crate::memory::Buffer;

use super::{BlockScales, LINE, Lanes, Product, REGISTERS, Rows};

/// From so many tokens on all rows of a group are multiplied together, not one after the other.
const MANY: usize = 3;

impl Product<'_> {
    #[inline(always)]
    pub(super) unsafe fn direct<L: Lanes, R: Rows<L>>(
        &self,
        rows: R,
        scales: Option<&BlockScales>,
        tokens: Range<usize>,
        out: &mut [f32],
    ) {
        let start = tokens.start;
        let Some(block_scales) = scales else {
            let x = |token: usize| self.panel.token(self.token(start + token)).as_ptr();
            // SAFETY: the caller has the tier's instructions.
            unsafe { self.direct_tokens::<L, R>(rows, tokens, x, None, out) };
            return;
        };
        let width = self.panel.width;
        let mut buffer = Buffer::take();
        let scaled = buffer.some(tokens.len() * width);
        for (token, out) in scaled.chunks_exact_mut(width).enumerate() {
            block_scales.apply(self.panel.token(self.token(start + token)), 0, out);
        }
        let x = |token: usize| scaled[token * width..].as_ptr();
        // SAFETY: the caller has the tier's instructions.
        unsafe { self.direct_tokens::<L, R>(rows, tokens, x, scales, out) };
    }

    #[inline(always)]
    unsafe fn direct_tokens<L: Lanes, R: Rows<L>>(
        &self,
        rows: R,
        tokens: Range<usize>,
        x: impl Fn(usize) -> *const f32,
        scales: Option<&BlockScales>,
        out: &mut [f32],
    ) {
        let first = tokens.start;
        // SAFETY: the caller has the tier's instructions; there are as many tokens as each arm says.
        unsafe {
            match tokens.len() {
                1 => self.direct_rows::<L, R, 4, 1>(rows, first, [x(0)], scales, out),
                2 => self.direct_rows::<L, R, 4, 2>(rows, first, [x(0), x(1)], scales, out),
                3 => self.direct_rows::<L, R, 2, 3>(rows, first, [x(0), x(1), x(2)], scales, out),
                _ => {
                    let x = [x(0), x(1), x(2), x(3)];
                    self.direct_rows::<L, R, 2, 4>(rows, first, x, scales, out);
                }
            }
        }
    }

    /// All rows with `T` tokens, `N` rows at once: as many sums as there are registers for.
    #[inline(always)]
    unsafe fn direct_rows<L: Lanes, R: Rows<L>, const N: usize, const T: usize>(
        &self,
        rows: R,
        first_token: usize,
        x: [*const f32; T],
        scales: Option<&BlockScales>,
        out: &mut [f32],
    ) {
        let mut row = self.rows.start;
        // SAFETY: the caller has the tier's instructions; the rows are this task's.
        unsafe {
            while row + N <= self.rows.end {
                self.tile::<L, R, N, T>(rows, row, first_token, x, scales, out);
                row += N;
            }
            while row < self.rows.end {
                self.tile::<L, R, 1, T>(rows, row, first_token, x, scales, out);
                row += 1;
            }
        }
    }

    /// `N` rows with `T` tokens.
    #[inline(always)]
    unsafe fn tile<L: Lanes, R: Rows<L>, const N: usize, const T: usize>(
        &self,
        rows: R,
        first: usize,
        first_token: usize,
        x: [*const f32; T],
        scales: Option<&BlockScales>,
        out: &mut [f32],
    ) {
        let whole = self.matrix.columns / L::GROUP;
        let starts: [*const u8; N] = std::array::from_fn(|row| rows.start(first + row));
        // The rows lie one after the other, and what comes is asked for in that order, not as the rows are read: that
        // is the one order in which memory is as fast as it gets.
        let mut asked = 0;
        let ahead = Self::ahead(N, &rows);
        // SAFETY: the caller has the tier's instructions; whole groups lie in their rows, and the tokens have `width`
        // elements each, which the groups of a row do not exceed.
        unsafe {
            let mut sums = [[L::zero(); T]; N];
            let mut seen = [L::zero(); N];
            for group in 0..whole {
                let offset = group * R::GROUP_BYTES;
                while asked < N * (offset + R::GROUP_BYTES) {
                    self.ask(&rows, first, asked + ahead);
                    asked += LINE;
                }
                let x = x.map(|x| x.wrapping_add(group * L::GROUP));
                let mut weights = [[L::zero(); REGISTERS]; N];
                for row in 0..N {
                    let at = starts[row].add(offset);
                    if R::WATCHED {
                        seen[row] = L::fp8_largest(seen[row], at);
                    }
                    weights[row] = rows.unpack(at, first + row, group);
                    if T < MANY {
                        multiply_add(from_ref(&weights[row]), x, from_mut(&mut sums[row]));
                        if L::FEW {
                            // What was loaded for this row is not kept for the next one, in the place of a sum.
                            compiler_fence(Ordering::SeqCst);
                        }
                    }
                }
                if T >= MANY {
                    multiply_add(&weights, x, &mut sums);
                }
            }
            if whole * L::GROUP < self.matrix.columns {
                let x = x.map(|x| x.wrapping_add(whole * L::GROUP));
                for row in 0..N {
                    let rest = Rest::read(&rows, first + row, whole * R::GROUP_BYTES);
                    if R::WATCHED {
                        seen[row] = L::fp8_largest(seen[row], rest.start());
                    }
                    let weights = rows.unpack(rest.start(), first + row, whole);
                    multiply_add(from_ref(&weights), x, from_mut(&mut sums[row]));
                }
            }
            for (row, (sums, seen)) in sums.into_iter().zip(seen).enumerate() {
                let broken = R::WATCHED && L::has_nan_code(seen);
                for (token, sum) in sums.into_iter().enumerate() {
                    let sum = if broken { f32::NAN } else { sum.sum() };
                    let at = token * self.rows.len() + first + row - self.rows.start;
                    out[at] = self.undone(first_token + token, sum, scales);
                }
            }
        }
    }
}

/// Adds the products of one group of each row with each token, whose elements are loaded once for all of these rows.
#[inline(always)]
unsafe fn multiply_add<L: Lanes, const N: usize, const T: usize>(
    weights: &[[L; REGISTERS]; N],
    x: [*const f32; T],
    sums: &mut [[L; T]; N],
) {
    for register in 0..REGISTERS {
        for (token, x) in x.into_iter().enumerate() {
            // SAFETY: the caller gives a group of each of `T` tokens.
            unsafe {
                let x = L::load(x.add(register * L::WIDTH));
                for (weights, sums) in weights.iter().zip(sums.iter_mut()) {
                    sums[token] = weights[register].mul_add(x, sums[token]);
                }
            }
        }
    }
}
