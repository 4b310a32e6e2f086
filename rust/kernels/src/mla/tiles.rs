//! The two products that attention is made of, in registers.
//!
//! An element is one chain of fused multiply-adds in an order that follows from its own row, wherever the row stands in
//! a tile: along the width for a dot product, along the rows for a weighted sum.

use super::arithmetic::Arithmetic;

/// Rows of the left side in a tile.
const LEFT: usize = 4;
/// Rows of the right side in a tile.
const RIGHT: usize = 3;
/// Rows of the right side that stay in the nearest cache while all rows of the left side pass: with four of those, 576
/// numbers wide, 30 KB.
const NEAR: usize = 9;
/// Registers of a row in a tile of a weighted sum: with two rows, twelve chains, two weights and one value are fifteen
/// registers.
const WIDE: usize = 6;

/// Some rows in memory.
#[derive(Clone, Copy)]
pub(super) struct Rows {
    /// Where the first one begins.
    pub(super) start: *const f32,
    /// From one to the next.
    pub(super) stride: usize,
    /// How many.
    pub(super) count: usize,
}

impl Rows {
    /// Row `row`.
    #[inline(always)]
    fn at(self, row: usize) -> *const f32 {
        self.start.wrapping_add(row * self.stride)
    }
}

/// Where results go: element `(i, j)` at `start + i * strides.0 + j * strides.1`.
#[derive(Clone, Copy)]
pub(super) struct Grid {
    pub(super) start: *mut f32,
    pub(super) strides: (usize, usize),
}

/// The dot product of every row of `left` with every row of `right`, all `width` numbers wide.
///
/// # Safety
/// The tier's instructions are there, the rows are readable, the grid writable, `width` is a multiple of `L::WIDTH`.
#[inline(always)]
pub(super) unsafe fn dots<L: Arithmetic>(left: Rows, right: Rows, width: usize, out: Grid) {
    let mut first = 0;
    // SAFETY: as the caller promises; tiles stay within the rows.
    unsafe {
        while first < right.count {
            let near = Rows {
                start: right.at(first),
                count: NEAR.min(right.count - first),
                ..right
            };
            let out = Grid {
                start: out.start.add(first * out.strides.1),
                ..out
            };
            let mut row = 0;
            while row + LEFT <= left.count {
                dot_row::<L, LEFT>(left, row, near, width, out);
                row += LEFT;
            }
            while row < left.count {
                dot_row::<L, 1>(left, row, near, width, out);
                row += 1;
            }
            first += NEAR;
        }
    }
}

#[inline(always)]
unsafe fn dot_row<L: Arithmetic, const M: usize>(
    left: Rows,
    row: usize,
    right: Rows,
    width: usize,
    out: Grid,
) {
    let mut column = 0;
    // SAFETY: as the caller promises.
    unsafe {
        while column + RIGHT <= right.count {
            dot_tile::<L, M, RIGHT>(left, row, right, column, width, out);
            column += RIGHT;
        }
        while column < right.count {
            dot_tile::<L, M, 1>(left, row, right, column, width, out);
            column += 1;
        }
    }
}

#[inline(always)]
unsafe fn dot_tile<L: Arithmetic, const M: usize, const N: usize>(
    left: Rows,
    row: usize,
    right: Rows,
    column: usize,
    width: usize,
    out: Grid,
) {
    // SAFETY: as the caller promises; the tile lies in the rows.
    unsafe {
        let mut sums = [[L::zero(); N]; M];
        let mut at = 0;
        while at < width {
            let mut values = [L::zero(); N];
            for (offset, value) in values.iter_mut().enumerate() {
                *value = L::load(right.at(column + offset).add(at));
            }
            for (offset, sums) in sums.iter_mut().enumerate() {
                let factor = L::load(left.at(row + offset).add(at));
                for (sum, value) in sums.iter_mut().zip(values) {
                    *sum = factor.mul_add(value, *sum);
                }
            }
            at += L::WIDTH;
        }
        for (i, sums) in sums.into_iter().enumerate() {
            for (j, sum) in sums.into_iter().enumerate() {
                let to = (row + i) * out.strides.0 + (column + j) * out.strides.1;
                *out.start.add(to) = sum.sum();
            }
        }
    }
}

