//! Python binding of `abyssal-kvcache`: the class `PageCache`.
//!
//! Calls are short, so most of them keep the interpreter; it is released where the work can exceed some microseconds.

use std::io;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use abyssal_kvcache::{Error, EventForm, Handle, Limits, Options, PageCache as Pages};
use pyo3::prelude::*;
use pyo3::sync::MutexExt;
use pyo3::types::{PyBool, PyBytes, PyDict};

use crate::block_tables::Tables;
use crate::error::BindError;
use crate::integers::Integers;
use crate::tensor::{Dtype, Tensor, reject_overlap};
use crate::{guard, run};

impl From<Error> for BindError {
    fn from(error: Error) -> Self {
        match error {
            Error::OutOfPages { .. } => Self::OutOfPages(error.to_string()),
            // A damaged cache is a bug of this package, not a wrong argument.
            Error::Corrupt { .. } => Self::Panic(error.to_string()),
            Error::Io { kind, .. } => Self::Io(io::Error::new(kind, error.to_string())),
            _ if error.is_about_saved_file() => Self::SavedPrefix(error.to_string()),
            _ => Self::value_error(error),
        }
    }
}

/// Tokens, or sequences, from which on the interpreter is released.
const MANY: u64 = 4096;

/// Deals out the pages of one latent cache: who holds which page, where the next token goes, and which pages hold
/// the beginning of a new prompt already.
///
/// The cache deals in page ids and owns no memory: the caller keeps ``page_size`` rows for each page and finds the
/// row of a sequence's token ``t`` at ``block_table[t // page_size] * page_size + t % page_size``.
///
/// A page can be matched by later sequences once ``commit`` has said that all its tokens are computed and may be
/// shared. It stays so when its sequence is closed, until the page is needed for something else; pages without
/// content are dealt first, then those released longest ago.
///
/// Args:
///     num_pages: pages in all, 1 to 2**31 - 1.
///     page_size: tokens in a page, at least 1.
///     reuse: whether pages are ever matched; if not, ``commit`` ignores ``publish``.
///     events: whether ``take_events`` tells which pages can be matched.
///
/// Raises:
///     ValueError: a size out of range.
///
/// Guarantees: a refused call changes nothing, in the cache or in the caller's arrays. A handle is a positive int
/// that is never given out twice; a closed sequence's handle is an error. Freed pages are dealt out before pages
/// that were never used, and those from 0 upwards. Matching compares the tokens themselves; hashes only say where to
/// look, with keys random for each cache. Work follows from the tokens that are new to a call, not from the length
/// of a sequence, but for the rows of an array that ``step`` writes whole. Calls from several threads take turns.
///
/// Source: ``reference/kvcache.py``.
#[pyclass(frozen, module = "abyssal.kvcache")]
pub(crate) struct PageCache {
    state: Mutex<State>,
}

/// What calls take turns for.
struct State {
    pages: Pages,
    /// Room for token ids of another type than ours, kept because fresh memory costs more than the conversion.
    room: Vec<u32>,
}

