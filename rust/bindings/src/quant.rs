//! Python binding of `abyssal-quant`. Tensors are matrices: leading dimensions are flattened by the caller.
#![allow(
    clippy::needless_pass_by_value,
    reason = "arguments are extracted by value"
)]

use abyssal_quant::{self as quant, Bf16, Blocks, Error, F16, Layer, ScaleFormat, Scales, Tier};
use pyo3::prelude::*;

use crate::dtype::Dtype;
use crate::error::BindError;
use crate::routing::matrix;
use crate::tensor::{Tensor, reject_overlap};
use crate::{guard, run};

/// Below this many elements a call is shorter than releasing the interpreter is worth.
const SHORT: usize = 4096;
const FLOATS: [Dtype; 3] = [Dtype::F32, Dtype::BF16, Dtype::F16];
const ACTIVATIONS: [Dtype; 2] = [Dtype::F32, Dtype::BF16];

impl From<Error> for BindError {
    fn from(error: Error) -> Self {
        Self::value_error(error)
    }
}

fn execute(
    py: Python<'_>,
    size: usize,
    work: impl FnOnce() -> Result<(), Error> + Send,
) -> Result<(), BindError> {
    let work = || Ok(work()?);
    if size < SHORT {
        guard(work)
    } else {
        run(py, work)
    }
}

/// Scales as float32 or as e8m0 exponents.
fn scales_from<'a>(scales: &'a Tensor<'_>) -> Result<Scales<'a>, BindError> {
    match scales.expect_dtype("scales", &[Dtype::F32, Dtype::F8E8M0])? {
        Dtype::F32 => Ok(Scales::F32(scales.as_slice("scales")?)),
        _ => Ok(Scales::E8m0(scales.as_slice("scales")?)),
    }
}

fn blocks_from(
    name: &str,
    tensor: &Tensor<'_>,
    (block_rows, block_columns): (usize, usize),
) -> Result<Blocks, BindError> {
    let (rows, columns) = matrix(name, tensor)?;
    Ok(Blocks {
        rows,
        columns,
        block_rows,
        block_columns,
    })
}

/// Refuses a block without elements before its sizes divide anything, then compares shapes.
fn check_scales(scales: &Tensor<'_>, blocks: Blocks) -> Result<(), BindError> {
    let Blocks {
        rows,
        block_rows,
        block_columns,
        ..
    } = blocks;
    if block_rows == 0 || block_columns == 0 {
        return Err(Error::Block {
            rows: block_rows,
            columns: block_columns,
        }
        .into());
    }
    scales.expect_shape("scales", &[rows.div_ceil(block_rows), blocks.across()])
}

/// Quantizes a matrix to FP8.
#[pyfunction]
pub(crate) fn quantize_fp8(
    py: Python<'_>,
    x: Tensor<'_>,
    mut codes: Tensor<'_>,
    mut scales: Tensor<'_>,
    block: (usize, usize),
    scale_format: &str,
) -> Result<(), BindError> {
    let blocks = blocks_from("x", &x, block)?;
    let format = match scale_format {
        "f32" => ScaleFormat::F32,
        "ue8m0" => ScaleFormat::Ue8m0,
        _ => {
            return Err(BindError::value_error(format!(
                "scale_format is '{scale_format}'; it must be one of 'f32', 'ue8m0'"
            )));
        }
    };
    codes.expect_dtype("codes", &[Dtype::F8E4M3])?;
    codes.expect_shape("codes", x.shape())?;
    check_scales(&scales, blocks)?;
    reject_overlap(&[("codes", &codes), ("scales", &scales)], &[("x", &x)])?;
    let codes = codes.as_mut_slice("codes")?;
    let scales = scales.as_mut_slice("scales")?;
    let tier = Tier::best();
    macro_rules! call {
        ($x:expr) => {{
            let x = $x;
            execute(py, x.len(), || {
                quant::quantize_fp8(tier, x, blocks, format, codes, scales)
            })
        }};
    }
    match x.expect_dtype("x", &FLOATS)? {
        Dtype::F32 => call!(x.as_slice::<f32>("x")?),
        Dtype::BF16 => call!(Bf16::from_bits(x.as_slice("x")?)),
        _ => call!(F16::from_bits(x.as_slice("x")?)),
    }
}

