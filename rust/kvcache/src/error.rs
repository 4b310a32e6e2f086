//! What can go wrong, with the numbers that say why.

use core::fmt;

/// The result of a cache operation.
pub type Result<T> = core::result::Result<T, Error>;

/// Why a call was refused. Every refused call leaves the cache exactly as it was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Error {
    /// A cache needs at least one page, and page ids must fit an `i32` block table.
    NumPages {
        /// The number of pages asked for.
        asked: usize,
    },
    /// A page holds at least one token, and at most `u32::MAX` of them.
    PageSize {
        /// The page size asked for.
        asked: usize,
    },
    /// The step needs more pages than are free.
    OutOfPages {
        /// Pages that the whole step needs.
        asked: u64,
        /// Pages that are free.
        free: u64,
    },
    /// The handle was never given out, or its sequence is closed.
    StaleHandle {
        /// The handle as the caller holds it.
        handle: u64,
    },
    /// The same sequence appears twice in one call.
    RepeatedHandle {
        /// The handle that appears twice.
        handle: u64,
    },
    /// Two arrays that must have one entry per sequence differ in length.
    Lengths {
        /// The name of the array that does not fit.
        what: &'static str,
        /// Entries expected.
        expected: usize,
        /// Entries found.
        actual: usize,
    },
    /// A row of the block table is too short for a sequence.
    TableWidth {
        /// Pages of the sequence after the step.
        pages: usize,
        /// Entries of a row.
        width: usize,
    },
    /// `computed` lies outside what was computed before and what is reserved.
    Computed {
        /// The count given.
        given: u64,
        /// Tokens computed so far: the least count allowed.
        computed: u64,
        /// Tokens reserved: the greatest count allowed.
        reserved: u64,
    },
    /// The number of token ids is not that of the tokens whose ids are missing.
    TokenIds {
        /// Ids given.
        given: usize,
        /// Tokens up to `computed` whose ids neither `open` nor an earlier commit told.
        expected: u64,
    },
    /// A row of the block table cannot have so many entries of this sequence.
    Written {
        /// The count given.
        given: i32,
        /// Pages of the sequence before the step.
        pages: usize,
    },
    /// Cached tokens cannot be a multiple of 0.
    MultipleOf,
    /// A sequence with reserved tokens that are not computed cannot be forked.
    ForkUncomputed {
        /// Tokens computed.
        computed: u64,
        /// Tokens reserved.
        reserved: u64,
    },
    /// `audit` found the cache inconsistent.
    Corrupt {
        /// The rule that does not hold.
        rule: &'static str,
        /// The page or slot at which it does not hold.
        at: usize,
        /// The value the rule asks for.
        expected: u64,
        /// The value found.
        actual: u64,
    },
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::NumPages { asked } => {
                write!(f, "num_pages is {asked}, allowed are 1 to {}", i32::MAX)
            }
            Self::PageSize { asked } => {
                write!(f, "page_size is {asked}, allowed are 1 to {}", u32::MAX)
            }
            Self::OutOfPages { asked, free } => {
                write!(f, "out of pages: {asked} asked, {free} free")
            }
            Self::StaleHandle { handle } => {
                write!(f, "handle {handle} names no open sequence")
            }
            Self::RepeatedHandle { handle } => {
                write!(f, "handle {handle} appears twice in one call")
            }
            Self::Lengths {
                what,
                expected,
                actual,
            } => {
                write!(
                    f,
                    "{what} has {actual} entries, expected {expected}, one per handle"
                )
            }
            Self::TableWidth { pages, width } => {
                write!(
                    f,
                    "a sequence of {pages} pages does not fit a block table of width {width}"
                )
            }
            Self::Computed {
                given,
                computed,
                reserved,
            } => {
                write!(
                    f,
                    "computed is {given}, allowed are {computed} (computed before) to {reserved} (reserved)"
                )
            }
            Self::TokenIds { given, expected } => {
                write!(
                    f,
                    "token_ids has {given} entries, expected {expected}: the computed tokens whose ids are not known"
                )
            }
            Self::Written { given, pages } => {
                write!(
                    f,
                    "written is {given}, allowed are 0 to {pages} (pages of the sequence)"
                )
            }
            Self::MultipleOf => f.write_str("multiple_of is 0, allowed are 1 and more"),
            Self::ForkUncomputed { computed, reserved } => {
                write!(
                    f,
                    "cannot fork: {computed} of {reserved} reserved tokens are computed"
                )
            }
            Self::Corrupt {
                rule,
                at,
                expected,
                actual,
            } => {
                write!(
                    f,
                    "audit: {rule} at {at}: expected {expected}, found {actual}"
                )
            }
        }
    }
}

impl core::error::Error for Error {}

#[cfg(test)]
mod tests {
    use super::Error;

    #[test]
    fn every_message_carries_its_numbers() {
        let cases = [
            (
                Error::NumPages { asked: 0 },
                "num_pages is 0, allowed are 1 to 2147483647",
            ),
            (
                Error::PageSize { asked: 0 },
                "page_size is 0, allowed are 1 to 4294967295",
            ),
            (
                Error::OutOfPages { asked: 9, free: 4 },
                "out of pages: 9 asked, 4 free",
            ),
            (
                Error::StaleHandle { handle: 7 },
                "handle 7 names no open sequence",
            ),
            (
                Error::RepeatedHandle { handle: 7 },
                "handle 7 appears twice in one call",
            ),
            (
                Error::Lengths {
                    what: "counts",
                    expected: 2,
                    actual: 3,
                },
                "counts has 3 entries, expected 2, one per handle",
            ),
            (
                Error::TableWidth { pages: 5, width: 4 },
                "a sequence of 5 pages does not fit a block table of width 4",
            ),
            (
                Error::Computed {
                    given: 9,
                    computed: 2,
                    reserved: 8,
                },
                "computed is 9, allowed are 2 (computed before) to 8 (reserved)",
            ),
            (
                Error::TokenIds {
                    given: 3,
                    expected: 2,
                },
                "token_ids has 3 entries, expected 2: the computed tokens whose ids are not known",
            ),
            (
                Error::Written { given: 5, pages: 4 },
                "written is 5, allowed are 0 to 4 (pages of the sequence)",
            ),
            (
                Error::MultipleOf,
                "multiple_of is 0, allowed are 1 and more",
            ),
            (
                Error::ForkUncomputed {
                    computed: 2,
                    reserved: 8,
                },
                "cannot fork: 2 of 8 reserved tokens are computed",
            ),
            (
                Error::Corrupt {
                    rule: "reference count",
                    at: 3,
                    expected: 1,
                    actual: 2,
                },
                "audit: reference count at 3: expected 1, found 2",
            ),
        ];
        for (error, message) in cases {
            assert_eq!(error.to_string(), message);
        }
    }
}
