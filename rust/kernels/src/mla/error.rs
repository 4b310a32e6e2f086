//! What can be wrong with a call.

use std::fmt;

/// A call that was refused; nothing was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Error {
    /// A size is zero.
    Zero {
        /// Which one.
        name: &'static str,
    },
    /// The rotary part is not made of pairs.
    OddRope {
        /// Its width.
        rope: usize,
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
    /// A number of a span is out of range.
    Span {
        /// Which span.
        index: usize,
        /// Which number.
        name: &'static str,
        /// The number.
        value: i32,
        /// The smallest allowed.
        low: usize,
        /// The largest allowed.
        high: usize,
    },
    /// The spans do not cover the tokens.
    Uncovered {
        /// Tokens of the batch.
        tokens: usize,
        /// Tokens of the spans.
        covered: usize,
    },
    /// A block table is too short.
    Pages {
        /// Which span.
        index: usize,
        /// Pages needed.
        needed: usize,
        /// Pages given.
        given: usize,
    },
    /// A page id is not in the cache.
    Page {
        /// Which span.
        index: usize,
        /// Where in its block table.
        place: usize,
        /// The id.
        page: i32,
        /// Pages of the cache.
        num_pages: usize,
    },
    /// A slot is not in the cache.
    Slot {
        /// Which token.
        token: usize,
        /// Its slot.
        slot: i64,
        /// Slots of the cache.
        num_slots: usize,
    },
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Zero { name } => write!(f, "{name} is 0; at least 1 is needed"),
            Self::OddRope { rope } => {
                write!(
                    f,
                    "the rotary part has {rope} numbers; an even number is needed"
                )
            }
            Self::Length {
                name,
                expected,
                actual,
            } => write!(f, "{name} has {actual} elements; it must have {expected}"),
            Self::Span {
                index,
                name,
                value,
                low,
                high,
            } => write!(
                f,
                "the {name} of span {index} is {value}; it must lie in {low}..{high}"
            ),
            Self::Uncovered { tokens, covered } => {
                write!(f, "the spans cover {covered} tokens; there are {tokens}")
            }
            Self::Pages {
                index,
                needed,
                given,
            } => write!(
                f,
                "the block table of span {index} has {given} pages; it needs {needed}"
            ),
            Self::Page {
                index,
                place,
                page,
                num_pages,
            } => write!(
                f,
                "page {place} of span {index} is {page}; it must lie in 0..{num_pages}, that one excluded"
            ),
            Self::Slot {
                token,
                slot,
                num_slots,
            } => write!(
                f,
                "the slot of token {token} is {slot}; it must lie in 0..{num_slots}, that one excluded"
            ),
        }
    }
}

impl std::error::Error for Error {}

/// Checks a slice's length.
pub(super) fn expect_length(
    name: &'static str,
    expected: usize,
    actual: usize,
) -> Result<(), Error> {
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