impl PageCache {
    /// The cache, from a thread without the interpreter.
    fn lock(&self) -> MutexGuard<'_, State> {
        // A panic while the lock was held is a bug that `audit` will show; refusing every later call would hide it.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The cache, from a thread that has the interpreter and gives it up only while it waits for another thread.
    fn lock_attached(&self, py: Python<'_>) -> MutexGuard<'_, State> {
        let state = self.state.lock_py_attached(py);
        state.unwrap_or_else(PoisonError::into_inner)
    }

    /// Calls the cache; without the interpreter when there is much to do.
    fn call<T: Send>(
        &self,
        py: Python<'_>,
        much: bool,
        work: impl FnOnce(&mut Pages) -> Result<T, Error> + Send,
    ) -> Result<T, BindError> {
        self.call_with_room(py, much, |state| Ok(work(&mut state.pages)?))
    }

    /// As [`PageCache::call`], with the room for token ids.
    fn call_with_room<T: Send>(
        &self,
        py: Python<'_>,
        much: bool,
        work: impl FnOnce(&mut State) -> Result<T, BindError> + Send,
    ) -> Result<T, BindError> {
        if much {
            run(py, || work(&mut self.lock()))
        } else {
            guard(|| work(&mut self.lock_attached(py)))
        }
    }
}

#[pymethods]
impl PageCache {
    #[new]
    #[pyo3(signature = (num_pages, page_size = 64, *, reuse = true, events = false))]
    fn new(num_pages: i64, page_size: i64, reuse: bool, events: bool) -> Result<Self, BindError> {
        let size = |name: &str, value: i64| {
            usize::try_from(value).map_err(|_| {
                BindError::value_error(format!("{name} is {value}, allowed are 1 and more"))
            })
        };
        let (num_pages, page_size) = (size("num_pages", num_pages)?, size("page_size", page_size)?);
        let pages = Pages::with_options(num_pages, page_size, Options { reuse, events })?;
        let state = State {
            pages,
            room: Vec::new(),
        };
        Ok(Self {
            state: Mutex::new(state),
        })
    }

