//! Python binding of `abyssal-kvcache`: the class `PageCache`.

use std::sync::{Mutex, MutexGuard, PoisonError};

use abyssal_kvcache::{Error, Handle, PageCache as Pages};
use pyo3::prelude::*;
use pyo3::types::{PyBool, PyDict, PyList, PyTuple};

use crate::error::BindError;
use crate::run;
use crate::tensor::{Dtype, Tensor};

impl From<Error> for BindError {
    fn from(error: Error) -> Self {
        match error {
            Error::OutOfPages { .. } => Self::OutOfPages(error.to_string()),
            // A damaged cache is a bug of this package, not a wrong argument.
            Error::Corrupt { .. } => Self::Panic(error.to_string()),
            _ => Self::value_error(error),
        }
    }
}

/// Deals out the pages of one latent cache: who holds which page, and where the next token goes.
///
/// The cache deals in page ids and owns no memory: the caller keeps ``page_size`` rows for each page and finds the
/// row of a sequence's token ``t`` at ``block_table[t // page_size] * page_size + t % page_size``.
///
/// Args:
///     num_pages: pages in all, 1 to 2**31 - 1.
///     page_size: tokens in a page, at least 1.
///
/// Raises:
///     ValueError: a size out of range.
///
/// Guarantees: a refused call changes nothing, in the cache or in the caller's arrays. A handle is a positive int
/// that is never given out twice; a closed sequence's handle is an error. Freed pages are dealt out before pages
/// that were never used, and those from 0 upwards. Calls from several threads take turns.
///
/// Source: ``reference/kvcache.py``.
#[pyclass(frozen, module = "abyssal.kvcache")]
pub(crate) struct PageCache {
    pages: Mutex<Pages>,
}

impl PageCache {
    fn lock(&self) -> MutexGuard<'_, Pages> {
        // A panic while the lock was held is a bug that `audit` will show; refusing every later call would hide it.
        self.pages.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[pymethods]
impl PageCache {
    #[new]
    #[pyo3(signature = (num_pages, page_size = 64))]
    fn new(num_pages: i64, page_size: i64) -> Result<Self, BindError> {
        let size = |name: &str, value: i64| {
            usize::try_from(value).map_err(|_| {
                BindError::value_error(format!("{name} is {value}, allowed are 1 and more"))
            })
        };
        let pages = Pages::new(size("num_pages", num_pages)?, size("page_size", page_size)?)?;
        Ok(Self {
            pages: Mutex::new(pages),
        })
    }

    /// Open a sequence that begins with ``token_ids``.
    ///
    /// Args:
    ///     token_ids: ints of at least 0: a list, a tuple, or a one-dimensional int32 or int64 array or tensor.
    ///     salt: sequences with different salts never share pages.
    ///
    /// Returns:
    ///     ``(handle, cached_tokens)``: the first ``cached_tokens`` tokens are in the cache already; they are reserved
    ///     and computed. No prefix is matched yet, so this is 0.
    ///
    /// Raises:
    ///     TypeError: ``token_ids`` of another kind.
    ///     ValueError: a token id below 0 or above 2**32 - 1.
    ///
    /// Guarantees: an empty ``token_ids`` is allowed; no page is taken yet.
    #[pyo3(signature = (token_ids, salt = &[][..]), text_signature = "($self, token_ids, salt=b'')")]
    fn open(
        &self,
        py: Python<'_>,
        token_ids: &Bound<'_, PyAny>,
        salt: &[u8],
    ) -> Result<(u64, u64), BindError> {
        let token_ids: Vec<u32> = integers("token_ids", token_ids)?;
        let (handle, cached) = run(py, || Ok(self.lock().open(&token_ids, salt)?))?;
        Ok((handle.0, cached))
    }

