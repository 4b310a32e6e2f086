//! A decoder layer in one call: attention, then a feed-forward part, each normalized before and added after.
//!
//! ```text
//! x       = input_norm(hidden)
//! cache  <- kv_norm(kv_down(x)), rotated key
//! middle  = hidden + output(attention(query_up(query_norm(query_down(x)))))
//! out     = middle + experts(post_norm(middle))
//! ```
//!
//! The stream (`hidden`, `out`) is float32; what goes between the parts is of the activations' type. Every step is the
//! operation that the crate has under its own name, so the bits are those of the calls one after the other. What one call
//! spares is everything between them: in a step of one token that is a tenth of the time.

use std::fmt;

use abyssal_quant::{Bf16, Element};
use abyssal_routing::{Output, Rule, Tier as RoutingTier};

use crate::error::expect_length;
use crate::experts::{Choices, Layer, experts};
use crate::gate::{self, Gate, Values, gate_route};
use crate::linear::linear;
use crate::matrix::Matrix;
use crate::memory::{Buffer, Places};
use crate::mla::{self, Attention, Cache, Rotary, Sizes, Written, mla_attention, write_latents};
use crate::norm::rms_norm;
use crate::pool;
use crate::tier::Tier;

/// Numbers of the stream that a task adds to.
const TASK: usize = 1 << 14;

/// A layer call that was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Error {
    /// A product, a norm or the experts.
    Product(crate::Error),
    /// Attention.
    Attention(mla::Error),
    /// The router.
    Gate(gate::Error),
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Product(error) => error.fmt(f),
            Self::Attention(error) => error.fmt(f),
            Self::Gate(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for Error {}

impl From<crate::Error> for Error {
    fn from(error: crate::Error) -> Self {
        Self::Product(error)
    }
}

impl From<mla::Error> for Error {
    fn from(error: mla::Error) -> Self {
        Self::Attention(error)
    }
}

impl From<gate::Error> for Error {
    fn from(error: gate::Error) -> Self {
        Self::Gate(error)
    }
}

/// Numbers that go from one part of a layer to the next.
pub trait Activation: Element {
    /// The same numbers, as the gate reads them.
    fn values(numbers: &[Self]) -> Values<'_>;
}

impl Activation for f32 {
    fn values(numbers: &[Self]) -> Values<'_> {
        Values::F32(numbers)
    }
}

impl Activation for Bf16 {
    fn values(numbers: &[Self]) -> Values<'_> {
        Values::Bf16(Bf16::to_bits(numbers))
    }
}

/// The weight of a normalization.
#[derive(Debug, Clone, Copy)]
pub enum NormWeight<'a> {
    /// float32.
    F32(&'a [f32]),
    /// bfloat16.
    Bf16(&'a [Bf16]),
}

/// A normalization.
#[derive(Debug, Clone, Copy)]
pub struct Norm<'a> {
    /// Multiplies what is normalized.
    pub weight: NormWeight<'a>,
    /// Added to the mean square.
    pub eps: f32,
}

impl Norm<'_> {
    fn len(&self) -> usize {
        match self.weight {
            NormWeight::F32(weight) => weight.len(),
            NormWeight::Bf16(weight) => weight.len(),
        }
    }

    fn run<T: Element, O: Element>(
        &self,
        x: &[T],
        out: &mut [O],
        num_threads: usize,
    ) -> crate::Result<()> {
        match self.weight {
            NormWeight::F32(weight) => rms_norm(x, weight, self.eps, out, num_threads),
            NormWeight::Bf16(weight) => rms_norm(x, weight, self.eps, out, num_threads),
        }
    }
}

/// The projections of an attention layer.
#[derive(Debug, Clone, Copy)]
pub struct Projections<'a> {
    /// Sizes of the heads.
    pub sizes: Sizes,
    /// Multiplies the scores.
    pub scale: f32,
    /// To the query's latent, and that latent's norm; `None` where queries are projected directly.
    pub query_down: Option<(Matrix<'a>, Norm<'a>)>,
    /// To the queries, `heads * (nope + rope)` rows.
    pub query: Matrix<'a>,
    /// To a latent and a rotary key, `kv_lora + rope` rows.
    pub kv_down: Matrix<'a>,
    /// The latent's norm.
    pub kv_norm: Norm<'a>,
    /// From a latent to keys and values, `heads * (nope + v)` rows.
    pub kv_up: Matrix<'a>,
    /// From the heads' values to the stream.
    pub output: Matrix<'a>,
}

/// What chooses the experts of a token.
#[derive(Debug, Clone, Copy)]
pub struct Router<'a> {
    /// `[num_experts, hidden_size]`.
    pub weight: Values<'a>,
    /// Added to the scores for the selection alone.
    pub correction_bias: Option<&'a [f32]>,
    /// The rule.
    pub rule: &'a Rule,
}

