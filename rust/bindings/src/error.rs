//! The one place where Rust errors become Python exceptions.
//!
//! Every `#[pyfunction]` of this crate returns `Result<_, BindError>`, so a binding file contains `?` and nothing
//! else about errors. Wrong type, dtype or device becomes `TypeError`; wrong shape, range or memory layout becomes
//! `ValueError`; an exhausted page pool becomes `abyssal.OutOfPages`; a saved prefix that is refused becomes
//! `abyssal.errors.SavedPrefixError`, and what the system refuses an `OSError`; a panic, which is a bug of this package,
//! becomes `RuntimeError` (and not pyo3's `PanicException`, which `except Exception` would let through).

use std::fmt::Display;
use std::io;

use pyo3::exceptions::{PyRuntimeError, PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::{PyErr, create_exception};

create_exception!(
    abyssal._core,
    OutOfPages,
    PyRuntimeError,
    "The page pool has fewer free pages than a step asked for; nothing was changed."
);

/// What went wrong in a call from Python.
#[derive(Debug)]
pub(crate) enum BindError {
    /// Not the kind of object or element type that the call takes.
    Type(String),
    /// The right kind of object with an unusable value, shape or layout.
    Value(String),
    /// The page pool is exhausted.
    #[allow(dead_code, reason = "constructed from the page cache's error only")]
    OutOfPages(String),
    /// A saved prefix is not what it should be.
    SavedPrefix(String),
    /// The system refused an operation on a file.
    Io(io::Error),
    /// A Rust panic, caught at the boundary.
    Panic(String),
    /// An exception that Python raised while we were calling it.
    Python(PyErr),
}

impl BindError {
    /// A `TypeError` with this message.
    pub(crate) fn type_error(message: impl Display) -> Self {
        Self::Type(message.to_string())
    }

    /// A `ValueError` with this message.
    pub(crate) fn value_error(message: impl Display) -> Self {
        Self::Value(message.to_string())
    }
}

impl From<io::Error> for BindError {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

impl From<PyErr> for BindError {
    fn from(error: PyErr) -> Self {
        Self::Python(error)
    }
}

impl From<BindError> for PyErr {
    fn from(error: BindError) -> Self {
        match error {
            BindError::Type(message) => PyTypeError::new_err(message),
            BindError::Value(message) => PyValueError::new_err(message),
            BindError::OutOfPages(message) => OutOfPages::new_err(message),
            BindError::SavedPrefix(message) => {
                let class = |py: Python<'_>| -> PyResult<PyErr> {
                    let class = py.import("abyssal.errors")?.getattr("SavedPrefixError")?;
                    Ok(PyErr::from_value(class.call1((message,))?))
                };
                Python::attach(class).unwrap_or_else(|error| error)
            }
            BindError::Io(error) => error.into(),
            BindError::Panic(message) => PyRuntimeError::new_err(format!(
                "internal error in abyssal._core, please report it: {message}"
            )),
            BindError::Python(error) => error,
        }
    }
}
