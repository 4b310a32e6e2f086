//! Python binding of `abyssal-tokenizer`.
#![allow(
    clippy::needless_pass_by_value,
    reason = "arguments are extracted by value"
)]

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use abyssal_tokenizer::Error;
use pyo3::prelude::*;
use pyo3::pybacked::PyBackedStr;
use pyo3::types::{PyByteArray, PyBytes};

use crate::error::BindError;
use crate::{guard, run};

/// Inputs below this many bytes take less time than releasing the interpreter is worth.
const SHORT: usize = 512;
/// How often a long encoding looks for Ctrl-C.
const SIGNAL_INTERVAL: Duration = Duration::from_millis(100);

impl From<Error> for BindError {
    fn from(error: Error) -> Self {
        Self::value_error(error)
    }
}

/// Runs an encoding, without the interpreter when it is long, and lets Ctrl-C end it.
fn encode_with(
    py: Python<'_>,
    length: usize,
    encode: impl FnOnce(&mut dyn FnMut() -> bool) -> Result<(), Error> + Send,
) -> Result<(), BindError> {
    let work = || {
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
            None => Ok(result?),
        }
    };
    if length < SHORT {
        guard(work)
    } else {
        run(py, work)
    }
}

/// Byte-level BPE of a `tokenizer.json`; `abyssal.Tokenizer` is its public face.
#[pyclass(frozen, module = "abyssal._core")]
pub(crate) struct Tokenizer {
    inner: abyssal_tokenizer::Tokenizer,
}

impl Tokenizer {
    fn ids(&self, py: Python<'_>, text: &str, parse_special: bool) -> Result<Vec<u32>, BindError> {
        let mut ids = Vec::with_capacity(text.len() / 3);
        encode_with(py, text.len(), |stop| {
            self.inner.encode(text, parse_special, stop, &mut ids)
        })?;
        Ok(ids)
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
    fn encode_to_buffer<'py>(
        &self,
        py: Python<'py>,
        text: &str,
        parse_special: bool,
    ) -> Result<Bound<'py, PyByteArray>, BindError> {
        let ids = self.ids(py, text, parse_special)?;
        let buffer = PyByteArray::new_with(py, ids.len() * 4, |bytes| {
            let (words, _) = bytes.as_chunks_mut::<4>();
            for (word, id) in words.iter_mut().zip(&ids) {
                *word = id.to_ne_bytes();
            }
            Ok(())
        })?;
        Ok(buffer)
    }

    /// The ids of several texts.
    #[pyo3(signature = (texts, parse_special=true))]
    fn encode_batch(
        &self,
        py: Python<'_>,
        texts: Vec<PyBackedStr>,
        parse_special: bool,
    ) -> Result<Vec<Vec<u32>>, BindError> {
        let length = texts.iter().map(|text| text.len()).sum();
        let mut batch: Vec<Vec<u32>> = Vec::with_capacity(texts.len());
        encode_with(py, length, |stop| {
            for text in &texts {
                let mut ids = Vec::with_capacity(text.len() / 3);
                if stop() {
                    return Err(Error::Interrupted);
                }
                self.inner.encode(text, parse_special, stop, &mut ids)?;
                batch.push(ids);
            }
            Ok(())
        })?;
        Ok(batch)
    }

    /// The ids of any bytes; no added token is recognized.
    fn encode_bytes(&self, py: Python<'_>, data: &[u8]) -> Result<Vec<u32>, BindError> {
        let mut ids = Vec::with_capacity(data.len() / 3);
        encode_with(py, data.len(), |stop| {
            self.inner.encode_bytes(data, stop, &mut ids)
        })?;
        Ok(ids)
    }

    /// How many ids a text has.
    #[pyo3(signature = (text, parse_special=true))]
    fn count(&self, py: Python<'_>, text: &str, parse_special: bool) -> Result<usize, BindError> {
        Ok(self.ids(py, text, parse_special)?.len())
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
