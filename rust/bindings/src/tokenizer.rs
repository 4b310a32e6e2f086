//! Python binding of `abyssal-tokenizer`.
#![allow(
    clippy::needless_pass_by_value,
    reason = "arguments are extracted by value"
)]

use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use abyssal_tokenizer::{Error, Place};
use pyo3::prelude::*;
use pyo3::pybacked::PyBackedStr;
use pyo3::types::PyBytes;

use crate::error::BindError;
use crate::map::{FileBytes, IdBuffer};
use crate::{guard, run};

/// Inputs below this many bytes take less time than releasing the interpreter and looking for Ctrl-C are worth.
const SHORT: usize = 4096;
/// Batches below this many bytes are encoded on one thread.
const SMALL_BATCH: usize = 1 << 16;
/// How often a long encoding looks for Ctrl-C.
const SIGNAL_INTERVAL: Duration = Duration::from_millis(100);

impl From<Error> for BindError {
    fn from(error: Error) -> Self {
        Self::value_error(error)
    }
}

/// Runs an encoding, without the interpreter when it is long, and lets Ctrl-C end it.
fn encode_with<T: Send>(
    py: Python<'_>,
    length: usize,
    encode: impl FnOnce(&mut dyn FnMut() -> bool) -> Result<T, Error> + Send,
) -> Result<T, BindError> {
    if length < SHORT {
        return guard(|| Ok(encode(&mut || false)?));
    }
    run(py, || interruptible(encode))
}

/// Runs an encoding that asks from time to time whether Ctrl-C was pressed, which is an error then.
fn interruptible<T, E>(
    encode: impl FnOnce(&mut dyn FnMut() -> bool) -> Result<T, E>,
) -> Result<T, BindError>
where
    E: Into<BindError>,
{
    let mut raised = None;
    let mut last = Instant::now();
    let mut stop = || {
        if last.elapsed() >= SIGNAL_INTERVAL {
            last = Instant::now();
            #[expect(
                clippy::redundant_closure_for_method_calls,
                reason = "the method itself is not general enough over the lifetime"
            )]
            let pending = Python::attach(|py| py.check_signals());
            raised = pending.err();
        }
        raised.is_some()
    };
    let result = encode(&mut stop);
    match raised {
        Some(error) => Err(error.into()),
        None => result.map_err(Into::into),
    }
}

/// The place of a text in a batch, and what is wrong with it.
#[derive(Debug)]
struct Placed(usize, Error);

impl From<Placed> for BindError {
    fn from(Placed(place, error): Placed) -> Self {
        Self::value_error(format!("text {place}: {error}"))
    }
}

/// Lists end to end, as a buffer.
fn buffer(mut lists: Vec<Vec<u32>>) -> IdBuffer {
    let rest = lists.split_off(lists.len().min(1));
    let mut ids = lists.pop().unwrap_or_default();
    ids.reserve_exact(rest.iter().map(Vec::len).sum());
    for list in rest {
        ids.extend_from_slice(&list);
    }
    IdBuffer::new(ids)
}

/// Byte-level BPE of a `tokenizer.json`; `abyssal.Tokenizer` is its public face.
#[pyclass(frozen, module = "abyssal._core")]
pub(crate) struct Tokenizer {
    inner: abyssal_tokenizer::Tokenizer,
}

impl Tokenizer {
    fn ids(&self, py: Python<'_>, text: &str, parse_special: bool) -> Result<Vec<u32>, BindError> {
        let mut ids = Vec::new();
        encode_with(py, text.len(), |stop| {
            self.inner.encode(text, parse_special, stop, &mut ids)
        })?;
        Ok(ids)
    }

    fn many(
        &self,
        py: Python<'_>,
        texts: &[PyBackedStr],
        parse_special: bool,
        threads: usize,
    ) -> Result<Vec<Vec<u32>>, BindError> {
        let texts: Vec<&str> = texts.iter().map(|text| &**text).collect();
        let length: usize = texts.iter().map(|text| text.len()).sum();
        let threads = if length < SMALL_BATCH { 1 } else { threads };
        run(py, || {
            interruptible(|stop| {
                let lists = self.inner.encode_many(&texts, parse_special, threads, stop);
                lists.map_err(|(place, error)| Placed(place, error))
            })
        })
    }
}

