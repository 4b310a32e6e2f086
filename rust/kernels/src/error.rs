//! What can be wrong with a call.

use std::fmt;

/// A call that was refused; nothing was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Error {
    /// A matrix without columns.
    NoColumns,
    /// Columns that do not fall into whole blocks of 32.
    Columns {
        /// Number of columns.
        columns: usize,
    },
    /// A slice has the wrong length.
    Length {
        /// Which argument.
        name: &'static str,
        /// Length needed.
        expected: usize,
        /// Length given.
        actual: usize,
    },
    /// Three matrices, `(rows, columns)`, that are no expert.
    Expert {
        /// The gate projection's.
        gate: (usize, usize),
        /// The up projection's.
        up: (usize, usize),
        /// The down projection's.
        down: (usize, usize),
    },
    /// Indices that cannot be grouped.
    Routing(abyssal_routing::Error),
}

/// The result of a call.
pub type Result<T> = std::result::Result<T, Error>;

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::NoColumns => write!(f, "the weight has 0 columns; at least 1 is needed"),
            Self::Columns { columns } => write!(
                f,
                "the weight has {columns} columns; a positive multiple of 32 is needed"
            ),
            Self::Expert { gate, up, down } => write!(
                f,
                "gate is {gate:?}, up {up:?} and down {down:?}; up must be as gate, down its transpose"
            ),
            Self::Routing(error) => error.fmt(f),
            Self::Length {
                name,
                expected,
                actual,
            } => write!(f, "{name} has {actual} elements; it must have {expected}"),
        }
    }
}

impl std::error::Error for Error {}

impl From<abyssal_routing::Error> for Error {
    fn from(error: abyssal_routing::Error) -> Self {
        Self::Routing(error)
    }
}

/// Checks a slice's length.
pub(crate) fn expect_length(name: &'static str, expected: usize, actual: usize) -> Result<()> {
    if expected == actual {
        Ok(())
    } else {
        Err(Error::Length {
            name,
            expected,
            actual,
        })
    }
}
