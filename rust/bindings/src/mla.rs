//! Python binding of latent attention of `abyssal-kernels`.
#![allow(
    clippy::needless_pass_by_value,
    reason = "arguments are extracted by value"
)]

use abyssal_kernels::mla::{
    Attention, Cache, Error, Latents, Rotary, Sizes, Written, fp8_row_bytes,
    mla_attention as attend, write_latents as write,
};
use abyssal_kernels::{Matrix, Weights};
use abyssal_quant::{Bf16, Element, Scales};
use pyo3::prelude::*;

use crate::dtype::Dtype;
use crate::error::BindError;
use crate::run;
use crate::tensor::{Tensor, reject_overlap};
use crate::tier::tier;

impl From<Error> for BindError {
    fn from(error: Error) -> Self {
        Self::value_error(error)
    }
}

const NUMBERS: [Dtype; 2] = [Dtype::F32, Dtype::BF16];

/// The sizes of a tensor of `N` dimensions.
pub(crate) fn sizes<const N: usize>(
    name: &str,
    tensor: &Tensor<'_>,
) -> Result<[usize; N], BindError> {
    tensor.shape().try_into().map_err(|_| {
        BindError::value_error(format!(
            "{name}: expected {N} dimensions, got shape {:?}",
            tensor.shape()
        ))
    })
}

/// Cosine and sine of the tokens of a step.
pub(crate) fn rotary<'a>(
    cos: &'a Tensor<'_>,
    sin: &'a Tensor<'_>,
    tokens: usize,
) -> Result<(Rotary<'a>, usize), BindError> {
    let [_, half] = sizes("cos", cos)?;
    cos.expect_shape("cos", &[tokens, half])?;
    sin.expect_shape("sin", &[tokens, half])?;
    let rotary = Rotary {
        cos: cos.as_slice("cos")?,
        sin: sin.as_slice("sin")?,
    };
    Ok((rotary, 2 * half))
}

/// The types of a cache's rows; bytes are rows in FP8.
const CACHES: [Dtype; 3] = [Dtype::F32, Dtype::BF16, Dtype::U8];

/// Checks the shape of a cache.
pub(crate) fn expect_cache(
    cache: &Tensor<'_>,
    kv_lora: usize,
    rope: usize,
) -> Result<(), BindError> {
    let [slots, _] = sizes("cache", cache)?;
    let width = match cache.expect_dtype("cache", &CACHES)? {
        Dtype::U8 => fp8_row_bytes(kv_lora, rope),
        _ => kv_lora + rope,
    };
    cache.expect_shape("cache", &[slots, width])
}

/// The spans of a step's sequences and their block tables.
pub(crate) fn sequences<'a>(
    spans: &'a Tensor<'_>,
    block_tables: &'a Tensor<'_>,
) -> Result<(&'a [i32], &'a [i32]), BindError> {
    let [sequences, _] = sizes("spans", spans)?;
    spans.expect_shape("spans", &[sequences, 4])?;
    let [_, pages] = sizes("block_tables", block_tables)?;
    block_tables.expect_shape("block_tables", &[sequences, pages])?;
    Ok((
        spans.as_slice("spans")?,
        block_tables.as_slice("block_tables")?,
    ))
}

/// The rows of a cache, to be written.
pub(crate) fn rows_of<'a>(cache: &'a mut Tensor<'_>) -> Result<Cache<'a>, BindError> {
    Ok(match cache.expect_dtype("cache", &CACHES)? {
        Dtype::F32 => Cache::F32(cache.as_mut_slice("cache")?),
        Dtype::BF16 => Cache::Bf16(Bf16::from_bits_mut(cache.as_mut_slice("cache")?)),
        _ => Cache::Fp8(cache.as_mut_slice("cache")?),
    })
}

/// What is left of a width.
fn rest(name: &str, width: usize, part: usize) -> Result<usize, BindError> {
    width.checked_sub(part).ok_or_else(|| {
        BindError::value_error(format!(
            "{name} is {width} wide; at least the {part} of the rotary part are needed"
        ))
    })
}

