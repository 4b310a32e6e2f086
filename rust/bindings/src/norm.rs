//! Python binding of the normalization and the choice of the likeliest token of `abyssal-kernels`.
#![allow(
    clippy::needless_pass_by_value,
    reason = "arguments are extracted by value"
)]

use abyssal_kernels::{greedy as likeliest, pool, rms_norm as normalize};
use abyssal_quant::Bf16;
use pyo3::prelude::*;

use crate::dtype::Dtype;
use crate::error::BindError;
use crate::linear::ACTIVATIONS;
use crate::routing::{execute, matrix};
use crate::tensor::{Tensor, reject_overlap};

/// Writes the normalized rows.
#[pyfunction]
pub(crate) fn rms_norm(
    py: Python<'_>,
    x: Tensor<'_>,
    weight: Tensor<'_>,
    eps: f32,
    mut out: Tensor<'_>,
) -> Result<(), BindError> {
    let (_, size) = matrix("x", &x)?;
    weight.expect_shape("weight", &[size])?;
    out.expect_shape("out", x.shape())?;
    reject_overlap(&[("out", &out)], &[("x", &x), ("weight", &weight)])?;
    let types = (
        x.expect_dtype("x", &ACTIVATIONS)?,
        weight.expect_dtype("weight", &ACTIVATIONS)?,
        out.expect_dtype("out", &ACTIVATIONS)?,
    );
    let threads = pool::num_threads();
    let length = x.len();
    macro_rules! call {
        ($x:expr, $weight:expr, $out:expr) => {{
            let (x, weight, out) = ($x, $weight, $out);
            let work = || Ok(normalize(x, weight, eps, out, threads)?);
            execute(py, length, work)
        }};
    }
    macro_rules! write {
        ($x:expr, $weight:expr) => {
            match types.2 {
                Dtype::F32 => call!($x, $weight, out.as_mut_slice::<f32>("out")?),
                _ => call!($x, $weight, Bf16::from_bits_mut(out.as_mut_slice("out")?)),
            }
        };
    }
    macro_rules! weigh {
        ($x:expr) => {
            match types.1 {
                Dtype::F32 => write!($x, weight.as_slice::<f32>("weight")?),
                _ => write!($x, Bf16::from_bits(weight.as_slice("weight")?)),
            }
        };
    }
    match types.0 {
        Dtype::F32 => weigh!(x.as_slice::<f32>("x")?),
        _ => weigh!(Bf16::from_bits(x.as_slice("x")?)),
    }
}

/// The likeliest token of each row, -1 where a number is not finite.
#[pyfunction]
pub(crate) fn greedy(py: Python<'_>, logits: Tensor<'_>) -> Result<Vec<i64>, BindError> {
    let (_, vocabulary) = matrix("logits", &logits)?;
    if vocabulary == 0 {
        return Err(BindError::value_error(
            "logits have 0 columns; at least 1 is needed",
        ));
    }
    logits.expect_dtype("logits", &[Dtype::F32])?;
    let rows: &[f32] = logits.as_slice("logits")?;
    execute(py, rows.len(), || {
        let found = rows.chunks_exact(vocabulary).map(likeliest);
        Ok(found
            .map(|found| found.map_or(-1, |token| token as i64))
            .collect())
    })
}
