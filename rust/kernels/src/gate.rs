//! The gate: the router's matrix product and the choice of experts, as one call that keeps the logits to itself.
//!
//! ```text
//! lanes[l]  = 0 + x[l] w[l] + x[l + 16] w[l + 16] + ...      in order, each product and each sum rounded to float32
//! logit     = lanes added in halves: 8 apart, 4, 2, 1
//! ```
//!
//! That order follows from the width of a row alone, so a token's bits depend neither on the other tokens nor on the
//! threads nor on the instruction tier. Products and sums are rounded one by one (no fused instruction): so PyTorch can
//! do the same (`reference/gate.py`), and processors that add and multiply on different ports lose the least by it.
//! Weights are read where they lie; a bfloat16 number is a float32 with zeros behind it.

use std::fmt;
use std::ops::Range;

use crate::memory::Places;
use crate::pool;
use abyssal_routing::{self as routing, Output, Rule, Tier};

mod blocks;
mod dots;
mod vector;

use dots::Rows;
pub(crate) use dots::tree_sum;
use vector::WIDTH;

/// Tokens whose logits exist at the same time.
const TOGETHER: usize = 96;
/// So many tokens are worth copying the weight for.
const MANY: usize = 6;
/// Multiplications that a thread of its own is worth.
const WORK_PER_THREAD: usize = 1 << 16;

/// A matrix of float32 numbers or of bfloat16 bits, row after row.
#[derive(Debug, Clone, Copy)]
pub enum Values<'a> {
    /// float32.
    F32(&'a [f32]),
    /// The bits of bfloat16.
    Bf16(&'a [u16]),
}

impl Values<'_> {
    pub(crate) fn len(&self) -> usize {
        match self {
            Self::F32(values) => values.len(),
            Self::Bf16(values) => values.len(),
        }
    }

    /// Some rows of a matrix.
    fn rows(&self, rows: Range<usize>, width: usize) -> Self {
        let cells = rows.start * width..rows.end * width;
        match self {
            Self::F32(values) => Self::F32(&values[cells]),
            Self::Bf16(values) => Self::Bf16(&values[cells]),
        }
    }
}

/// A gate call that was refused; nothing was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Error {
    /// The hidden states have no width.
    NoColumns,
    /// A matrix or the logits have the wrong size.
    Length {
        /// Which argument.
        name: &'static str,
        /// Elements needed.
        expected: usize,
        /// Elements given.
        actual: usize,
    },
    /// The rule or an output does not fit.
    Routing(routing::Error),
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoColumns => write!(f, "hidden size is 0; at least 1 is needed"),
            Self::Length {
                name,
                expected,
                actual,
            } => {
                write!(f, "{name} has {actual} elements; it must have {expected}")
            }
            Self::Routing(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for Error {}

impl From<routing::Error> for Error {
    fn from(error: routing::Error) -> Self {
        Self::Routing(error)
    }
}

fn expect_length(name: &'static str, expected: usize, actual: usize) -> Result<(), Error> {
    if expected == actual {
        Ok(())
    } else {
        Err(Error::Length {
            name,
            expected,
            actual,
        })
    }
}

/// The two matrices of a gate.
#[derive(Debug, Clone, Copy)]
pub struct Gate<'a> {
    /// Hidden states, `[num_tokens, hidden_size]`.
    pub x: Values<'a>,
    /// The router's weight, `[num_experts, hidden_size]`.
    pub weight: Values<'a>,
    /// Width of both.
    pub hidden_size: usize,
}

