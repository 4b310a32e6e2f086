//! Integers from Python: lists, tuples, and one-dimensional arrays and tensors, the latter read where they lie.

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

/// The same without Python: values where they lie, not yet checked.
#[derive(Clone, Copy)]
pub(crate) struct Values<'a> {
    name: &'static str,
    slice: Slice<'a>,
}

#[derive(Clone, Copy)]
enum Slice<'a> {
    I64(&'a [i64]),
    I32(&'a [i32]),
    U32(&'a [u32]),
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

    /// The values as they lie in memory.
    pub(crate) fn values(&self) -> Result<Values<'_>, BindError> {
        let name = self.name;
        let slice = match &self.source {
            Source::Listed(listed) => Slice::I64(listed),
            Source::Array(array) => match array.dtype() {
                Dtype::I64 => Slice::I64(array.as_slice(name)?),
                Dtype::I32 => Slice::I32(array.as_slice(name)?),
                _ => Slice::U32(array.as_slice(name)?),
            },
        };
        Ok(Values { name, slice })
    }

    /// The values as `u64`.
    pub(crate) fn to_u64(&self) -> Result<Vec<u64>, BindError> {
        let values = self.values()?;
        let mut converted = Vec::new();
        values.convert(u64::MAX >> 1, |wide| wide, &mut converted)?;
        Ok(converted)
    }
}

impl Values<'_> {
    pub(crate) fn len(&self) -> usize {
        match self.slice {
            Slice::I64(slice) => slice.len(),
            Slice::I32(slice) => slice.len(),
            Slice::U32(slice) => slice.len(),
        }
    }

    /// The values as `u32`: where they lie, or in `room`, whose memory serves call after call.
    pub(crate) fn as_u32<'a>(&'a self, room: &'a mut Vec<u32>) -> Result<&'a [u32], BindError> {
        if let Slice::U32(slice) = self.slice {
            return Ok(slice);
        }
        room.clear();
        self.convert(u32::MAX.into(), |wide| wide as u32, room)?;
        Ok(room)
    }

    /// Appends all values, none of which may exceed `most` (a power of two less one) as a number without a sign.
    fn convert<T>(
        &self,
        most: u64,
        narrow: impl Fn(u64) -> T,
        out: &mut Vec<T>,
    ) -> Result<(), BindError> {
        // One test for all, so that the loop stays free of branches.
        let mut all = 0;
        let mut keep = |wide: u64| {
            all |= wide;
            narrow(wide)
        };
        let signed = |value: i32| i64::from(value).cast_unsigned();
        match self.slice {
            Slice::I64(slice) => out.extend(slice.iter().map(|&value| keep(value.cast_unsigned()))),
            Slice::I32(slice) => out.extend(slice.iter().map(|&value| keep(signed(value)))),
            Slice::U32(slice) => out.extend(slice.iter().map(|&value| keep(value.into()))),
        }
        if all <= most {
            return Ok(());
        }
        let bad = match self.slice {
            Slice::I64(slice) => slice
                .iter()
                .find(|&&value| value.cast_unsigned() > most)
                .copied(),
            Slice::I32(slice) => slice
                .iter()
                .find(|&&value| value < 0)
                .map(|&value| value.into()),
            Slice::U32(_) => None,
        };
        Err(BindError::value_error(format!(
            "{}: {} is out of range, allowed are 0 to {most}",
            self.name,
            bad.unwrap_or_default()
        )))
    }
}
