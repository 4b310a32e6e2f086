//! Multi-head latent attention over a paged cache of latents.
//!
//! A cached row is one latent and one rotated key for all heads. Two forms compute the same function and round
//! differently: `absorbed` attends to the latents themselves, `expanded` rebuilds keys and values. Which one a token takes
//! is the caller's choice, and belongs to the token.
//!
//! Keys are taken in tiles counted from position 0, with an online softmax, and chunks of tiles at fixed positions are
//! joined in order. All is float32, but for queries and caches in bfloat16 on a tier that multiplies pairs of such numbers:
//! there queries, rebuilt keys and values, and weights are rounded to bfloat16 before they are multiplied, and sums are
//! float32; the files called `pairs` have that form. So a token's bits follow from its query, its position and the cached
//! rows up to it: not from the other tokens of the step, the cut of a prompt into steps, the pages' places, or the threads.
//!
//! Memory beside the arguments: at most 64 MB for absorbed queries and sums (for one token of 128 heads with a million
//! keys, 200 MB), and 128 MB, or 4 MB a thread, for expanded ones.

use abyssal_quant::{Bf16, Element};

use crate::lanes::Packing;
use crate::matrix::Matrix;
use crate::tier::{Kind, Tier};

mod absorbed;
mod arithmetic;
mod error;
mod expanded;
mod fp8_row;
mod latents;
mod pairs;
mod softmax;
mod spans;
mod tiles;
mod weights;
mod work;
mod write;

use error::expect_length;
use latents::{Context, Widths};
use spans::{SPAN, Span};
use weights::Order;
use work::Shared;

pub use error::Error;
pub use latents::{Cache, Latents, fp8_row_bytes};
pub use write::{Rotary, Written, write_latents};

/// Sizes of an attention layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sizes {
    /// Query heads.
    pub heads: usize,
    /// Width of a latent.
    pub kv_lora: usize,
    /// Width of the rotated part, even.
    pub rope: usize,
    /// Width of a head's part without position.
    pub nope: usize,
    /// Width of a head's value.
    pub v: usize,
}

/// What a step attends to.
#[derive(Debug, Clone, Copy)]
pub struct Attention<'a> {
    /// Sizes.
    pub sizes: Sizes,
    /// Multiplies the scores.
    pub scale: f32,
    /// Of each token.
    pub rotary: Rotary<'a>,
    /// The cache, `pages * page_size` rows.
    pub latents: Latents<'a>,
    /// Rows of a page.
    pub page_size: usize,
    /// The up projection, `[heads * (nope + v), kv_lora]`: per head the key rows, then the value rows.
    pub up: Matrix<'a>,
    /// `[sequences, 4]`: first token in the batch, number of tokens, position of the first, how many of the first ones
    /// take the expanded form.
    pub spans: &'a [i32],
    /// Page ids of each sequence in order of position, `[sequences, pages]`.
    pub tables: &'a [i32],
}

/// Attends: `query` is `[tokens, heads, nope + rope]`, not rotated, `out` `[tokens, heads, v]`.
///
/// # Errors
/// A size, a span or a page that does not fit; nothing is written then.
pub fn mla_attention<T: Element, O: Element>(
    tier: Tier,
    attention: &Attention<'_>,
    query: &[T],
    out: &mut [O],
    num_threads: usize,
) -> Result<(), Error> {
    match tier.0 {
        Kind::Scalar => {
            attend::<crate::scalar::Scalar<8>, T, O>(tier, attention, query, out, num_threads)
        }
        #[cfg(target_arch = "x86_64")]
        Kind::Avx2 => attend::<crate::avx2::Avx2, T, O>(tier, attention, query, out, num_threads),
        #[cfg(target_arch = "x86_64")]
        Kind::Avx512 | Kind::Avx512Bf16 => {
            attend::<crate::avx512::Avx512, T, O>(tier, attention, query, out, num_threads)
        }
        #[cfg(target_arch = "aarch64")]
        Kind::Neon => attend::<crate::neon::Neon, T, O>(tier, attention, query, out, num_threads),
    }
}