/// The up projection as it is stored.
fn up_from<'a>(
    up: &'a Tensor<'_>,
    scales: Option<&'a Tensor<'_>>,
) -> Result<Matrix<'a>, BindError> {
    let [rows, width] = sizes("up", up)?;
    let dtype = up.expect_dtype("up", &[Dtype::F32, Dtype::BF16, Dtype::F8E4M3, Dtype::U8])?;
    let scales = || {
        scales.ok_or_else(|| {
            BindError::value_error(format!("up_scales: a weight of {dtype} needs scales"))
        })
    };
    let (columns, weights) = match dtype {
        Dtype::F8E4M3 => {
            let scales = scales()?;
            let blocks = [rows.div_ceil(128), width.div_ceil(128)];
            scales.expect_shape("up_scales", &blocks)?;
            let scales = match scales.expect_dtype("up_scales", &[Dtype::F32, Dtype::F8E8M0])? {
                Dtype::F32 => Scales::F32(scales.as_slice("up_scales")?),
                _ => Scales::E8m0(scales.as_slice("up_scales")?),
            };
            let codes = up.as_slice("up")?;
            (width, Weights::Fp8 { codes, scales })
        }
        Dtype::U8 => {
            let scales = scales()?;
            scales.expect_shape("up_scales", &[rows, width / 16])?;
            let (codes, scales) = (up.as_slice("up")?, scales.as_slice("up_scales")?);
            (2 * width, Weights::Mxfp4 { codes, scales })
        }
        Dtype::BF16 => (width, Weights::Bf16(Bf16::from_bits(up.as_slice("up")?))),
        _ => (width, Weights::F32(up.as_slice("up")?)),
    };
    Matrix::new(rows, columns, weights).map_err(BindError::value_error)
}

/// Attends to the cached latents of each sequence; `out` is written.
#[pyfunction]
#[pyo3(signature = (query, cos, sin, cache, spans, block_tables, up, up_scales, out, *, page_size, scale, num_threads=1))]
#[allow(
    clippy::too_many_arguments,
    reason = "the arguments of the Python function"
)]
pub(crate) fn mla_attention(
    py: Python<'_>,
    query: Tensor<'_>,
    cos: Tensor<'_>,
    sin: Tensor<'_>,
    cache: Tensor<'_>,
    spans: Tensor<'_>,
    block_tables: Tensor<'_>,
    up: Tensor<'_>,
    up_scales: Option<Tensor<'_>>,
    mut out: Tensor<'_>,
    page_size: usize,
    scale: f32,
    num_threads: usize,
) -> Result<(), BindError> {
    let [tokens, heads, key] = sizes("query", &query)?;
    let (rotary, rope) = rotary(&cos, &sin, tokens)?;
    let nope = rest("query", key, rope)?;
    let up_matrix = up_from(&up, up_scales.as_ref())?;
    let kv_lora = up_matrix.columns();
    expect_cache(&cache, kv_lora, rope)?;
    let [_, _, v] = sizes("out", &out)?;
    out.expect_shape("out", &[tokens, heads, v])?;
    let (ranges, tables) = sequences(&spans, &block_tables)?;
    let mut inputs = vec![
        ("query", &query),
        ("cos", &cos),
        ("sin", &sin),
        ("cache", &cache),
        ("spans", &spans),
        ("block_tables", &block_tables),
        ("up", &up),
    ];
    inputs.extend(up_scales.as_ref().map(|scales| ("up_scales", scales)));
    reject_overlap(&[("out", &out)], &inputs)?;
    let latents = match cache.expect_dtype("cache", &CACHES)? {
        Dtype::F32 => Latents::F32(cache.as_slice("cache")?),
        Dtype::BF16 => Latents::Bf16(Bf16::from_bits(cache.as_slice("cache")?)),
        _ => Latents::Fp8(cache.as_slice("cache")?),
    };
    let attention = Attention {
        sizes: Sizes {
            heads,
            kv_lora,
            rope,
            nope,
            v,
        },
        scale,
        rotary,
        latents,
        page_size,
        up: up_matrix,
        spans: ranges,
        tables,
    };
    let tier = tier();
    if query.expect_dtype("query", &NUMBERS)? == Dtype::BF16 {
        let query = Bf16::from_bits(query.as_slice("query")?);
        let out = Bf16::from_bits_mut(out.as_mut_slice("out")?);
        return run(py, || {
            Ok(attend(tier, &attention, query, out, num_threads)?)
        });
    }
    let query: &[f32] = query.as_slice("query")?;
    let out: &mut [f32] = out.as_mut_slice("out")?;
    run(py, || {
        Ok(attend(tier, &attention, query, out, num_threads)?)
    })
}