#[pymethods]
impl Tokenizer {
    /// What kinds of tokenizer there are, for messages.
    #[classattr]
    const SUPPORTED: &'static str = abyssal_tokenizer::SUPPORTED;

    /// Reads the bytes of a `tokenizer.json`.
    #[staticmethod]
    fn from_json(py: Python<'_>, data: &[u8]) -> Result<Self, BindError> {
        run(py, || {
            Ok(Self {
                inner: abyssal_tokenizer::Tokenizer::from_json(data)?,
            })
        })
    }

    /// Reads the bytes of a `tiktoken.model`, with the control tokens `(id, content, special)` of its configuration.
    #[staticmethod]
    fn from_tiktoken(
        py: Python<'_>,
        data: &[u8],
        controls: Vec<(u32, String, bool)>,
    ) -> Result<Self, BindError> {
        run(py, || {
            Ok(Self {
                inner: abyssal_tokenizer::Tokenizer::from_tiktoken(data, &controls)?,
            })
        })
    }

    /// Most bytes of memory that a tokenizer's caches take.
    #[classattr]
    const CACHE_BYTES: usize = abyssal_tokenizer::CACHE_BYTES;

    /// Bytes of memory that the caches take now.
    #[getter]
    fn cache_bytes(&self) -> usize {
        self.inner.cache_bytes()
    }

    /// The ids of a text.
    #[pyo3(signature = (text, parse_special=true))]
    fn encode(
        &self,
        py: Python<'_>,
        text: &str,
        parse_special: bool,
    ) -> Result<Vec<u32>, BindError> {
        self.ids(py, text, parse_special)
    }

    /// The ids of a text as the bytes of an int32 array.
    #[pyo3(signature = (text, parse_special=true))]
    fn encode_to_buffer(
        &self,
        py: Python<'_>,
        text: &str,
        parse_special: bool,
    ) -> Result<IdBuffer, BindError> {
        Ok(IdBuffer::new(self.ids(py, text, parse_special)?))
    }

    /// The ids of several texts.
    #[pyo3(signature = (texts, parse_special=true, threads=0))]
    fn encode_batch(
        &self,
        py: Python<'_>,
        texts: Vec<PyBackedStr>,
        parse_special: bool,
        threads: usize,
    ) -> Result<Vec<Vec<u32>>, BindError> {
        self.many(py, &texts, parse_special, threads)
    }

    /// The ids of several texts as the bytes of an int32 array, and how many each has.
    #[pyo3(signature = (texts, parse_special=true, threads=0))]
    fn encode_batch_to_buffer(
        &self,
        py: Python<'_>,
        texts: Vec<PyBackedStr>,
        parse_special: bool,
        threads: usize,
    ) -> Result<(IdBuffer, Vec<usize>), BindError> {
        let lists = self.many(py, &texts, parse_special, threads)?;
        let counts = lists.iter().map(Vec::len).collect();
        Ok((buffer(lists), counts))
    }

    /// The ids of a file's text as the bytes of an int32 array. The file is mapped, not read.
    #[pyo3(signature = (path, parse_special=true, threads=0))]
    fn encode_file_to_buffer(
        &self,
        py: Python<'_>,
        path: PathBuf,
        parse_special: bool,
        threads: usize,
    ) -> Result<IdBuffer, BindError> {
        let ids = run(py, || {
            let bytes = FileBytes::open(&path, true).map_err(PyErr::from)?;
            interruptible(|stop| {
                self.inner
                    .encode_utf8(bytes.as_slice(), parse_special, threads, stop)
            })
        })?;
        Ok(IdBuffer::new(ids))
    }

    /// The ids of any bytes; no added token is recognized.
    fn encode_bytes(&self, py: Python<'_>, data: &[u8]) -> Result<Vec<u32>, BindError> {
        let mut ids = Vec::new();
        encode_with(py, data.len(), |stop| {
            self.inner.encode_bytes(data, stop, &mut ids)
        })?;
        Ok(ids)
    }

    /// How many ids a text has.
    #[pyo3(signature = (text, parse_special=true))]
    fn count(&self, py: Python<'_>, text: &str, parse_special: bool) -> Result<usize, BindError> {
        encode_with(py, text.len(), |stop| {
            self.inner.count(text, parse_special, stop)
        })
    }

