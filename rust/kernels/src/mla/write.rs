//! What a step adds to the cache: each token's normalized latent and rotated key.
//!
//! Single float32 operations in a fixed order, so the bits are the same on every machine, and those of PyTorch's own
//! operations but for the order of the sum of squares.

use abyssal_quant::Element;

use super::error::{Error, expect_length};
use super::fp8_row::Fp8Row;
use super::latents::Cache;
use crate::memory::Places;
use crate::norm::normalize;
use crate::pool;

/// Tokens of a task, and numbers that are worth a thread.
const TOKENS: usize = 16;
const WORK_PER_THREAD: usize = 1 << 14;

/// Cosine and sine of each token, `[tokens, rope / 2]`.
#[derive(Debug, Clone, Copy)]
pub struct Rotary<'a> {
    /// Cosines.
    pub cos: &'a [f32],
    /// Sines.
    pub sin: &'a [f32],
}

impl Rotary<'_> {
    /// Rotates the pairs of one token.
    #[inline(always)]
    pub(super) fn rotate<T: Element>(&self, token: usize, values: &[T], out: &mut [f32]) {
        let half = values.len() / 2;
        let cos = &self.cos[token * half..][..half];
        let sin = &self.sin[token * half..][..half];
        let pairs = values.chunks_exact(2).zip(out.chunks_exact_mut(2));
        for ((pair, out), (&cos, &sin)) in pairs.zip(cos.iter().zip(sin)) {
            let (even, odd) = (pair[0].load(), pair[1].load());
            out[0] = even * cos - odd * sin;
            out[1] = odd * cos + even * sin;
        }
    }
}

/// What a layer's down projection gives, and where it goes.
#[derive(Debug, Clone, Copy)]
pub struct Written<'a, T, W> {
    /// `[tokens, kv_lora + rope]`.
    pub values: &'a [T],
    /// The latent norm's weight, `[kv_lora]`.
    pub norm: &'a [W],
    /// The latent norm's epsilon.
    pub eps: f32,
    /// Of each token.
    pub rotary: Rotary<'a>,
    /// Each token's row of the cache.
    pub slots: &'a [i64],
}

/// Writes the tokens' rows to the cache. Of tokens with the same slot one is kept whole or in parts: callers give each its
/// own.
///
/// # Errors
/// A size that does not fit, or a slot outside the cache; nothing is written then.
pub fn write_latents<T: Element, W: Element>(
    written: &Written<'_, T, W>,
    cache: &mut Cache<'_>,
    num_threads: usize,
) -> Result<(), Error> {
    let Written {
        values,
        norm,
        rotary,
        slots,
        ..
    } = *written;
    let (tokens, latent) = (slots.len(), norm.len());
    if latent == 0 {
        return Err(Error::Zero { name: "kv_lora" });
    }
    let half = rotary.cos.len().checked_div(tokens).unwrap_or(0);
    let width = latent + 2 * half;
    if tokens == 0 {
        return Ok(());
    }
    if half == 0 {
        return Err(Error::Zero { name: "rope" });
    }
    expect_length("cos", tokens * half, rotary.cos.len())?;
    expect_length("sin", tokens * half, rotary.sin.len())?;
    expect_length("the down projection", tokens * width, values.len())?;
    let row = cache.latents().row(latent, 2 * half);
    let num_slots = cache.latents().len() / row;
    expect_length("the cache", num_slots * row, cache.latents().len())?;
    for (token, &slot) in slots.iter().enumerate() {
        if !usize::try_from(slot).is_ok_and(|slot| slot < num_slots) {
            return Err(Error::Slot {
                token,
                slot,
                num_slots,
            });
        }
    }
    match cache {
        Cache::F32(cache) => write_rows(written, cache, row, num_threads, &store),
        Cache::Bf16(cache) => write_rows(written, cache, row, num_threads, &store),
        Cache::Fp8(cache) => {
            let fp8 = Fp8Row::new(latent, 2 * half);
            write_rows(written, cache, row, num_threads, &|numbers, row| {
                fp8.pack(numbers, row);
            });
        }
    }
    Ok(())
}

/// Writes a row of plain numbers.
fn store<C: Element>(numbers: &[f32], row: &mut [C]) {
    for (to, &value) in row.iter_mut().zip(numbers) {
        *to = C::store(value);
    }
}

/// Computes the numbers of each row and has `store` write them; all sizes fit.
fn write_rows<T: Element, W: Element, C: Send>(
    written: &Written<'_, T, W>,
    cache: &mut [C],
    row: usize,
    num_threads: usize,
    store: &(dyn Fn(&[f32], &mut [C]) + Sync),
) {
    let Written {
        values,
        norm,
        rotary,
        slots,
        eps,
    } = *written;
    let (tokens, latent) = (slots.len(), norm.len());
    let width = values.len() / tokens;
    let cache = Places::new(cache);
    let threads = num_threads.min(values.len() / WORK_PER_THREAD).max(1);
    // One task where slots could be the same.
    let each = if threads == 1 || !distinct(slots) {
        tokens
    } else {
        TOKENS
    };
    pool::for_each(threads, tokens.div_ceil(each), &|task| {
        let mut numbers = vec![0.0; width];
        for token in task * each..tokens.min((task + 1) * each) {
            let values = &values[token * width..][..width];
            let (latents, rotated) = values.split_at(latent);
            normalize(latents, norm, eps, &mut numbers[..latent]);
            rotary.rotate(token, rotated, &mut numbers[latent..]);
            // The type of the activations first, as where the cache is apart from them.
            for value in &mut numbers[latent..] {
                *value = T::store(*value).load();
            }
            // SAFETY: the slot lies in the cache; no other task has it.
            let to = unsafe { cache.slice(slots[token] as usize * row, row) };
            store(&numbers, to);
        }
    });
}

/// Whether all slots differ.
fn distinct(slots: &[i64]) -> bool {
    let mut sorted = slots.to_vec();
    sorted.sort_unstable();
    sorted.windows(2).all(|pair| pair[0] != pair[1])
}
