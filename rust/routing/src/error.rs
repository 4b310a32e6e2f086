//! What can be wrong with a routing call.

use std::fmt;

/// A routing call that was refused; nothing was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Error {
    /// There are no experts to choose from.
    NoExperts,
    /// More experts than an index can name.
    TooManyExperts {
        /// Number of experts asked for.
        num_experts: usize,
    },
    /// The groups do not divide the experts.
    Groups {
        /// Number of groups asked for.
        num_groups: usize,
        /// Number of experts.
        num_experts: usize,
    },
    /// More groups kept than there are, or none.
    TopGroups {
        /// Number of groups to keep.
        top_groups: usize,
        /// Number of groups.
        num_groups: usize,
    },
    /// More experts per token than may be chosen, or none.
    TopK {
        /// Number of experts per token.
        top_k: usize,
        /// Largest number allowed.
        allowed: usize,
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
    /// An expert index out of range.
    Expert {
        /// The index.
        index: i64,
        /// Number of experts.
        num_experts: usize,
    },
    /// A token id outside the table.
    Token {
        /// The token id.
        id: i64,
        /// Rows of the table.
        rows: usize,
    },
    /// More indices than a 32-bit position can count.
    TooManyIndices {
        /// Number of indices.
        count: usize,
    },
}

/// The result of a routing call.
pub type Result<T> = std::result::Result<T, Error>;

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::NoExperts => write!(f, "number of experts is 0; at least 1 is needed"),
            Self::TooManyExperts { num_experts } => {
                write!(
                    f,
                    "number of experts is {num_experts}; at most {} are allowed",
                    i32::MAX
                )
            }
            Self::Groups {
                num_groups,
                num_experts,
            } => {
                write!(
                    f,
                    "num_groups is {num_groups}; it must divide the {num_experts} experts"
                )
            }
            Self::TopGroups {
                top_groups,
                num_groups,
            } => {
                write!(
                    f,
                    "top_groups is {top_groups}; it must lie in 1..{num_groups}"
                )
            }
            Self::TopK { top_k, allowed } => {
                write!(f, "top_k is {top_k}; it must lie in 1..{allowed}")
            }
            Self::Length {
                name,
                expected,
                actual,
            } => {
                write!(f, "{name} has {actual} elements; it must have {expected}")
            }
            Self::Expert { index, num_experts } => {
                write!(
                    f,
                    "expert is {index}; it must lie in 0..{}",
                    num_experts.saturating_sub(1)
                )
            }
            Self::Token { id, rows } => {
                write!(
                    f,
                    "token id is {id}; it must lie in 0..{}",
                    rows.saturating_sub(1)
                )
            }
            Self::TooManyIndices { count } => {
                write!(
                    f,
                    "number of indices is {count}; at most {} are allowed",
                    i32::MAX
                )
            }
        }
    }
}

impl std::error::Error for Error {}

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
