//! Root mean square normalization.
//!
//! Single float32 operations in a fixed order, so the bits are the same on every machine, and those of PyTorch's own
//! operations but for the order of the sum of squares.

use abyssal_quant::Element;

use crate::error::{Error, Result, expect_length};
use crate::gate::tree_sum;
use crate::memory::Places;
use crate::pool;

/// Lanes of the sum of squares.
const LANES: usize = 16;
/// Tokens of a task, and numbers that are worth a thread.
const TOKENS: usize = 16;
const WORK_PER_THREAD: usize = 1 << 15;

/// Writes `x / sqrt(mean(x^2) + eps)` of each token, rounded to the type of `x`, times the weight.
///
/// `x` and `out` are `[tokens, size]`, the weight is `[size]`.
///
/// # Errors
/// [`Error::NoColumns`] or [`Error::Length`]; nothing is written then.
pub fn rms_norm<T: Element, W: Element, O: Element>(
    x: &[T],
    weight: &[W],
    eps: f32,
    out: &mut [O],
    num_threads: usize,
) -> Result<()> {
    let size = weight.len();
    let tokens = x.len().checked_div(size).ok_or(Error::NoColumns)?;
    expect_length("x", tokens * size, x.len())?;
    expect_length("out", x.len(), out.len())?;
    let threads = num_threads.min(x.len() / WORK_PER_THREAD).max(1);
    let out = Places::new(out);
    pool::for_each(threads, tokens.div_ceil(TOKENS), &|task| {
        for token in task * TOKENS..tokens.min((task + 1) * TOKENS) {
            // SAFETY: this task's tokens, which no other task writes.
            let out = unsafe { out.slice(token * size, size) };
            normalize(&x[token * size..][..size], weight, eps, out);
        }
    });
    Ok(())
}

/// As [`rms_norm`], of one token.
pub(crate) fn normalize<T: Element, W: Element, O: Element>(
    x: &[T],
    weight: &[W],
    eps: f32,
    out: &mut [O],
) {
    let mut lanes = [0.0_f32; LANES];
    let (whole, rest) = x.as_chunks::<LANES>();
    for chunk in whole {
        for (lane, value) in lanes.iter_mut().zip(chunk) {
            let value = value.load();
            *lane += value * value;
        }
    }
    for (lane, value) in lanes.iter_mut().zip(rest) {
        let value = value.load();
        *lane += value * value;
    }
    let factor = 1.0 / (tree_sum(lanes) / x.len() as f32 + eps).sqrt();
    // A product of two half-width tensors is one; any other pair's is float32.
    let narrow = size_of::<T>() == 2 && size_of::<W>() == 2;
    for ((out, value), weight) in out.iter_mut().zip(x).zip(weight) {
        let value = T::store(value.load() * factor).load() * weight.load();
        *out = O::store(if narrow {
            T::store(value).load()
        } else {
            value
        });
    }
}