/// Computes the logits of hidden states, routes them, and writes the logits too if there is a place for them. Returns
/// how many rows had fewer than `top_k` experts to choose from.
///
/// # Errors
/// A size or a rule that does not fit; nothing is written then.
pub fn gate_route(
    tier: Tier,
    rule: &Rule,
    gate: Gate<'_>,
    bias: Option<&[f32]>,
    output: Output<'_>,
    mut logits: Option<&mut [f32]>,
    num_threads: usize,
) -> Result<usize, Error> {
    let Gate {
        x,
        weight,
        hidden_size,
    } = gate;
    if hidden_size == 0 {
        return Err(Error::NoColumns);
    }
    rule.check()?;
    let Rule {
        num_experts, top_k, ..
    } = *rule;
    let tokens = x.len() / hidden_size;
    expect_length("x", tokens * hidden_size, x.len())?;
    expect_length("weight", num_experts * hidden_size, weight.len())?;
    if let Some(logits) = &logits {
        expect_length("logits", tokens * num_experts, logits.len())?;
    }
    output.check(tokens, top_k, num_experts)?;
    if let Some(bias) = bias {
        expect_length("correction_bias", num_experts, bias.len())?;
    }
    let Output {
        weights,
        indices,
        mut load,
    } = output;
    let block = tokens.min(TOGETHER);
    let mut rows = Rows::new(hidden_size, block.min(MANY));
    let mut own = vec![0.0; block * num_experts];
    let mut incomplete = 0;
    for first in (0..tokens).step_by(TOGETHER) {
        let count = (tokens - first).min(TOGETHER);
        let own = match &mut logits {
            Some(logits) => &mut logits[first * num_experts..(first + count) * num_experts],
            None => &mut own[..count * num_experts],
        };
        let x = x.rows(first..first + count, hidden_size);
        let gate = Gate { x, ..gate };
        products(tier, gate, &mut rows, num_experts, own, num_threads);
        let cells = first * top_k..(first + count) * top_k;
        let output = Output {
            weights: &mut weights[cells.clone()],
            indices: &mut indices[cells],
            load: load.as_deref_mut(),
        };
        incomplete += routing::route(tier, rule, &*own, bias, output)?;
    }
    Ok(incomplete)
}

/// Writes the logits of some tokens, `[count, num_experts]`.
fn products(
    tier: Tier,
    gate: Gate<'_>,
    rows: &mut Rows,
    num_experts: usize,
    logits: &mut [f32],
    num_threads: usize,
) {
    let Gate {
        x,
        weight,
        hidden_size,
    } = gate;
    let count = x.len() / hidden_size;
    let many = count >= MANY;
    if !many {
        rows.fill(x);
    }
    let rows = &*rows;
    let part = |tokens: Range<usize>, experts: Range<usize>, out: &mut [f32]| {
        if many {
            let x = x.rows(tokens, hidden_size);
            let weight = weight.rows(experts, hidden_size);
            blocks::products(tier, x, weight, hidden_size, out);
        } else {
            dots::rows(tier, rows, tokens, weight, experts, out);
        }
    };
    let work = count * num_experts * hidden_size;
    let threads = (work / WORK_PER_THREAD).clamp(1, num_threads.max(1));
    if threads == 1 {
        part(0..count, 0..num_experts, logits);
        return;
    }
    let share = count.div_ceil(threads).next_multiple_of(blocks::TILE);
    if share >= MANY {
        let places = Places::new(logits);
        pool::for_each(threads, count.div_ceil(share), &|index| {
            let tokens = index * share..count.min((index + 1) * share);
            let cells = (tokens.start * num_experts, tokens.len() * num_experts);
            // SAFETY: the logits of this part's tokens.
            let logits = unsafe { places.slice(cells.0, cells.1) };
            part(tokens, 0..num_experts, logits);
        });
        return;
    }
    // Few tokens for each: a thread takes some experts, and its products are put in their place afterwards.
    let share = num_experts
        .div_ceil(threads)
        .next_multiple_of(dots::EXPERTS);
    let parts = num_experts.div_ceil(share);
    let mut products = vec![0.0; count * num_experts];
    let places = Places::new(&mut products);
    pool::for_each(threads, parts, &|index| {
        let experts = index * share..num_experts.min((index + 1) * share);
        // SAFETY: the products of this part's experts, one part's after the other's.
        let products = unsafe { places.slice(index * share * count, experts.len() * count) };
        part(0..count, experts, products);
    });
    let parts = products.chunks(share * count);
    for (part, products) in parts.enumerate() {
        let width = products.len() / count;
        for (token, products) in products.chunks_exact(width).enumerate() {
            logits[token * num_experts + part * share..][..width].copy_from_slice(products);
        }
    }
}

const _: () = assert!(WIDTH == 16, "the module's documentation says so");