    /// Reserve room for more tokens of several sequences at once, and write their block tables.
    ///
    /// Args:
    ///     handles: distinct handles: a list, a tuple, or a one-dimensional int32 or int64 array or tensor.
    ///     counts: the number of tokens to reserve for each, at least 0; as ``handles``.
    ///     block_tables_out: int32 array or tensor ``[rows, pages]``, contiguous, at least one row per handle. The
    ///         first entries of row ``i`` become the page ids of sequence ``i``; all else is left as it was.
    ///
    /// Returns:
    ///     A list of ``(from, to)``: pages whose rows the caller must copy before it writes anything. They come from
    ///     forks that share a page which one of them is about to fill further.
    ///
    /// Raises:
    ///     OutOfPages: the step needs more pages than are free; the message has both numbers.
    ///     TypeError: an argument of another kind.
    ///     ValueError: a stale or repeated handle, a negative count, too few rows or columns, or strided memory.
    ///
    /// Guarantees: all or nothing. No copy reads a page that another one writes.
    fn step(
        &self,
        py: Python<'_>,
        handles: &Bound<'_, PyAny>,
        counts: &Bound<'_, PyAny>,
        mut block_tables_out: Tensor<'_>,
    ) -> Result<Vec<(u32, u32)>, BindError> {
        const NAME: &str = "block_tables_out";
        let handles = handle_list(handles)?;
        let counts: Vec<u64> = integers("counts", counts)?;
        block_tables_out.expect_dtype(NAME, &[Dtype::I32])?;
        let &[_, width] = block_tables_out.shape() else {
            return Err(BindError::value_error(format!(
                "{NAME}: expected shape [rows, pages], got {:?}",
                block_tables_out.shape()
            )));
        };
        let tables = block_tables_out.as_mut_slice::<i32>(NAME)?;
        let copies = run(py, || {
            Ok(self.lock().step(&handles, &counts, tables, width)?)
        })?;
        Ok(copies.iter().map(|copy| (copy.from.0, copy.to.0)).collect())
    }

    /// Say how many tokens of each sequence are computed, and whether they may be shared.
    ///
    /// Args:
    ///     handles: as for ``step``.
    ///     computed: the sequence's computed tokens in all, from what was computed before to what is reserved.
    ///     publish: one bool for all, or one for each handle: the computed tokens may be shared with later requests.
    ///
    /// Raises:
    ///     TypeError: an argument of another kind.
    ///     ValueError: a stale or repeated handle, a length that differs, or a count out of range.
    ///
    /// Guarantees: all or nothing; no page is shared before its tokens are committed with ``publish``.
    fn commit(
        &self,
        py: Python<'_>,
        handles: &Bound<'_, PyAny>,
        computed: &Bound<'_, PyAny>,
        publish: &Bound<'_, PyAny>,
    ) -> Result<(), BindError> {
        let handles = handle_list(handles)?;
        let computed: Vec<u64> = integers("computed", computed)?;
        let publish = match publish.cast::<PyBool>() {
            Ok(all) => vec![all.is_true(); handles.len()],
            Err(_) => publish.extract().map_err(|_| {
                BindError::type_error("publish: expected a bool or a list of bools, one per handle")
            })?,
        };
        run(py, || {
            Ok(self.lock().commit(&handles, &computed, &publish)?)
        })
    }

    /// Open a second sequence with the same tokens.
    ///
    /// Args:
    ///     handle: a sequence whose reserved tokens are all computed.
    ///
    /// Returns:
    ///     The handle of the new sequence.
    ///
    /// Raises:
    ///     ValueError: a stale handle, or reserved tokens that are not computed.
    ///
    /// Guarantees: the two share every page until one of them writes into the last one, which ``step`` then copies.
    fn fork(&self, py: Python<'_>, handle: i64) -> Result<u64, BindError> {
        let handle = one_handle(handle)?;
        Ok(run(py, || Ok(self.lock().fork(handle)?))?.0)
    }