/// Dequantizes a matrix from FP8.
#[pyfunction]
pub(crate) fn dequantize_fp8(
    py: Python<'_>,
    codes: Tensor<'_>,
    scales: Tensor<'_>,
    mut out: Tensor<'_>,
    block: (usize, usize),
) -> Result<(), BindError> {
    let blocks = blocks_from("codes", &codes, block)?;
    codes.expect_dtype("codes", &[Dtype::F8E4M3])?;
    out.expect_shape("out", codes.shape())?;
    check_scales(&scales, blocks)?;
    reject_overlap(&[("out", &out)], &[("codes", &codes), ("scales", &scales)])?;
    let scales = scales_from(&scales)?;
    let codes: &[u8] = codes.as_slice("codes")?;
    let tier = Tier::best();
    macro_rules! call {
        ($out:expr) => {{
            let out = $out;
            execute(py, codes.len(), || {
                quant::dequantize_fp8(tier, codes, scales, blocks, out)
            })
        }};
    }
    match out.expect_dtype("out", &FLOATS)? {
        Dtype::F32 => call!(out.as_mut_slice::<f32>("out")?),
        Dtype::BF16 => call!(Bf16::from_bits_mut(out.as_mut_slice("out")?)),
        _ => call!(F16::from_bits_mut(out.as_mut_slice("out")?)),
    }
}

/// Quantizes a matrix to MXFP4.
#[pyfunction]
pub(crate) fn quantize_mxfp4(
    py: Python<'_>,
    x: Tensor<'_>,
    mut codes: Tensor<'_>,
    mut scales: Tensor<'_>,
) -> Result<(), BindError> {
    let (rows, columns) = matrix("x", &x)?;
    codes.expect_shape("codes", &[rows, columns / 2])?;
    scales.expect_shape("scales", &[rows, columns / 32])?;
    reject_overlap(&[("codes", &codes), ("scales", &scales)], &[("x", &x)])?;
    let codes = codes.as_mut_slice("codes")?;
    let scales = scales.as_mut_slice("scales")?;
    let tier = Tier::best();
    macro_rules! call {
        ($x:expr) => {{
            let x = $x;
            execute(py, x.len(), || {
                quant::quantize_mxfp4(tier, x, columns, codes, scales)
            })
        }};
    }
    match x.expect_dtype("x", &FLOATS)? {
        Dtype::F32 => call!(x.as_slice::<f32>("x")?),
        Dtype::BF16 => call!(Bf16::from_bits(x.as_slice("x")?)),
        _ => call!(F16::from_bits(x.as_slice("x")?)),
    }
}

/// Dequantizes a matrix from MXFP4.
#[pyfunction]
pub(crate) fn dequantize_mxfp4(
    py: Python<'_>,
    codes: Tensor<'_>,
    scales: Tensor<'_>,
    mut out: Tensor<'_>,
) -> Result<(), BindError> {
    let (rows, columns) = matrix("out", &out)?;
    codes.expect_shape("codes", &[rows, columns / 2])?;
    scales.expect_shape("scales", &[rows, columns / 32])?;
    reject_overlap(&[("out", &out)], &[("codes", &codes), ("scales", &scales)])?;
    let codes: &[u8] = codes.as_slice("codes")?;
    let scales: &[u8] = scales.as_slice("scales")?;
    let tier = Tier::best();
    macro_rules! call {
        ($out:expr) => {{
            let out = $out;
            execute(py, out.len(), || {
                quant::dequantize_mxfp4(tier, codes, scales, columns, out)
            })
        }};
    }
    match out.expect_dtype("out", &FLOATS)? {
        Dtype::F32 => call!(out.as_mut_slice::<f32>("out")?),
        Dtype::BF16 => call!(Bf16::from_bits_mut(out.as_mut_slice("out")?)),
        _ => call!(F16::from_bits_mut(out.as_mut_slice("out")?)),
    }
}