/// A layer's weights.
#[derive(Clone, Copy)]
pub struct DecoderLayer<'a> {
    /// Before attention.
    pub input_norm: Norm<'a>,
    /// Attention.
    pub attention: Projections<'a>,
    /// Before the feed-forward part.
    pub post_norm: Norm<'a>,
    /// `None` where all tokens have the one expert that `experts` shares.
    pub router: Option<Router<'a>>,
    /// The feed-forward part.
    pub experts: Layer<'a>,
}

impl DecoderLayer<'_> {
    /// Checks that the weights fit together.
    ///
    /// # Errors
    /// The first that does not.
    pub fn check(&self) -> Result<(), Error> {
        let weights = &self.attention;
        let Sizes {
            heads,
            kv_lora,
            rope,
            nope,
            v,
        } = weights.sizes;
        let hidden = self.experts.hidden_size;
        let (query_width, query_norm) = match &weights.query_down {
            None => (hidden, None),
            Some((down, norm)) => {
                expect_length("query_down's row", hidden, down.columns())?;
                (down.rows(), Some(norm))
            }
        };
        let query_norm = query_norm.map_or(query_width, Norm::len);
        for (name, expected, actual) in [
            ("input_norm", hidden, self.input_norm.len()),
            ("post_norm", hidden, self.post_norm.len()),
            ("query_norm", query_width, query_norm),
            ("query's row", query_width, weights.query.columns()),
            ("query", heads * (nope + rope), weights.query.rows()),
            ("kv_down's row", hidden, weights.kv_down.columns()),
            ("kv_down", kv_lora + rope, weights.kv_down.rows()),
            ("kv_norm", kv_lora, weights.kv_norm.len()),
            ("kv_up's row", kv_lora, weights.kv_up.columns()),
            ("kv_up", heads * (nope + v), weights.kv_up.rows()),
            ("output's row", heads * v, weights.output.columns()),
            ("output", hidden, weights.output.rows()),
        ] {
            expect_length(name, expected, actual)?;
        }
        if let Some(router) = &self.router {
            let Rule { num_experts, .. } = *router.rule;
            router.rule.check().map_err(gate::Error::Routing)?;
            expect_length("the router's rule", self.experts.num_routes, num_experts)?;
            expect_length("the router", num_experts * hidden, router.weight.len())?;
            let bias = router.correction_bias.map_or(num_experts, <[f32]>::len);
            expect_length("correction_bias", num_experts, bias)?;
        }
        Ok(())
    }
}

/// The tokens of a step, and where each stands in its sequence.
#[derive(Debug, Clone, Copy)]
pub struct Step<'a> {
    /// Of each token.
    pub rotary: Rotary<'a>,
    /// Each token's row of the cache.
    pub slots: &'a [i64],
    /// As for [`Attention`].
    pub spans: &'a [i32],
    /// As for [`Attention`].
    pub tables: &'a [i32],
    /// Rows of a page.
    pub page_size: usize,
}

/// Runs a layer: `hidden` and `out` are `[tokens, hidden_size]`, the activations between its parts are `T`s, and the step's
/// rows of the cache are written.
///
/// # Errors
/// Whatever the operations refuse. `out` and the step's own rows of the cache may have been written then; nothing else.
pub fn decoder_layer<T: Activation>(
    tier: Tier,
    layer: &DecoderLayer<'_>,
    step: &Step<'_>,
    hidden: &[f32],
    cache: &mut Cache<'_>,
    out: &mut [f32],
    num_threads: usize,
) -> Result<(), Error> {
    layer.check()?;
    let tokens = step.slots.len();
    let size = tokens * layer.experts.hidden_size;
    expect_length("hidden", size, hidden.len())?;
    expect_length("out", size, out.len())?;
    let (mut normalized, mut added) = (Buffer::take(), Buffer::take());
    let normalized = normalized.numbers::<T>(size);
    let added = added.numbers::<T>(size);
    layer.input_norm.run(hidden, normalized, num_threads)?;
    attend(
        tier,
        &layer.attention,
        step,
        normalized,
        cache,
        added,
        num_threads,
    )?;
    add(hidden, added, out, num_threads);
    layer.post_norm.run(out, normalized, num_threads)?;
    feed_forward(tier, layer, tokens, normalized, added, num_threads)?;
    add_to(out, added, num_threads);
    Ok(())
}

