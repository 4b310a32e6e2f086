//! Integers from Python: lists, tuples, and one-dimensional arrays and tensors, the latter read where they lie.

use std::borrow::Cow;

use pyo3::prelude::*;
use pyo3::types::{PyList, PyTuple};

use crate::error::BindError;
use crate::tensor::{Dtype, Tensor};

/// Integers of at least 0 under the name of an argument.
pub(crate) struct Integers<'py> {
    name: &'static str,
    source: Source<'py>,
}

enum Source<'py> {
    Listed(Vec<i64>),
    Array(Tensor<'py>),
}

impl<'py> Integers<'py> {
    /// Looks at the argument; its values are checked when they are taken.
    pub(crate) fn new(name: &'static str, values: &Bound<'py, PyAny>) -> Result<Self, BindError> {
        let refused =
            |error: PyErr| BindError::type_error(format!("{name}: expected ints: {error}"));
        let source = if let Ok(list) = values.cast::<PyList>() {
            let listed: PyResult<Vec<i64>> = list.iter().map(|item| item.extract()).collect();
            Source::Listed(listed.map_err(refused)?)
        } else if let Ok(tuple) = values.cast::<PyTuple>() {
            let listed: PyResult<Vec<i64>> = tuple.iter().map(|item| item.extract()).collect();
            Source::Listed(listed.map_err(refused)?)
        } else {
            let array: Tensor<'_> = values.extract()?;
            if array.shape().len() != 1 {
                return Err(BindError::value_error(format!(
                    "{name}: expected one dimension, got shape {:?}",
                    array.shape()
                )));
            }
            array.expect_dtype(name, &[Dtype::I64, Dtype::I32, Dtype::U32])?;
            Source::Array(array)
        };
        Ok(Self { name, source })
    }

    /// The values as `u64`.
    pub(crate) fn to_u64(&self) -> Result<Vec<u64>, BindError> {
        match &self.source {
            Source::Listed(listed) => self.converted(listed, i64::cast_unsigned, u64::MAX >> 1),
            Source::Array(array) => match array.dtype() {
                Dtype::I64 => self.converted(
                    array.as_slice::<i64>(self.name)?,
                    i64::cast_unsigned,
                    u64::MAX >> 1,
                ),
                Dtype::I32 => {
                    let slice = array.as_slice::<i32>(self.name)?;
                    self.converted(
                        slice,
                        |value| i64::from(value).cast_unsigned(),
                        u64::MAX >> 1,
                    )
                }
                _ => Ok(array
                    .as_slice::<u32>(self.name)?
                    .iter()
                    .map(|&value| value.into())
                    .collect()),
            },
        }
    }

    /// The values as `u32`; an array of that type is not copied.
    pub(crate) fn to_u32(&self) -> Result<Cow<'_, [u32]>, BindError> {
        let most = u32::MAX.into();
        let narrow = match &self.source {
            Source::Listed(listed) => self.converted(listed, i64::cast_unsigned, most)?,
            Source::Array(array) => match array.dtype() {
                Dtype::I64 => {
                    self.converted(array.as_slice::<i64>(self.name)?, i64::cast_unsigned, most)?
                }
                Dtype::I32 => {
                    let slice = array.as_slice::<i32>(self.name)?;
                    self.converted(slice, |value| i64::from(value).cast_unsigned(), most)?
                }
                _ => return Ok(Cow::Borrowed(array.as_slice(self.name)?)),
            },
        };
        Ok(Cow::Owned(narrow))
    }

    /// Converts all values, none of which may exceed `most` as a number without a sign.
    fn converted<S: Copy, T: Narrowed>(
        &self,
        values: &[S],
        widen: impl Fn(S) -> u64,
        most: u64,
    ) -> Result<Vec<T>, BindError> {
        // One test for all, so that the loop stays free of branches. `most` is a power of two less one.
        let mut all = 0;
        let converted = values
            .iter()
            .map(|&value| {
                let wide = widen(value);
                all |= wide;
                T::narrowed(wide)
            })
            .collect();
        if all <= most {
            return Ok(converted);
        }
        let wide = values.iter().map(|&value| widen(value));
        let bad = wide
            .filter(|&value| value > most)
            .map(u64::cast_signed)
            .next();
        Err(BindError::value_error(format!(
            "{}: {} is out of range, allowed are 0 to {most}",
            self.name,
            bad.unwrap_or_default()
        )))
    }
}

/// Keeps the lower bits.
trait Narrowed {
    fn narrowed(wide: u64) -> Self;
}

impl Narrowed for u64 {
    fn narrowed(wide: u64) -> Self {
        wide
    }
}

impl Narrowed for u32 {
    fn narrowed(wide: u64) -> Self {
        wide as Self
    }
}
