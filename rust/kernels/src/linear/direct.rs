//! Few tokens: weights go from memory to the registers.

use abyssal_quant::Element;

use super::{AHEAD_BYTES, BlockScales, LINE, Lanes, REGISTERS, Rows, Task, prefetch};

impl<O: Element> Task<'_, O> {
    #[inline(always)]
    pub(super) unsafe fn direct<L: Lanes, R: Rows<L>>(
        &self,
        rows: R,
        scales: Option<&BlockScales>,
    ) {
        let scaled: Vec<f32>;
        let tokens: &[f32] = match scales {
            None => &self.panel.values,
            Some(scales) => {
                let width = self.panel.width;
                let mut values = vec![0.0; self.panel.values.len()];
                for (token, out) in values.chunks_exact_mut(width).enumerate() {
                    scales.apply(self.panel.token(token), 0, out);
                }
                scaled = values;
                &scaled
            }
        };
        // SAFETY: the caller has the tier's instructions.
        unsafe {
            match self.panel.len() {
                1 => self.direct_tokens::<L, R, 4, 1>(rows, tokens, scales),
                2 => self.direct_tokens::<L, R, 4, 2>(rows, tokens, scales),
                3 => self.direct_tokens::<L, R, 2, 3>(rows, tokens, scales),
                _ => self.direct_tokens::<L, R, 2, 4>(rows, tokens, scales),
            }
        }
    }

    /// All rows with `T` tokens, `N` rows at once: as many sums as there are registers for.
    #[inline(always)]
    unsafe fn direct_tokens<L: Lanes, R: Rows<L>, const N: usize, const T: usize>(
        &self,
        rows: R,
        tokens: &[f32],
        scales: Option<&BlockScales>,
    ) {
        let mut row = self.rows.start;
        // SAFETY: the caller has the tier's instructions; the rows are this task's.
        unsafe {
            while row + N <= self.rows.end {
                self.tile::<L, R, N, T>(rows, row, tokens, scales);
                row += N;
            }
            while row < self.rows.end {
                self.tile::<L, R, 1, T>(rows, row, tokens, scales);
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
        tokens: &[f32],
        scales: Option<&BlockScales>,
    ) {
        let width = self.panel.width;
        let whole = self.matrix.columns / L::GROUP;
        let starts: [*const u8; N] = std::array::from_fn(|row| rows.start(first + row));
        // The same place of the rows that come as many tiles later as make the distance.
        let tile_bytes = (N * rows.row_bytes()).max(1);
        let ahead = AHEAD_BYTES.div_ceil(tile_bytes) * tile_bytes;
        let mut asked = 0;
        // SAFETY: the caller has the tier's instructions; whole groups lie in their rows, and the tokens have `width`
        // elements each, which the groups of a row do not exceed.
        unsafe {
            let mut sums = [[L::zero(); T]; N];
            let mut seen = [L::zero(); N];
            for group in 0..whole {
                let offset = group * R::GROUP_BYTES;
                while asked < offset + R::GROUP_BYTES {
                    for start in starts {
                        prefetch(start.wrapping_add(ahead + asked));
                    }
                    asked += LINE;
                }
                let x = tokens.as_ptr().add(group * L::GROUP);
                for row in 0..N {
                    let at = starts[row].add(offset);
                    if R::WATCHED {
                        seen[row] = L::fp8_largest(seen[row], at);
                    }
                    let weights = rows.unpack(at, first + row, group);
                    multiply_add::<L, T>(&weights, x, width, &mut sums[row]);
                }
            }
            if whole * L::GROUP < self.matrix.columns {
                let x = tokens.as_ptr().add(whole * L::GROUP);
                for row in 0..N {
                    let rest = Rest::read::<L, R>(&rows, first + row, whole);
                    if R::WATCHED {
                        seen[row] = L::fp8_largest(seen[row], rest.start());
                    }
                    let weights = rows.unpack(rest.start(), first + row, whole);
                    multiply_add::<L, T>(&weights, x, width, &mut sums[row]);
                }
            }
            for (row, (sums, seen)) in sums.into_iter().zip(seen).enumerate() {
                let broken = R::WATCHED && L::has_nan_code(seen);
                for (token, sum) in sums.into_iter().enumerate() {
                    let sum = if broken { f32::NAN } else { sum.sum() };
                    self.write(token, first + row, sum, scales);
                }
            }
        }
    }
}

/// Adds the products of one group with each token.
#[inline(always)]
unsafe fn multiply_add<L: Lanes, const T: usize>(
    weights: &[L; REGISTERS],
    x: *const f32,
    width: usize,
    sums: &mut [L; T],
) {
    for (register, weight) in weights.iter().enumerate() {
        for (token, sum) in sums.iter_mut().enumerate() {
            // SAFETY: the caller gives `T` tokens of `width` elements, a group of each from `x` on.
            unsafe {
                let x = L::load(x.add(token * width + register * L::WIDTH));
                *sum = weight.mul_add(x, *sum);
            }
        }
    }
}

/// The last, ragged group of a row, filled up with zeros.
pub(super) struct Rest([u8; 256]);

impl Rest {
    /// Copies what is left of a row behind its whole groups.
    pub(super) fn read<L: Lanes, R: Rows<L>>(rows: &R, row: usize, whole: usize) -> Self {
        let offset = whole * R::GROUP_BYTES;
        let count = rows.row_bytes() - offset;
        let mut bytes = [0; 256];
        debug_assert!(count < R::GROUP_BYTES && R::GROUP_BYTES <= bytes.len());
        // SAFETY: the row has `row_bytes` bytes, and the rest is shorter than a group, which the array holds.
        unsafe {
            std::ptr::copy_nonoverlapping(
                rows.start(row).wrapping_add(offset),
                bytes.as_mut_ptr(),
                count,
            );
        }
        Self(bytes)
    }

    pub(super) fn start(&self) -> *const u8 {
        self.0.as_ptr()
    }
}
