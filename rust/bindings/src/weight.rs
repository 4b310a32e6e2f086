//! Weights that are held from call to call.

use abyssal_kernels::{Matrix, Result as KernelResult, Weights};
use abyssal_quant::{Bf16, Scales};
use pyo3::prelude::*;

use crate::dtype::Dtype;
use crate::error::BindError;
use crate::linear::weight_from;
use crate::tensor::{Held, Tensor};

/// A weight, and its scales if it is packed.
pub(crate) type Given<'py> = (Bound<'py, PyAny>, Option<Bound<'py, PyAny>>);

/// A weight that is held.
pub(crate) struct Weight {
    rows: usize,
    columns: usize,
    values: Held,
    scales: Option<Held>,
}

pub(crate) fn held(name: &str, tensor: &Bound<'_, PyAny>) -> Result<Held, BindError> {
    match tensor.extract::<Tensor<'_>>()?.dtype() {
        Dtype::F32 => Held::new::<f32>(name, tensor),
        Dtype::BF16 => Held::new::<u16>(name, tensor),
        _ => Held::new::<u8>(name, tensor),
    }
}

impl Weight {
    pub(crate) fn new(name: &str, (values, scales): &Given<'_>) -> Result<Self, BindError> {
        let view: Tensor<'_> = values.extract()?;
        let scale_view: Option<Tensor<'_>> =
            scales.as_ref().map(PyAnyMethods::extract).transpose()?;
        let (rows, columns) = {
            let checked = weight_from(name, &view, scale_view.as_ref())?;
            (checked.rows(), checked.columns())
        };
        Ok(Self {
            rows,
            columns,
            values: held(name, values)?,
            scales: scales.as_ref().map(|s| held("scales", s)).transpose()?,
        })
    }

    pub(crate) fn matrix(&self) -> KernelResult<Matrix<'_>> {
        let weights = match (&self.scales, self.values.dtype()) {
            (None, Dtype::F32) => Weights::F32(self.values.as_slice()),
            (None, _) => Weights::Bf16(Bf16::from_bits(self.values.as_slice())),
            (Some(scales), Dtype::F8E4M3) => Weights::Fp8 {
                codes: self.values.as_slice(),
                scales: match scales.dtype() {
                    Dtype::F32 => Scales::F32(scales.as_slice()),
                    _ => Scales::E8m0(scales.as_slice()),
                },
            },
            (Some(scales), _) => Weights::Mxfp4 {
                codes: self.values.as_slice(),
                scales: scales.as_slice(),
            },
        };
        Matrix::new(self.rows, self.columns, weights)
    }

    /// The memory that it is read from.
    pub(crate) fn memory(&self) -> impl Iterator<Item = &Held> {
        self.scales.iter().chain([&self.values])
    }
}

/// Refuses an output that lies in one of the weights.
pub(crate) fn reject_weight_overlap<'a>(
    mut weights: impl Iterator<Item = &'a Held>,
    (name, output): (&str, &Tensor<'_>),
) -> Result<(), BindError> {
    if weights.any(|weight| weight.overlaps(output)) {
        return Err(BindError::value_error(format!(
            "{name} shares memory with a weight; outputs need memory of their own"
        )));
    }
    Ok(())
}
