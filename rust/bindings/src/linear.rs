//! Python binding of the products of `abyssal-kernels`, and of the size of its thread pool.
#![allow(
    clippy::needless_pass_by_value,
    reason = "arguments are extracted by value"
)]

use abyssal_kernels::{Error, Matrix, Weights, linear as compute, pool};
use abyssal_quant::{Bf16, Scales};
use pyo3::prelude::*;

use crate::dtype::Dtype;
use crate::error::BindError;
use crate::quant::{check_scales, scales_from};
use crate::routing::{execute, matrix};
use crate::tensor::{Tensor, reject_overlap};
use crate::tier::tier;

pub(crate) const ACTIVATIONS: [Dtype; 2] = [Dtype::F32, Dtype::BF16];

impl From<Error> for BindError {
    fn from(error: Error) -> Self {
        Self::value_error(error)
    }
}

/// A weight `[rows, columns]`: plain, FP8 codes or MXFP4 codes, and the scales of packed ones.
pub(crate) fn weight_from<'a>(
    name: &str,
    weight: &'a Tensor<'_>,
    scales: Option<&'a Tensor<'_>>,
) -> Result<Matrix<'a>, BindError> {
    let (rows, columns) = matrix(name, weight)?;
    let Some(scales) = scales else {
        let weights = match weight.expect_dtype(name, &ACTIVATIONS)? {
            Dtype::F32 => Weights::F32(weight.as_slice(name)?),
            _ => Weights::Bf16(Bf16::from_bits(weight.as_slice(name)?)),
        };
        return Ok(Matrix::new(rows, columns, weights)?);
    };
    if weight.expect_dtype(name, &[Dtype::F8E4M3, Dtype::U8])? == Dtype::U8 {
        scales.expect_shape("scales", &[rows, columns / 16])?;
        let weights = Weights::Mxfp4 {
            codes: weight.as_slice(name)?,
            scales: scales.as_slice("scales")?,
        };
        return Ok(Matrix::new(rows, columns * 2, weights)?);
    }
    check_scales(scales, weight, (128, 128))?;
    let scales: Scales<'_> = scales_from(scales)?;
    let codes = weight.as_slice(name)?;
    Ok(Matrix::new(rows, columns, Weights::Fp8 { codes, scales })?)
}

/// Writes `x @ W.T`; nothing is written by a call that is refused.
fn multiply(
    py: Python<'_>,
    x: &Tensor<'_>,
    weight: &Matrix<'_>,
    out: &mut Tensor<'_>,
    num_threads: Option<usize>,
) -> Result<(), BindError> {
    let (tokens, _) = matrix("x", x)?;
    x.expect_shape("x", &[tokens, weight.columns()])?;
    out.expect_shape("out", &[tokens, weight.rows()])?;
    let types = (
        x.expect_dtype("x", &ACTIVATIONS)?,
        out.expect_dtype("out", &ACTIVATIONS)?,
    );
    let num_threads = num_threads.unwrap_or_else(pool::num_threads);
    let size = out.len().saturating_mul(weight.columns());
    let tier = tier();
    macro_rules! call {
        ($x:expr, $out:expr) => {{
            let (x, out) = ($x, $out);
            let work = || Ok(compute(tier, weight, x, out, num_threads)?);
            execute(py, size, work)
        }};
    }
    match types {
        (Dtype::F32, Dtype::F32) => call!(x.as_slice::<f32>("x")?, out.as_mut_slice::<f32>("out")?),
        (Dtype::F32, _) => call!(
            x.as_slice::<f32>("x")?,
            Bf16::from_bits_mut(out.as_mut_slice("out")?)
        ),
        (_, Dtype::F32) => call!(
            Bf16::from_bits(x.as_slice("x")?),
            out.as_mut_slice::<f32>("out")?
        ),
        _ => call!(
            Bf16::from_bits(x.as_slice("x")?),
            Bf16::from_bits_mut(out.as_mut_slice("out")?)
        ),
    }
}

/// Multiplies by a plain weight.
#[pyfunction]
#[pyo3(signature = (x, weight, out, num_threads=None))]
pub(crate) fn linear(
    py: Python<'_>,
    x: Tensor<'_>,
    weight: Tensor<'_>,
    mut out: Tensor<'_>,
    num_threads: Option<usize>,
) -> Result<(), BindError> {
    reject_overlap(&[("out", &out)], &[("x", &x), ("weight", &weight)])?;
    let weight = weight_from("weight", &weight, None)?;
    multiply(py, &x, &weight, &mut out, num_threads)
}

/// Multiplies by codes of a type, each block with its scale.
fn multiply_packed(
    py: Python<'_>,
    x: &Tensor<'_>,
    (codes, dtype): (&Tensor<'_>, Dtype),
    scales: &Tensor<'_>,
    out: &mut Tensor<'_>,
    num_threads: Option<usize>,
) -> Result<(), BindError> {
    codes.expect_dtype("codes", &[dtype])?;
    reject_overlap(
        &[("out", out)],
        &[("x", x), ("codes", codes), ("scales", scales)],
    )?;
    let weight = weight_from("codes", codes, Some(scales))?;
    multiply(py, x, &weight, out, num_threads)
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
    multiply_packed(
        py,
        &x,
        (&codes, Dtype::F8E4M3),
        &scales,
        &mut out,
        num_threads,
    )
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
    multiply_packed(py, &x, (&codes, Dtype::U8), &scales, &mut out, num_threads)
}

/// The number of threads that compiled operations use, the calling one included.
#[pyfunction]
pub(crate) fn get_num_threads() -> usize {
    pool::num_threads()
}

/// Sets the number of threads that compiled operations use.
#[pyfunction]
pub(crate) fn set_num_threads(num_threads: i64) -> Result<(), BindError> {
    let count = usize::try_from(num_threads).unwrap_or(0);
    if !(1..=pool::MOST_THREADS).contains(&count) {
        return Err(BindError::value_error(format!(
            "num_threads is {num_threads}; it must be 1 to {}",
            pool::MOST_THREADS
        )));
    }
    pool::set_num_threads(count);
    Ok(())
}