    /// Open a sequence that begins with ``token_ids``.
    ///
    /// Args:
    ///     token_ids: ints of 0 to 2**32 - 1: a list, a tuple, or a one-dimensional int32, int64 or uint32 array or
    ///         tensor.
    ///     salt: sequences with different salts never share pages; any bytes.
    ///     max_cached: so many cached tokens at most; a model that needs the logits after a prompt must compute its
    ///         last token.
    ///     multiple_of: the number of cached tokens is a multiple of this, and always of the page size.
    ///
    /// Returns:
    ///     ``(handle, cached_tokens)``: the first ``cached_tokens`` tokens are in the cache already; the sequence holds
    ///     their pages, and they are reserved and computed.
    ///
    /// Raises:
    ///     TypeError: ``token_ids`` of another kind.
    ///     ValueError: a token id, ``max_cached`` or ``multiple_of`` out of range.
    ///
    /// Guarantees: an empty ``token_ids`` is allowed; no page is taken that was not matched.
    #[pyo3(
        signature = (token_ids, salt = &[][..], *, max_cached = None, multiple_of = 1),
        text_signature = "($self, token_ids, salt=b'', *, max_cached=None, multiple_of=1)"
    )]
    fn open(
        &self,
        py: Python<'_>,
        token_ids: &Bound<'_, PyAny>,
        salt: &[u8],
        max_cached: Option<i64>,
        multiple_of: i64,
    ) -> Result<(u64, u64), BindError> {
        let token_ids = Integers::new("token_ids", token_ids)?;
        let token_ids = token_ids.values()?;
        let limit = |name: &str, value: i64| {
            u64::try_from(value).map_err(|_| {
                BindError::value_error(format!("{name} is {value}, allowed are 0 and more"))
            })
        };
        let limits = Limits {
            max_cached: max_cached.map_or(Ok(u64::MAX), |value| limit("max_cached", value))?,
            multiple_of: limit("multiple_of", multiple_of)?,
        };
        let much = token_ids.len() as u64 >= MANY;
        let (handle, cached) = self.call_with_room(py, much, |state| {
            let token_ids = token_ids.as_u32(&mut state.room)?;
            Ok(state.pages.open_within(token_ids, salt, limits)?)
        })?;
        Ok((handle.0, cached))
    }

    /// Reserve room for more tokens of several sequences at once, and write their block tables.
    ///
    /// Args:
    ///     handles: distinct handles: a list, a tuple, or a one-dimensional int32, int64 or uint32 array or tensor.
    ///     counts: the number of tokens to reserve for each, at least 0; as ``handles``.
    ///     block_tables_out: int32 array or tensor ``[rows, pages]``, contiguous, at least one row per handle. The
    ///         first entries of row ``i`` become the page ids of sequence ``i``; all else is left as it was. Rows of an
    ///         array are written whole, whatever it holds; of a ``BlockTables``, which knows that, only what is new.
    ///     written: int32 array or tensor, one entry per handle at least, for a caller who keeps count in place of a
    ///         ``BlockTables``: the first ``written[i]`` entries of row ``i`` are those that the last step of sequence
    ///         ``i`` left there (0: none). Only new entries are written then, and ``written[i]`` becomes their number.
    ///
    /// Returns:
    ///     A list of ``(from, to)``: pages whose rows the caller must copy before it writes anything. They come from
    ///     forks that share a page which one of them is about to fill further.
    ///
    /// Raises:
    ///     OutOfPages: the step needs more pages than are free; the message has both numbers.
    ///     TypeError: an argument of another kind.
    ///     ValueError: a stale or repeated handle, a negative count, too few rows or columns, strided or shared memory,
    ///         or a ``written`` below 0, above the pages of a sequence, or beside a ``BlockTables``.
    ///
    /// Guarantees: all or nothing. No copy reads a page that another one writes.
    #[pyo3(signature = (handles, counts, block_tables_out, written = None))]
    fn step(
        &self,
        py: Python<'_>,
        handles: &Bound<'_, PyAny>,
        counts: &Bound<'_, PyAny>,
        mut block_tables_out: Tables<'_>,
        mut written: Option<Tensor<'_>>,
    ) -> Result<Vec<(u32, u32)>, BindError> {
        let handles = handle_list(handles)?;
        let counts = Integers::new("counts", counts)?.to_u64()?;
        if let Some(written) = &written {
            let table = ("block_tables_out", &block_tables_out.tensor);
            reject_overlap(&[table, ("written", written)], &[])?;
        }
        let written = written
            .as_mut()
            .map(|written| written_entries(written, handles.len()));
        let written = written.transpose()?;
        let kept = block_tables_out.kept.clone();
        let mut kept = kept.as_ref().map(|kept| kept.get().lock(py));
        if kept.is_some() && written.is_some() {
            return Err(BindError::value_error(
                "written: a BlockTables knows what its rows hold; pass one of the two",
            ));
        }
        let (tables, width) = block_tables_out.entries()?;
        let rows = kept.as_mut().map(|kept| kept.at(tables, width));
        let tokens = counts
            .iter()
            .fold(0_u64, |sum, &count| sum.saturating_add(count));
        let much = handles.len() as u64 >= MANY || tokens >= 16 * MANY;
        let copies = self.call(py, much, |pages| match (rows, written) {
            (Some(rows), _) => pages.step_table(&handles, &counts, tables, width, rows),
            (None, Some(written)) => pages.step_kept(&handles, &counts, tables, width, written),
            (None, None) => pages.step(&handles, &counts, tables, width),
        })?;
        Ok(copies.iter().map(|copy| (copy.from.0, copy.to.0)).collect())
    }

    /// Say how many tokens of each sequence are computed, and whether they may be shared.
    ///
    /// Args:
    ///     handles: as for ``step``.
    ///     computed: the sequence's computed tokens in all, from what was computed before to what is reserved.
    ///     publish: one bool for all, or one for each handle: the computed tokens may be shared with later requests.
    ///     token_ids: the ids of the tokens up to ``computed`` that neither ``open`` nor an earlier ``commit`` told, as
    ///         ints of 0 to 2**32 - 1, all of the first handle's, then the second's. Without them only pages whose
    ///         tokens are known can be matched.
    ///
    /// Raises:
    ///     TypeError: an argument of another kind.
    ///     ValueError: a stale or repeated handle, a length that differs, or a count or id out of range.
    ///
    /// Guarantees: all or nothing; no page is shared before its tokens are committed with ``publish``.
    #[pyo3(signature = (handles, computed, publish, token_ids = None))]
    fn commit(
        &self,
        py: Python<'_>,
        handles: &Bound<'_, PyAny>,
        computed: &Bound<'_, PyAny>,
        publish: &Bound<'_, PyAny>,
        token_ids: Option<&Bound<'_, PyAny>>,
    ) -> Result<(), BindError> {
        let handles = handle_list(handles)?;
        let computed = Integers::new("computed", computed)?.to_u64()?;
        let publish = match publish.cast::<PyBool>() {
            Ok(all) => vec![all.is_true(); handles.len()],
            Err(_) => publish.extract().map_err(|_| {
                BindError::type_error("publish: expected a bool or a list of bools, one per handle")
            })?,
        };
        let token_ids = token_ids
            .map(|ids| Integers::new("token_ids", ids))
            .transpose()?;
        let token_ids = token_ids.as_ref().map(Integers::values).transpose()?;
        let new = self
            .lock_attached(py)
            .pages
            .uncommitted(&handles, &computed);
        self.call_with_room(py, new >= MANY, |state| {
            let pages = &mut state.pages;
            match &token_ids {
                None => pages.commit(&handles, &computed, &publish)?,
                Some(ids) => {
                    let ids = ids.as_u32(&mut state.room)?;
                    pages.commit_tokens(&handles, &computed, &publish, ids)?;
                }
            }
            Ok(())
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
        Ok(self.call(py, false, |pages| pages.fork(handle))?.0)
    }

    /// Close a sequence. Of its pages that nobody else holds, published ones can still be matched until they are
    /// needed; the others are empty at once.
    ///
    /// Args:
    ///     handle: an open sequence.
    ///
    /// Raises:
    ///     ValueError: a stale handle.
    fn close(&self, py: Python<'_>, handle: i64) -> Result<(), BindError> {
        let handle = one_handle(handle)?;
        self.call(py, false, |pages| pages.close(handle))
    }

    /// Forget all published content, as after a change of the model's weights.
    ///
    /// Guarantees: open sequences keep their pages, and publish nothing any more.
    fn clear(&self, py: Python<'_>) -> Result<(), BindError> {
        self.call(py, true, |pages| {
            pages.clear();
            Ok(())
        })
    }

    /// Take the events since the last call, for routers that send a prompt to where its beginning is cached.
    ///
    /// Args:
    ///     timestamp: seconds since 1970; the time of the call unless given.
    ///     data_parallel_rank: which of several engines with the same weights this is.
    ///     medium: vLLM's name for where the pages are.
    ///     full_hashes: name pages by all 32 bytes of their ``page_identities`` instead of the last 8 as a number, as
    ///         vLLM does when ``VLLM_KV_EVENTS_USE_INT_BLOCK_HASHES`` is 0.
    ///
    /// Returns:
    ///     The payload of a message in the form of vLLM 0.33, msgpack of its ``KVEventBatch``; None when nothing
    ///     happened or the cache was made without ``events``.
    ///
    /// Guarantees: in order, each once. Events of more than 65,536 pages that nobody took are dropped; the next batch
    /// then begins with ``AllBlocksCleared``. Salts are not told, but pages under different salts have different
    /// hashes.
    ///
    /// Source: vLLM 0.33, ``vllm/distributed/kv_events.py``.
    #[pyo3(signature = (*, timestamp = None, data_parallel_rank = None, medium = "GPU", full_hashes = false))]
    fn take_events<'py>(
        &self,
        py: Python<'py>,
        timestamp: Option<f64>,
        data_parallel_rank: Option<u32>,
        medium: &str,
        full_hashes: bool,
    ) -> Result<Option<Bound<'py, PyBytes>>, BindError> {
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        let form = EventForm {
            timestamp: timestamp.unwrap_or(now.as_secs_f64()),
            data_parallel_rank,
            medium,
            full_hashes,
        };
        let batch = self.call(py, true, |pages| Ok(pages.take_events(&form)))?;
        Ok(batch.map(|bytes| PyBytes::new(py, &bytes)))
    }

    /// Count pages, sequences and tokens.
    ///
    /// Returns:
    ///     A dict of ints: ``num_pages``, ``page_size``, ``free_pages`` (held by no sequence), ``used_pages``,
    ///     ``shared_pages`` (held by more than one), ``published_pages``, ``reusable_pages`` (published and free),
    ///     ``sequences``, ``reserved_tokens`` and ``computed_tokens`` (a shared token counts once for each sequence);
    ///     and since the beginning ``hits`` and ``misses`` (whole pages that ``open`` found, and looked for in vain),
    ///     ``cached_tokens`` (those of the pages found) and ``evictions`` (published pages given up for others).
    fn stats<'py>(&self, py: Python<'py>) -> Result<Bound<'py, PyDict>, BindError> {
        let stats = self.call(py, true, |pages| Ok(pages.stats()))?;
        let dict = PyDict::new(py);
        dict.set_item("num_pages", stats.num_pages)?;
        dict.set_item("page_size", stats.page_size)?;
        dict.set_item("free_pages", stats.free_pages)?;
        dict.set_item("used_pages", stats.used_pages)?;
        dict.set_item("shared_pages", stats.shared_pages)?;
        dict.set_item("published_pages", stats.published_pages)?;
        dict.set_item("reusable_pages", stats.reusable_pages)?;
        dict.set_item("sequences", stats.sequences)?;
        dict.set_item("reserved_tokens", stats.reserved_tokens)?;
        dict.set_item("computed_tokens", stats.computed_tokens)?;
        dict.set_item("hits", stats.hits)?;
        dict.set_item("misses", stats.misses)?;
        dict.set_item("cached_tokens", stats.cached_tokens)?;
        dict.set_item("evictions", stats.evictions)?;
        Ok(dict)
    }

    /// Check every invariant from scratch.
    ///
    /// Raises:
    ///     RuntimeError: the first rule that does not hold, with the numbers.
    ///
    /// Guarantees: changes nothing; work proportional to the whole cache.
    fn audit(&self, py: Python<'_>) -> Result<(), BindError> {
        self.call(py, true, |pages| pages.audit())
    }

    /// Pages in all.
    #[getter]
    fn num_pages(&self, py: Python<'_>) -> usize {
        self.lock_attached(py).pages.num_pages()
    }

    /// Tokens in a page.
    #[getter]
    fn page_size(&self, py: Python<'_>) -> u64 {
        self.lock_attached(py).pages.page_size()
    }

    /// Pages that no sequence holds.
    #[getter]
    fn free_pages(&self, py: Python<'_>) -> usize {
        self.lock_attached(py).pages.free_pages()
    }
}

fn one_handle(handle: i64) -> Result<Handle, BindError> {
    u64::try_from(handle)
        .map(Handle)
        .map_err(|_| BindError::value_error(format!("handle {handle} names no open sequence")))
}

fn handle_list(handles: &Bound<'_, PyAny>) -> Result<Vec<Handle>, BindError> {
    let handles = Integers::new("handles", handles)?.to_u64()?;
    Ok(handles.into_iter().map(Handle).collect())
}

/// The entries of `written` that belong to the handles.
fn written_entries<'a>(
    written: &'a mut Tensor<'_>,
    handles: usize,
) -> Result<&'a mut [i32], BindError> {
    const NAME: &str = "written";
    written.expect_dtype(NAME, &[Dtype::I32])?;
    let entries = written.shape().to_vec();
    if entries.len() != 1 || entries[0] < handles {
        return Err(BindError::value_error(format!(
            "{NAME}: expected one dimension of at least {handles} entries, one per handle, got shape {entries:?}"
        )));
    }
    Ok(&mut written.as_mut_slice::<i32>(NAME)?[..handles])
}