/// The attention part, from the normalized stream to what is added to it.
fn attend<T: Activation>(
    tier: Tier,
    weights: &Projections<'_>,
    step: &Step<'_>,
    x: &[T],
    cache: &mut Cache<'_>,
    out: &mut [T],
    num_threads: usize,
) -> Result<(), Error> {
    let Sizes { heads, v, .. } = weights.sizes;
    let tokens = step.slots.len();
    let (mut first, mut second) = (Buffer::take(), Buffer::take());
    let down = first.numbers::<T>(tokens * weights.kv_down.rows());
    linear(tier, &weights.kv_down, x, down, num_threads)?;
    write(down, weights.kv_norm, step, cache, num_threads)?;
    let query = second.numbers::<T>(tokens * weights.query.rows());
    if let Some((matrix, norm)) = &weights.query_down {
        let mut third = Buffer::take();
        let down = first.numbers::<T>(tokens * matrix.rows());
        linear(tier, matrix, x, down, num_threads)?;
        let latent = third.numbers::<T>(down.len());
        norm.run(down, latent, num_threads)?;
        linear(tier, &weights.query, latent, query, num_threads)?;
    } else {
        linear(tier, &weights.query, x, query, num_threads)?;
    }
    let attention = Attention {
        sizes: weights.sizes,
        scale: weights.scale,
        rotary: step.rotary,
        latents: cache.latents(),
        page_size: step.page_size,
        up: weights.kv_up,
        spans: step.spans,
        tables: step.tables,
    };
    let attended = first.numbers::<T>(tokens * heads * v);
    mla_attention(tier, &attention, query, attended, num_threads)?;
    linear(tier, &weights.output, attended, out, num_threads)?;
    Ok(())
}

/// Writes the step's rows of the cache, of what the down projection gave.
fn write<T: Element>(
    values: &[T],
    norm: Norm<'_>,
    step: &Step<'_>,
    cache: &mut Cache<'_>,
    num_threads: usize,
) -> Result<(), mla::Error> {
    macro_rules! write {
        ($norm:expr) => {{
            let written = Written {
                values,
                norm: $norm,
                eps: norm.eps,
                rotary: step.rotary,
                slots: step.slots,
            };
            write_latents(&written, cache, num_threads)
        }};
    }
    match norm.weight {
        NormWeight::F32(weight) => write!(weight),
        NormWeight::Bf16(weight) => write!(weight),
    }
}

/// The feed-forward part, from the normalized stream to what is added to it.
fn feed_forward<T: Activation>(
    tier: Tier,
    layer: &DecoderLayer<'_>,
    tokens: usize,
    x: &[T],
    out: &mut [T],
    num_threads: usize,
) -> Result<(), Error> {
    let Some(router) = &layer.router else {
        let none = Choices {
            indices: &[],
            weights: &[],
            top_k: 0,
        };
        return Ok(experts(tier, layer.experts, none, x, out, num_threads)?);
    };
    let top_k = router.rule.top_k;
    let mut weights = vec![0.0; tokens * top_k];
    let mut indices = vec![0; tokens * top_k];
    let gate = Gate {
        x: T::values(x),
        weight: router.weight,
        hidden_size: layer.experts.hidden_size,
    };
    let output = Output {
        weights: &mut weights,
        indices: &mut indices,
        load: None,
    };
    let (rule, bias) = (router.rule, router.correction_bias);
    gate_route(
        RoutingTier::best(),
        rule,
        gate,
        bias,
        output,
        None,
        num_threads,
    )?;
    let choices = Choices {
        indices: &indices,
        weights: &weights,
        top_k,
    };
    Ok(experts(tier, layer.experts, choices, x, out, num_threads)?)
}

/// Writes `stream + added`.
fn add<T: Element>(stream: &[f32], added: &[T], out: &mut [f32], num_threads: usize) {
    let out = Places::new(out);
    for_each_part(stream.len(), num_threads, &|first, count| {
        // SAFETY: this part's numbers, which no other part has.
        let out = unsafe { out.slice(first, count) };
        let parts = stream[first..].iter().zip(&added[first..]);
        for (out, (stream, added)) in out.iter_mut().zip(parts) {
            *out = stream + added.load();
        }
    });
}

/// Adds to the stream.
fn add_to<T: Element>(stream: &mut [f32], added: &[T], num_threads: usize) {
    let len = stream.len();
    let stream = Places::new(stream);
    for_each_part(len, num_threads, &|first, count| {
        // SAFETY: this part's numbers, which no other part has.
        let stream = unsafe { stream.slice(first, count) };
        for (stream, added) in stream.iter_mut().zip(&added[first..]) {
            *stream += added.load();
        }
    });
}

/// Calls `work` with the first number and the length of each part of so many numbers.
fn for_each_part(len: usize, num_threads: usize, work: &(dyn Fn(usize, usize) + Sync)) {
    let tasks = len.div_ceil(TASK);
    pool::for_each(num_threads.min(tasks).max(1), tasks, &|task| {
        let first = task * TASK;
        work(first, TASK.min(len - first));
    });
}