    /// The text of ids.
    #[pyo3(signature = (ids, skip_special=false))]
    fn decode(
        &self,
        py: Python<'_>,
        ids: Vec<i64>,
        skip_special: bool,
    ) -> Result<String, BindError> {
        run(py, || Ok(self.inner.decode(&ids, skip_special)?))
    }

    /// The bytes of ids.
    #[pyo3(signature = (ids, skip_special=false))]
    fn decode_bytes<'py>(
        &self,
        py: Python<'py>,
        ids: Vec<i64>,
        skip_special: bool,
    ) -> Result<Bound<'py, PyBytes>, BindError> {
        let bytes = run(py, || Ok(self.inner.decode_bytes(&ids, skip_special)?))?;
        Ok(PyBytes::new(py, &bytes))
    }

    /// Number of tokens, added ones included.
    #[getter]
    fn vocab_size(&self) -> usize {
        self.inner.vocab_size()
    }

    /// The largest id.
    #[getter]
    fn max_id(&self) -> u32 {
        self.inner.max_id()
    }

    /// The id of a token as the file spells it, or None.
    fn token_to_id(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }

    /// The token of an id as the file spells it, or None.
    fn id_to_token(&self, id: i64) -> Option<&str> {
        self.inner.id_to_token(u32::try_from(id).ok()?)
    }

    /// `(id, content, special)` of each added token, in the order of the file.
    fn added_tokens(&self) -> Vec<(u32, &str, bool)> {
        self.inner.added_tokens().collect()
    }

    /// An encoder that takes a text in parts.
    #[pyo3(signature = (parse_special=true))]
    fn encode_stream(slf: Bound<'_, Self>, parse_special: bool) -> EncodeStream {
        let inner = abyssal_tokenizer::EncodeStream::new(parse_special);
        EncodeStream {
            tokenizer: slf.unbind(),
            inner: Mutex::new(inner),
        }
    }

    /// The ids of a text, and the places in characters where each token's begin and end.
    #[pyo3(signature = (text, parse_special=true))]
    fn encode_with_offsets(
        &self,
        py: Python<'_>,
        text: &str,
        parse_special: bool,
    ) -> Result<(Vec<u32>, Vec<Place>), BindError> {
        encode_with(py, text.len(), |stop| {
            self.inner.encode_with_offsets(text, parse_special, stop)
        })
    }

    /// A decoder that takes one id at a time.
    #[pyo3(signature = (skip_special=false))]
    fn stream(slf: Bound<'_, Self>, skip_special: bool) -> DecodeStream {
        let inner = abyssal_tokenizer::DecodeStream::new(skip_special);
        DecodeStream {
            tokenizer: slf.unbind(),
            inner: Mutex::new(inner),
        }
    }
}

/// Encodes a text that comes in parts.
#[pyclass(frozen, module = "abyssal._core")]
pub(crate) struct EncodeStream {
    tokenizer: Py<Tokenizer>,
    inner: Mutex<abyssal_tokenizer::EncodeStream>,
}

#[pymethods]
impl EncodeStream {
    /// Takes the next part and returns the ids that are now certain.
    fn push(&self, text: &str) -> Result<Vec<u32>, BindError> {
        guard(|| {
            let mut ids = Vec::new();
            let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
            inner.push(&self.tokenizer.get().inner, text, &mut ids)?;
            Ok(ids)
        })
    }

    /// Returns the ids of what still waited, and begins anew.
    fn finish(&self) -> Result<Vec<u32>, BindError> {
        guard(|| {
            let mut ids = Vec::new();
            let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
            inner.finish(&self.tokenizer.get().inner, &mut ids)?;
            Ok(ids)
        })
    }
}

/// Decodes one id at a time and never splits a character.
#[pyclass(frozen, module = "abyssal._core")]
pub(crate) struct DecodeStream {
    tokenizer: Py<Tokenizer>,
    inner: Mutex<abyssal_tokenizer::DecodeStream>,
}

#[pymethods]
impl DecodeStream {
    /// Takes the next id and returns the text that is now certain.
    fn push(&self, id: i64) -> Result<String, BindError> {
        guard(|| {
            // A panic inside leaves at worst a wrong beginning of a character behind.
            let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
            Ok(inner.push(&self.tokenizer.get().inner, id)?)
        })
    }

    /// Returns what still waited for the rest of its character, and begins anew.
    fn finish(&self) -> String {
        self.inner
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .finish()
    }
}