/// The layer's sizes, from the shapes of activation, weight and output.
fn layer_from(
    x: &Tensor<'_>,
    (rows, columns): (usize, usize),
    out: &Tensor<'_>,
    num_threads: Option<usize>,
) -> Result<Layer, BindError> {
    let (tokens, _) = matrix("x", x)?;
    x.expect_shape("x", &[tokens, columns])?;
    out.expect_shape("out", &[tokens, rows])?;
    out.expect_dtype("out", &[x.expect_dtype("x", &ACTIVATIONS)?])?;
    let num_threads = num_threads
        .unwrap_or_else(|| std::thread::available_parallelism().map_or(1, std::num::NonZero::get));
    Ok(Layer {
        rows,
        columns,
        num_threads,
    })
}

/// Multiplies by a weight in FP8 blocks of 128 x 128.
#[pyfunction]
#[pyo3(signature = (x, codes, scales, out, num_threads=None))]
pub(crate) fn fp8_linear(
    py: Python<'_>,
    x: Tensor<'_>,
    codes: Tensor<'_>,
    scales: Tensor<'_>,
    mut out: Tensor<'_>,
    num_threads: Option<usize>,
) -> Result<(), BindError> {
    codes.expect_dtype("codes", &[Dtype::F8E4M3])?;
    let blocks = blocks_from("codes", &codes, (128, 128))?;
    check_scales(&scales, blocks)?;
    let layer = layer_from(&x, (blocks.rows, blocks.columns), &out, num_threads)?;
    reject_overlap(
        &[("out", &out)],
        &[("x", &x), ("codes", &codes), ("scales", &scales)],
    )?;
    let scales = scales_from(&scales)?;
    let codes: &[u8] = codes.as_slice("codes")?;
    let tier = Tier::best();
    if out.dtype() == Dtype::F32 {
        let x: &[f32] = x.as_slice("x")?;
        let out = out.as_mut_slice("out")?;
        execute(py, codes.len(), || {
            quant::fp8_linear(tier, layer, x, codes, scales, out)
        })
    } else {
        let x = Bf16::from_bits(x.as_slice("x")?);
        let out = Bf16::from_bits_mut(out.as_mut_slice("out")?);
        execute(py, codes.len(), || {
            quant::fp8_linear(tier, layer, x, codes, scales, out)
        })
    }
}

/// Multiplies by a weight in MXFP4.
#[pyfunction]
#[pyo3(signature = (x, codes, scales, out, num_threads=None))]
pub(crate) fn mxfp4_linear(
    py: Python<'_>,
    x: Tensor<'_>,
    codes: Tensor<'_>,
    scales: Tensor<'_>,
    mut out: Tensor<'_>,
    num_threads: Option<usize>,
) -> Result<(), BindError> {
    let (rows, half) = matrix("codes", &codes)?;
    let columns = half * 2;
    scales.expect_shape("scales", &[rows, columns / 32])?;
    let layer = layer_from(&x, (rows, columns), &out, num_threads)?;
    reject_overlap(
        &[("out", &out)],
        &[("x", &x), ("codes", &codes), ("scales", &scales)],
    )?;
    let codes: &[u8] = codes.as_slice("codes")?;
    let scales: &[u8] = scales.as_slice("scales")?;
    let tier = Tier::best();
    if out.dtype() == Dtype::F32 {
        let x: &[f32] = x.as_slice("x")?;
        let out = out.as_mut_slice("out")?;
        execute(py, codes.len(), || {
            quant::mxfp4_linear(tier, layer, x, codes, scales, out)
        })
    } else {
        let x = Bf16::from_bits(x.as_slice("x")?);
        let out = Bf16::from_bits_mut(out.as_mut_slice("out")?);
        execute(py, codes.len(), || {
            quant::mxfp4_linear(tier, layer, x, codes, scales, out)
        })
    }
}