/// What a weighted sum starts from.
#[derive(Clone, Copy)]
pub(super) enum Initial {
    /// Zero; what is in the place of the result is not read.
    Zero,
    /// What is there.
    Stored,
    /// What is there, times a factor for each row of the result.
    Scaled(*const f32),
}

/// Adds to `registers` registers of each row of the result the rows of `rows`, each times its weight: row `i` of `weights`
/// holds the weights for row `i` of the result.
///
/// # Safety
/// The tier's instructions are there, the inputs are readable and the result is writable.
#[inline(always)]
pub(super) unsafe fn weighted_sums<L: Arithmetic>(
    weights: Rows,
    rows: Rows,
    initial: Initial,
    to: *mut f32,
    to_stride: usize,
    registers: usize,
) {
    let mut register = 0;
    // SAFETY: as the caller promises; tiles stay within the rows.
    unsafe {
        while register < registers {
            let across = match registers - register {
                1 => 1,
                WIDE.. => WIDE,
                _ => 2,
            };
            let to = to.add(register * L::WIDTH);
            let rows = Rows {
                start: rows.start.add(register * L::WIDTH),
                ..rows
            };
            match across {
                1 => sum_column::<L, 4, 1>(weights, rows, initial, to, to_stride),
                2 => sum_column::<L, 4, 2>(weights, rows, initial, to, to_stride),
                _ => sum_column::<L, 2, WIDE>(weights, rows, initial, to, to_stride),
            }
            register += across;
        }
    }
}

#[inline(always)]
unsafe fn sum_column<L: Arithmetic, const M: usize, const N: usize>(
    weights: Rows,
    rows: Rows,
    initial: Initial,
    to: *mut f32,
    to_stride: usize,
) {
    let mut row = 0;
    // SAFETY: as the caller promises.
    unsafe {
        while row + M <= weights.count {
            sum_tile::<L, M, N>(weights, row, rows, initial, to, to_stride);
            row += M;
        }
        while row < weights.count {
            sum_tile::<L, 1, N>(weights, row, rows, initial, to, to_stride);
            row += 1;
        }
    }
}

#[inline(always)]
unsafe fn sum_tile<L: Arithmetic, const M: usize, const N: usize>(
    weights: Rows,
    row: usize,
    rows: Rows,
    initial: Initial,
    to: *mut f32,
    to_stride: usize,
) {
    // SAFETY: as the caller promises; the tile lies in the rows.
    unsafe {
        let place = |i: usize, j: usize| to.add((row + i) * to_stride + j * L::WIDTH);
        let mut sums = [[L::zero(); N]; M];
        match initial {
            Initial::Zero => {}
            Initial::Stored => {
                for (i, sums) in sums.iter_mut().enumerate() {
                    for (j, sum) in sums.iter_mut().enumerate() {
                        *sum = L::load(place(i, j));
                    }
                }
            }
            Initial::Scaled(factors) => {
                for (i, sums) in sums.iter_mut().enumerate() {
                    let factor = L::splat(*factors.add(row + i));
                    for (j, sum) in sums.iter_mut().enumerate() {
                        *sum = L::load(place(i, j)).multiply(factor);
                    }
                }
            }
        }
        for index in 0..rows.count {
            let values = rows.at(index);
            let mut factors = [L::zero(); M];
            for (i, factor) in factors.iter_mut().enumerate() {
                *factor = L::splat(*weights.at(row + i).add(index));
            }
            for j in 0..N {
                let value = L::load(values.add(j * L::WIDTH));
                for (sums, factor) in sums.iter_mut().zip(factors) {
                    sums[j] = factor.mul_add(value, sums[j]);
                }
            }
        }
        for (i, sums) in sums.into_iter().enumerate() {
            for (j, sum) in sums.into_iter().enumerate() {
                sum.store(place(i, j));
            }
        }
    }
}
