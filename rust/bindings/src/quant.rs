//! Python binding of `abyssal-quant`. Leading dimensions are independent matrices.
#![allow(
    clippy::needless_pass_by_value,
    reason = "arguments are extracted by value"
)]

use abyssal_quant::{self as quant, Bf16, Error, F16, Rows, ScaleFormat, Scales, Tier};
use pyo3::prelude::*;

use crate::dtype::{Dtype, Element};
use crate::error::BindError;
use crate::tensor::{Tensor, reject_overlap};
use crate::{guard, run};

/// Below this many elements a call is shorter than releasing the interpreter is worth.
const SHORT: usize = 4096;
const FLOATS: [Dtype; 3] = [Dtype::F32, Dtype::BF16, Dtype::F16];

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
pub(crate) fn scales_from<'a>(scales: &'a Tensor<'_>) -> Result<Scales<'a>, BindError> {
    match scales.expect_dtype("scales", &[Dtype::F32, Dtype::F8E8M0])? {
        Dtype::F32 => Ok(Scales::F32(scales.as_slice("scales")?)),
        _ => Ok(Scales::E8m0(scales.as_slice("scales")?)),
    }
}

/// Matrices, rows and columns of a tensor: a vector is one row, and leading dimensions count matrices.
fn matrices(name: &str, tensor: &Tensor<'_>) -> Result<[usize; 3], BindError> {
    match tensor.shape() {
        [] => Err(BindError::value_error(format!(
            "{name}: expected at least 1 dimension, got 0"
        ))),
        [columns] => Ok([1, 1, *columns]),
        [leading @ .., rows, columns] => Ok([leading.iter().product(), *rows, *columns]),
    }
}

/// The rows of a tensor where they lie: columns side by side, rows and matrices any steps apart.
fn rows_from<'a, T: Element, U: Copy>(
    name: &str,
    tensor: &'a Tensor<'_>,
    cast: impl FnOnce(&'a [T]) -> &'a [U],
) -> Result<Rows<'a, U>, BindError> {
    let [count, rows, columns] = matrices(name, tensor)?;
    let values = cast(tensor.as_span(name)?);
    let shape = [count, rows, columns];
    if tensor.is_contiguous() {
        return Ok(Rows::strided(values, shape, [rows * columns, columns])?);
    }
    // The step of a dimension of one element means nothing. Steps are not negative: `as_span` looked.
    let step = |dim: usize| {
        if tensor.shape()[dim] == 1 {
            None
        } else {
            Some(tensor.strides()[dim].unsigned_abs())
        }
    };
    let last = tensor.shape().len() - 1;
    let side_by_side = step(last).is_none_or(|step| step == 1);
    let row_step = if last > 0 {
        step(last - 1).unwrap_or(0)
    } else {
        0
    };
    // Leading dimensions, outermost first, must step evenly through the matrices.
    let (mut matrix_step, mut inner) = (0, 1);
    let mut evenly = true;
    for dim in (0..last.saturating_sub(1)).rev() {
        let Some(step) = step(dim) else { continue };
        if inner == 1 {
            matrix_step = step;
        }
        evenly &= step == matrix_step * inner;
        inner *= tensor.shape()[dim];
    }
    if !side_by_side || !evenly {
        return Err(tensor.misplaced(name, "columns side by side and evenly spaced rows"));
    }
    Ok(Rows::strided(
        values,
        [count, rows, columns],
        [matrix_step, row_step],
    )?)
}

/// The shape of the scales of a tensor cut into blocks, or of its codes with the columns that `columns` gives.
fn with_columns(tensor: &Tensor<'_>, block_rows: usize, columns: usize) -> Vec<usize> {
    let mut shape = tensor.shape().to_vec();
    if let [.., rows, _] = &mut *shape {
        *rows = rows.div_ceil(block_rows);
    }
    if let Some(last) = shape.last_mut() {
        *last = columns;
    }
    shape
}

/// Refuses a block without elements before its sizes divide anything, then compares shapes.
pub(crate) fn check_scales(
    scales: &Tensor<'_>,
    tensor: &Tensor<'_>,
    (block_rows, block_columns): (usize, usize),
) -> Result<(), BindError> {
    if block_rows == 0 || block_columns == 0 {
        return Err(Error::Block {
            rows: block_rows,
            columns: block_columns,
        }
        .into());
    }
    let columns = tensor
        .shape()
        .last()
        .map_or(0, |columns| columns.div_ceil(block_columns));
    scales.expect_shape("scales", &with_columns(tensor, block_rows, columns))
}

/// Asks the system for large pages behind a tensor that nothing was written to yet.
#[pyfunction]
pub(crate) fn prefer_large_pages(tensor: Tensor<'_>) {
    tensor.prefer_large_pages();
}

