//! The class `BlockTables`, and the argument of `PageCache.step` that may be one.

use std::sync::{Mutex, MutexGuard, PoisonError};

use abyssal_kvcache::KeptRows;
use pyo3::prelude::*;
use pyo3::sync::MutexExt;

use crate::error::BindError;
use crate::tensor::{Dtype, Tensor};

const NAME: &str = "block_tables_out";

/// Block tables that stay from step to step, for ``PageCache.step``: it writes only what is new to a row, so a step
/// costs the same however long the sequences are.
///
/// Args:
///     array: int32 array or tensor ``[rows, pages]``, contiguous and writable.
///
/// Raises:
///     TypeError: an argument of another kind.
///     ValueError: another number of dimensions, strided, read-only or misaligned memory.
///
/// Guarantees: after a step the first entries of row ``i`` are the pages of sequence ``i``, as with an array: whichever
/// sequence, or cache, the row belonged to before. For that the array must be written by steps with this object alone;
/// ``forget`` makes good what else was written. Calls from several threads take turns.
#[pyclass(frozen, module = "abyssal.kvcache")]
pub(crate) struct BlockTables {
    array: Py<PyAny>,
    kept: Mutex<Kept>,
}

/// What the rows hold, and where they are: an array may move when it is resized.
pub(crate) struct Kept {
    rows: KeptRows,
    place: (usize, usize),
}

impl Kept {
    /// What the rows of memory at this place hold.
    pub(crate) fn at(&mut self, tables: &[i32], width: usize) -> &mut KeptRows {
        let place = (tables.as_ptr().addr(), width);
        if self.place != place {
            self.rows.forget();
            self.place = place;
        }
        &mut self.rows
    }
}

#[pymethods]
impl BlockTables {
    #[new]
    fn new(array: Bound<'_, PyAny>) -> Result<Self, BindError> {
        let mut tensor: Tensor<'_> = array.extract()?;
        let (tables, width) = entries(&mut tensor, "array")?;
        let kept = Kept {
            rows: KeptRows::default(),
            place: (tables.as_ptr().addr(), width),
        };
        Ok(Self {
            array: array.unbind(),
            kept: Mutex::new(kept),
        })
    }

    /// The array or tensor.
    #[getter]
    fn array(&self, py: Python<'_>) -> Py<PyAny> {
        self.array.clone_ref(py)
    }

    /// Forget what the rows hold, after anything but a step with this object has written to the array.
    fn forget(&self, py: Python<'_>) {
        self.lock(py).rows.forget();
    }
}

impl BlockTables {
    /// The state, from a thread that has the interpreter and gives it up only while it waits for another thread.
    pub(crate) fn lock(&self, py: Python<'_>) -> MutexGuard<'_, Kept> {
        let state = self.kept.lock_py_attached(py);
        state.unwrap_or_else(PoisonError::into_inner)
    }
}

/// Where a step writes.
pub(crate) struct Tables<'py> {
    pub(crate) tensor: Tensor<'py>,
    pub(crate) kept: Option<Bound<'py, BlockTables>>,
}

impl<'a, 'py> FromPyObject<'a, 'py> for Tables<'py> {
    type Error = PyErr;

    fn extract(object: Borrowed<'a, 'py, PyAny>) -> PyResult<Self> {
        let kept = object.cast::<BlockTables>().ok();
        let tensor = match &kept {
            Some(kept) => kept.get().array.bind(object.py()).extract()?,
            None => object.extract()?,
        };
        Ok(Self {
            tensor,
            kept: kept.map(Borrowed::to_owned),
        })
    }
}

impl Tables<'_> {
    /// All entries, and how many a row has.
    pub(crate) fn entries(&mut self) -> Result<(&mut [i32], usize), BindError> {
        entries(&mut self.tensor, NAME)
    }
}

fn entries<'a>(
    tensor: &'a mut Tensor<'_>,
    name: &str,
) -> Result<(&'a mut [i32], usize), BindError> {
    tensor.expect_dtype(name, &[Dtype::I32])?;
    let &[_, width] = tensor.shape() else {
        return Err(BindError::value_error(format!(
            "{name}: expected shape [rows, pages], got {:?}",
            tensor.shape()
        )));
    };
    Ok((tensor.as_mut_slice::<i32>(name)?, width))
}