fn attend<L: arithmetic::Arithmetic, T: Element, O: Element>(
    tier: Tier,
    attention: &Attention<'_>,
    query: &[T],
    out: &mut [O],
    num_threads: usize,
) -> Result<(), Error> {
    let sizes = attention.sizes;
    for (name, size) in [
        ("heads", sizes.heads),
        ("kv_lora", sizes.kv_lora),
        ("rope", sizes.rope),
        ("nope", sizes.nope),
        ("v", sizes.v),
        ("page_size", attention.page_size),
    ] {
        if size == 0 {
            return Err(Error::Zero { name });
        }
    }
    if !sizes.rope.is_multiple_of(2) {
        return Err(Error::OddRope { rope: sizes.rope });
    }
    let query_size = sizes.heads * (sizes.nope + sizes.rope);
    let tokens = query.len() / query_size;
    expect_length("query", tokens * query_size, query.len())?;
    expect_length("out", tokens * sizes.heads * sizes.v, out.len())?;
    let rotary = attention.rotary;
    expect_length("cos", tokens * sizes.rope / 2, rotary.cos.len())?;
    expect_length("sin", tokens * sizes.rope / 2, rotary.sin.len())?;
    let rows = sizes.heads * (sizes.nope + sizes.v);
    expect_length("the up projection's rows", rows, attention.up.rows())?;
    expect_length(
        "an up projection's row",
        sizes.kv_lora,
        attention.up.columns(),
    )?;
    let page = attention.page_size * attention.latents.row(sizes.kv_lora, sizes.rope);
    let num_pages = attention.latents.len() / page;
    expect_length("the cache", num_pages * page, attention.latents.len())?;
    let sequences = attention.spans.len() / SPAN;
    expect_length("spans", sequences * SPAN, attention.spans.len())?;
    let across = attention.tables.len().checked_div(sequences).unwrap_or(0);
    expect_length("block tables", sequences * across, attention.tables.len())?;
    let spans = spans::read(
        attention.spans,
        attention.tables,
        tokens,
        attention.page_size,
        num_pages,
    )?;
    let call = Call {
        tier,
        pairs: takes_pairs::<T>(tier, attention),
        sizes,
        // Scores are logarithms to base 2.
        scale: attention.scale * std::f32::consts::LOG2_E,
        rotary,
        latents: attention.latents,
        page_size: attention.page_size,
        up: attention.up,
        widths: Widths::new(sizes.kv_lora, sizes.rope, L::WIDTH),
        order: Order::new::<L>(attention.up.packing(), sizes.kv_lora),
        query,
        out: Shared::new(out.as_mut_ptr()),
        num_threads,
    };
    if spans.iter().any(|span| span.expanded < span.length) {
        absorbed::run::<L, T, O>(&call, &spans);
    }
    if spans.iter().any(|span| span.expanded > 0) {
        expanded::run::<L, T, O>(&call, &spans);
    }
    Ok(())
}

/// Whether a call takes dot products of bfloat16 pairs: where queries and cache have no more precision than that, and the
/// up projection has none to lose.
fn takes_pairs<T: Element>(tier: Tier, attention: &Attention<'_>) -> bool {
    let narrow = T::FORMAT == Bf16::FORMAT
        && matches!(attention.latents, Latents::Bf16(_) | Latents::Fp8(_))
        && attention.up.packing() != Packing::F32;
    tier.has_pairs() && narrow
}

/// A checked call.
struct Call<'a, T, O> {
    tier: Tier,
    /// Whether keys, values, queries and weights are multiplied as pairs of bfloat16 numbers.
    pairs: bool,
    sizes: Sizes,
    scale: f32,
    rotary: Rotary<'a>,
    latents: Latents<'a>,
    page_size: usize,
    up: Matrix<'a>,
    widths: Widths,
    order: Order,
    query: &'a [T],
    out: Shared<O>,
    num_threads: usize,
}

impl<'a, T: Element, O: Element> Call<'a, T, O> {
    /// What a span's tokens attend to.
    fn context(&self, span: &Span<'a>) -> Context<'a> {
        Context {
            latents: self.latents,
            widths: self.widths,
            page_size: self.page_size,
            table: span.table,
        }
    }

    /// Writes a head's query of a token, scaled, its rotary part rotated.
    #[inline(always)]
    fn query(&self, row: usize, head: usize, plain: &mut [f32], rotated: &mut [f32]) {
        let Sizes {
            heads, nope, rope, ..
        } = self.sizes;
        let values = &self.query[(row * heads + head) * (nope + rope)..][..nope + rope];
        for (to, value) in plain.iter_mut().zip(values) {
            *to = value.load() * self.scale;
        }
        self.rotary.rotate(row, &values[nope..], rotated);
        for value in rotated {
            *value *= self.scale;
        }
    }

    /// Writes some of a head's values of a token, from number `at` on.
    ///
    /// # Safety
    /// The token and the head lie in the output, and are the calling task's.
    #[inline(always)]
    unsafe fn write(&self, row: usize, head: usize, at: usize, values: &[f32]) {
        let start = (row * self.sizes.heads + head) * self.sizes.v + at;
        for (place, &value) in values.iter().enumerate() {
            // SAFETY: as the caller promises.
            unsafe { *self.out.at(start + place) = O::store(value) };
        }
    }
}