/// Quantizes matrices to FP8.
#[pyfunction]
pub(crate) fn quantize_fp8(
    py: Python<'_>,
    x: Tensor<'_>,
    mut codes: Tensor<'_>,
    mut scales: Tensor<'_>,
    block: (usize, usize),
    scale_format: &str,
) -> Result<(), BindError> {
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
    check_scales(&scales, &x, block)?;
    reject_overlap(&[("codes", &codes), ("scales", &scales)], &[("x", &x)])?;
    let codes = codes.as_mut_slice("codes")?;
    let scales = scales.as_mut_slice("scales")?;
    let tier = Tier::best();
    macro_rules! call {
        ($x:expr) => {{
            let x = $x;
            execute(py, codes.len(), || {
                quant::quantize_fp8(tier, x, block, format, codes, scales)
            })
        }};
    }
    match x.expect_dtype("x", &FLOATS)? {
        Dtype::F32 => call!(rows_from("x", &x, |x: &[f32]| x)?),
        Dtype::BF16 => call!(rows_from("x", &x, Bf16::from_bits)?),
        _ => call!(rows_from("x", &x, F16::from_bits)?),
    }
}

/// Dequantizes matrices from FP8.
#[pyfunction]
pub(crate) fn dequantize_fp8(
    py: Python<'_>,
    codes: Tensor<'_>,
    scales: Tensor<'_>,
    mut out: Tensor<'_>,
    block: (usize, usize),
) -> Result<(), BindError> {
    codes.expect_dtype("codes", &[Dtype::F8E4M3])?;
    out.expect_shape("out", codes.shape())?;
    check_scales(&scales, &codes, block)?;
    reject_overlap(&[("out", &out)], &[("codes", &codes), ("scales", &scales)])?;
    let scales = scales_from(&scales)?;
    let codes = rows_from("codes", &codes, |codes: &[u8]| codes)?;
    let tier = Tier::best();
    macro_rules! call {
        ($out:expr) => {{
            let out = $out;
            execute(py, out.len(), || {
                quant::dequantize_fp8(tier, codes, scales, block, out)
            })
        }};
    }
    match out.expect_dtype("out", &FLOATS)? {
        Dtype::F32 => call!(out.as_mut_slice::<f32>("out")?),
        Dtype::BF16 => call!(Bf16::from_bits_mut(out.as_mut_slice("out")?)),
        _ => call!(F16::from_bits_mut(out.as_mut_slice("out")?)),
    }
}

/// Quantizes rows to MXFP4.
#[pyfunction]
pub(crate) fn quantize_mxfp4(
    py: Python<'_>,
    x: Tensor<'_>,
    mut codes: Tensor<'_>,
    mut scales: Tensor<'_>,
) -> Result<(), BindError> {
    let [_, _, columns] = matrices("x", &x)?;
    codes.expect_shape("codes", &with_columns(&x, 1, columns / 2))?;
    scales.expect_shape("scales", &with_columns(&x, 1, columns / 32))?;
    reject_overlap(&[("codes", &codes), ("scales", &scales)], &[("x", &x)])?;
    let codes = codes.as_mut_slice("codes")?;
    let scales = scales.as_mut_slice("scales")?;
    let tier = Tier::best();
    macro_rules! call {
        ($x:expr) => {{
            let x = $x;
            execute(py, codes.len(), || {
                quant::quantize_mxfp4(tier, x, codes, scales)
            })
        }};
    }
    match x.expect_dtype("x", &FLOATS)? {
        Dtype::F32 => call!(rows_from("x", &x, |x: &[f32]| x)?),
        Dtype::BF16 => call!(rows_from("x", &x, Bf16::from_bits)?),
        _ => call!(rows_from("x", &x, F16::from_bits)?),
    }
}

/// Dequantizes rows from MXFP4.
#[pyfunction]
pub(crate) fn dequantize_mxfp4(
    py: Python<'_>,
    codes: Tensor<'_>,
    scales: Tensor<'_>,
    mut out: Tensor<'_>,
) -> Result<(), BindError> {
    let [_, _, columns] = matrices("out", &out)?;
    codes.expect_shape("codes", &with_columns(&out, 1, columns / 2))?;
    scales.expect_shape("scales", &with_columns(&out, 1, columns / 32))?;
    reject_overlap(&[("out", &out)], &[("codes", &codes), ("scales", &scales)])?;
    let codes = rows_from("codes", &codes, |codes: &[u8]| codes)?;
    let scales: &[u8] = scales.as_slice("scales")?;
    let tier = Tier::best();
    macro_rules! call {
        ($out:expr) => {{
            let out = $out;
            execute(py, out.len(), || {
                quant::dequantize_mxfp4(tier, codes, scales, out)
            })
        }};
    }
    match out.expect_dtype("out", &FLOATS)? {
        Dtype::F32 => call!(out.as_mut_slice::<f32>("out")?),
        Dtype::BF16 => call!(Bf16::from_bits_mut(out.as_mut_slice("out")?)),
        _ => call!(F16::from_bits_mut(out.as_mut_slice("out")?)),
    }
}