    /// Close a sequence and free the pages that nobody else holds.
    ///
    /// Args:
    ///     handle: an open sequence.
    ///
    /// Raises:
    ///     ValueError: a stale handle.
    fn close(&self, py: Python<'_>, handle: i64) -> Result<(), BindError> {
        let handle = one_handle(handle)?;
        run(py, || Ok(self.lock().close(handle)?))
    }

    /// Count pages, sequences and tokens.
    ///
    /// Returns:
    ///     A dict of ints: ``num_pages``, ``page_size``, ``free_pages``, ``used_pages``, ``shared_pages`` (held by more
    ///     than one sequence), ``sequences``, ``reserved_tokens`` and ``computed_tokens`` (a shared token counts once for
    ///     each sequence).
    fn stats<'py>(&self, py: Python<'py>) -> Result<Bound<'py, PyDict>, BindError> {
        let stats = run(py, || Ok(self.lock().stats()))?;
        let dict = PyDict::new(py);
        dict.set_item("num_pages", stats.num_pages)?;
        dict.set_item("page_size", stats.page_size)?;
        dict.set_item("free_pages", stats.free_pages)?;
        dict.set_item("used_pages", stats.used_pages)?;
        dict.set_item("shared_pages", stats.shared_pages)?;
        dict.set_item("sequences", stats.sequences)?;
        dict.set_item("reserved_tokens", stats.reserved_tokens)?;
        dict.set_item("computed_tokens", stats.computed_tokens)?;
        Ok(dict)
    }

    /// Check every invariant from scratch.
    ///
    /// Raises:
    ///     RuntimeError: the first rule that does not hold, with the numbers.
    ///
    /// Guarantees: changes nothing; work proportional to the whole cache.
    fn audit(&self, py: Python<'_>) -> Result<(), BindError> {
        run(py, || Ok(self.lock().audit()?))
    }

    /// Pages in all.
    #[getter]
    fn num_pages(&self) -> usize {
        self.lock().num_pages()
    }

    /// Tokens in a page.
    #[getter]
    fn page_size(&self) -> u64 {
        self.lock().page_size()
    }

    /// Pages that no sequence holds.
    #[getter]
    fn free_pages(&self) -> usize {
        self.lock().free_pages()
    }
}

fn one_handle(handle: i64) -> Result<Handle, BindError> {
    u64::try_from(handle)
        .map(Handle)
        .map_err(|_| BindError::value_error(format!("handle {handle} names no open sequence")))
}

fn handle_list(handles: &Bound<'_, PyAny>) -> Result<Vec<Handle>, BindError> {
    Ok(integers("handles", handles)?
        .into_iter()
        .map(Handle)
        .collect())
}

/// Reads integers of at least 0 from a list, a tuple, or a one-dimensional array or tensor.
fn integers<T: TryFrom<i64>>(name: &str, values: &Bound<'_, PyAny>) -> Result<Vec<T>, BindError> {
    let listed: Vec<i64>;
    let array: Tensor<'_>;
    let narrow: Vec<i64>;
    let signed: &[i64] = if values.is_instance_of::<PyList>() || values.is_instance_of::<PyTuple>()
    {
        listed = values
            .extract()
            .map_err(|error| BindError::type_error(format!("{name}: expected ints: {error}")))?;
        &listed
    } else {
        array = values.extract()?;
        if array.shape().len() != 1 {
            return Err(BindError::value_error(format!(
                "{name}: expected one dimension, got shape {:?}",
                array.shape()
            )));
        }
        if array.expect_dtype(name, &[Dtype::I64, Dtype::I32])? == Dtype::I64 {
            array.as_slice(name)?
        } else {
            narrow = array
                .as_slice::<i32>(name)?
                .iter()
                .map(|&value| value.into())
                .collect();
            &narrow
        }
    };
    let convert = |&value: &i64| {
        T::try_from(value)
            .map_err(|_| BindError::value_error(format!("{name}: {value} is out of range")))
    };
    signed.iter().map(convert).collect()
}
