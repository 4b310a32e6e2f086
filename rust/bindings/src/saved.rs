//! Python binding of saved prefixes and of page identities.

#![allow(
    clippy::needless_pass_by_value,
    reason = "pyo3 hands arguments over by value"
)]

use std::path::PathBuf;

use abyssal_kvcache::{Prefix, SavedPrefix as Saved, page_identities as identities};
use pyo3::prelude::*;
use pyo3::types::PyBytes;

use crate::error::BindError;
use crate::integers::Integers;
use crate::map::{FileBuffer, FileBytes};
use crate::tensor::Tensor;
use crate::{guard, run};

/// Write the pages of a prompt's beginning to a file.
///
/// Args:
///     path: the file; one that is there is replaced.
///     token_ids: the tokens of all pages, a multiple of ``page_size``: as for ``PageCache.open``.
///     pages: the content of the pages, one after the other: a contiguous uint8 array or tensor, or bytes.
///     fingerprint: names the model and its weights.
///     dtype: describes the rows of a page, their element types above all.
///     page_size: tokens in a page.
///
/// Raises:
///     TypeError: an argument of another kind.
///     ValueError: tokens or bytes that are no whole number of pages, or a token id out of range.
///     OSError: the file cannot be written.
///
/// Guarantees: the file appears whole, on the disk, or not at all; a refused call leaves an earlier file as it was.
#[pyfunction]
#[pyo3(signature = (path, token_ids, pages, *, fingerprint, dtype, page_size = 64))]
pub(crate) fn save_prefix(
    py: Python<'_>,
    path: PathBuf,
    token_ids: &Bound<'_, PyAny>,
    pages: Tensor<'_>,
    fingerprint: &str,
    dtype: &str,
    page_size: usize,
) -> Result<(), BindError> {
    let token_ids = Integers::new("token_ids", token_ids)?;
    let (token_ids, mut room) = (token_ids.values()?, Vec::new());
    let prefix = Prefix {
        fingerprint,
        dtype,
        page_size,
        token_ids: token_ids.as_u32(&mut room)?,
        pages: pages.as_slice::<u8>("pages")?,
    };
    run(py, || Ok(prefix.save(&path)?))
}

/// A prefix that was saved to a file, checked and mapped into memory.
///
/// Its pages enter a cache as computed ones do: ``open`` a sequence with ``token_ids``, ``step`` by what is not cached,
/// copy the pages that were not cached to where the block table says, ``commit`` with ``publish``.
#[pyclass(frozen, module = "abyssal.kvcache")]
pub(crate) struct SavedPrefix {
    saved: Saved,
    file: Py<FileBuffer>,
}

#[pymethods]
impl SavedPrefix {
    /// Open a saved prefix.
    ///
    /// Args:
    ///     path: the file.
    ///     fingerprint: what it must have been saved with.
    ///     dtype: what it must have been saved with.
    ///     mapped: map the file; nobody may change or cut it while the object or a view of its pages lives. Otherwise
    ///         it is read into memory.
    ///
    /// Returns:
    ///     The prefix.
    ///
    /// Raises:
    ///     SavedPrefixError: a file that is no saved prefix, is damaged, cut or extended, or was saved with another
    ///         fingerprint or dtype. It is a ``ValueError``.
    ///     OSError: the file cannot be read.
    ///
    /// Guarantees: every byte of the file was covered by its checksum when it was opened.
    #[staticmethod]
    #[pyo3(signature = (path, *, fingerprint, dtype, mapped = true))]
    fn open(
        py: Python<'_>,
        path: PathBuf,
        fingerprint: &str,
        dtype: &str,
        mapped: bool,
    ) -> Result<Self, BindError> {
        let (bytes, saved) = run(py, || {
            let bytes = FileBytes::open(&path, mapped)?;
            let saved = Saved::read(bytes.as_slice())?;
            saved.expect(fingerprint, dtype)?;
            Ok((bytes, saved))
        })?;
        let file = Py::new(py, FileBuffer::new(bytes, saved.pages.clone()))?;
        Ok(Self { saved, file })
    }

    /// The tokens of all pages: a memoryview of uint32.
    #[getter]
    fn token_ids<'py>(&self, py: Python<'py>) -> Result<Bound<'py, PyAny>, BindError> {
        let ids = &self.saved.token_ids;
        let bytes: Vec<u8> = ids.iter().flat_map(|id| id.to_ne_bytes()).collect();
        Ok(memoryview(PyBytes::new(py, &bytes).as_any())?.call_method1("cast", ("I",))?)
    }

    /// The pages: a read-only memoryview of uint8, ``[num_pages, bytes_per_page]``; empty and flat without bytes.
    #[getter]
    fn pages<'py>(&self, py: Python<'py>) -> Result<Bound<'py, PyAny>, BindError> {
        let flat = memoryview(self.file.bind(py).as_any())?;
        if self.saved.pages.is_empty() {
            return Ok(flat);
        }
        let shape = [self.num_pages(), self.saved.bytes_per_page];
        Ok(flat.call_method1("cast", ("B", shape.to_vec()))?)
    }

    /// Pages in the file.
    #[getter]
    fn num_pages(&self) -> usize {
        self.saved.token_ids.len() / self.saved.page_size
    }

    /// Tokens in a page.
    #[getter]
    fn page_size(&self) -> usize {
        self.saved.page_size
    }

    /// What names the model and its weights.
    #[getter]
    fn fingerprint(&self) -> &str {
        &self.saved.fingerprint
    }

    /// What describes the rows of a page.
    #[getter]
    fn dtype(&self) -> &str {
        &self.saved.dtype
    }
}

fn memoryview<'py>(object: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyAny>> {
    object
        .py()
        .import("builtins")?
        .getattr("memoryview")?
        .call1((object,))
}

/// Name the whole pages of a prompt in a way that is the same in every process and on every machine.
///
/// Args:
///     token_ids: the prompt, as for ``PageCache.open``.
///     page_size: tokens in a page.
///     salt: pages under different salts have different names.
///
/// Returns:
///     A list of 32 bytes for each whole page: the SHA-256 of the page's parent and tokens, as written down in
///     ``rust/kvcache/src/identity.rs``.
///
/// Raises:
///     TypeError: ``token_ids`` of another kind.
///     ValueError: a token id or ``page_size`` out of range.
///
/// Guarantees: equal exactly for equal salts, page sizes and tokens up to the page's end, short of a SHA-256 collision.
///
/// Source: ``reference/identity.py``.
#[pyfunction]
#[pyo3(signature = (token_ids, page_size = 64, salt = &[][..]), text_signature = "(token_ids, page_size=64, salt=b'')")]
pub(crate) fn page_identities<'py>(
    py: Python<'py>,
    token_ids: &Bound<'py, PyAny>,
    page_size: usize,
    salt: &[u8],
) -> Result<Vec<Bound<'py, PyBytes>>, BindError> {
    let token_ids = Integers::new("token_ids", token_ids)?;
    let (token_ids, mut room) = (token_ids.values()?, Vec::new());
    let token_ids = token_ids.as_u32(&mut room)?;
    let work = || Ok(identities(token_ids, page_size, salt)?);
    let found = if token_ids.len() < 1024 {
        guard(work)
    } else {
        run(py, work)
    };
    Ok(found?
        .iter()
        .map(|identity| PyBytes::new(py, identity))
        .collect())
}