/// Normalizes and rotates a down projection's results and writes them to the cache.
#[pyfunction]
#[pyo3(signature = (values, norm, cos, sin, cache, slots, *, eps, num_threads=1))]
#[allow(
    clippy::too_many_arguments,
    reason = "the arguments of the Python function"
)]
pub(crate) fn write_latents(
    py: Python<'_>,
    values: Tensor<'_>,
    norm: Tensor<'_>,
    cos: Tensor<'_>,
    sin: Tensor<'_>,
    mut cache: Tensor<'_>,
    slots: Tensor<'_>,
    eps: f32,
    num_threads: usize,
) -> Result<(), BindError> {
    let [tokens, width] = sizes("values", &values)?;
    let (rotary, rope) = rotary(&cos, &sin, tokens)?;
    let kv_lora = rest("values", width, rope)?;
    norm.expect_shape("norm", &[kv_lora])?;
    expect_cache(&cache, kv_lora, rope)?;
    slots.expect_shape("slots", &[tokens])?;
    let inputs = [
        ("values", &values),
        ("norm", &norm),
        ("cos", &cos),
        ("sin", &sin),
        ("slots", &slots),
    ];
    reject_overlap(&[("cache", &cache)], &inputs)?;
    let slots = slots.as_slice("slots")?;
    let norm = match norm.expect_dtype("norm", &NUMBERS)? {
        Dtype::BF16 => Either::Narrow(Bf16::from_bits(norm.as_slice("norm")?)),
        _ => Either::Wide(norm.as_slice("norm")?),
    };
    let values = match values.expect_dtype("values", &NUMBERS)? {
        Dtype::BF16 => Either::Narrow(Bf16::from_bits(values.as_slice("values")?)),
        _ => Either::Wide(values.as_slice("values")?),
    };
    let rest = Rest {
        norm,
        eps,
        rotary,
        slots,
        num_threads,
    };
    let mut cache = rows_of(&mut cache)?;
    run(py, || match values {
        Either::Wide(values) => rest.write(values, &mut cache),
        Either::Narrow(values) => rest.write(values, &mut cache),
    })
}

/// Numbers of one of two types.
#[derive(Clone, Copy)]
enum Either<'a> {
    Wide(&'a [f32]),
    Narrow(&'a [Bf16]),
}

/// What is written besides the values.
struct Rest<'a> {
    norm: Either<'a>,
    eps: f32,
    rotary: Rotary<'a>,
    slots: &'a [i64],
    num_threads: usize,
}

impl Rest<'_> {
    fn write<T: Element>(&self, values: &[T], cache: &mut Cache<'_>) -> Result<(), BindError> {
        match self.norm {
            Either::Wide(norm) => self.write_normalized(values, norm, cache),
            Either::Narrow(norm) => self.write_normalized(values, norm, cache),
        }
    }

    fn write_normalized<T: Element, W: Element>(
        &self,
        values: &[T],
        norm: &[W],
        cache: &mut Cache<'_>,
    ) -> Result<(), BindError> {
        let written = Written {
            values,
            norm,
            eps: self.eps,
            rotary: self.rotary,
            slots: self.slots,
        };
        Ok(write(&written, cache, self.num_threads)?)
    }
}
