//! What can go wrong, with the numbers that say why.

use std::{fmt, io};

/// The result of a cache operation.
pub type Result<T> = core::result::Result<T, Error>;

/// Why a call was refused. Every refused call leaves the cache exactly as it was.
#[derive(Debug, Clone, PartialEq, Eq)]
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
    /// Saved are whole pages.
    PartialPage {
        /// Tokens given.
        tokens: usize,
        /// Tokens in a page.
        page_size: usize,
    },
    /// The bytes of the pages to be saved are no whole number for each page.
    PageBytes {
        /// Bytes given.
        bytes: usize,
        /// Pages that the tokens fill.
        pages: usize,
    },
    /// A text of a saved prefix is too long.
    SavedText {
        /// Which text.
        what: &'static str,
        /// Its length in bytes.
        length: usize,
    },
    /// The file does not begin like a saved prefix.
    NotSaved,
    /// The saved prefix has a version that is not known.
    SavedVersion {
        /// The version found.
        found: u32,
    },
    /// The header of the saved prefix contradicts itself.
    SavedHeader,
    /// The saved prefix is shorter or longer than its header says.
    SavedLength {
        /// Bytes that the header says.
        expected: u64,
        /// Bytes of the file.
        actual: u64,
    },
    /// The bytes of the saved prefix are not those that were written.
    SavedChecksum,
    /// The saved prefix belongs to something else.
    SavedOther {
        /// What differs.
        what: &'static str,
        /// The caller's.
        expected: String,
        /// The file's.
        found: String,
    },
    /// The system refused an operation on a file.
    Io {
        /// What was to be done.
        what: &'static str,
        /// The kind of the system's error.
        kind: io::ErrorKind,
        /// The system's words.
        message: String,
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

impl Error {
    pub(crate) fn io(what: &'static str, error: &io::Error) -> Self {
        Self::Io {
            what,
            kind: error.kind(),
            message: error.to_string(),
        }
    }

    /// Whether a saved prefix is refused for what its file holds.
    pub fn is_about_saved_file(&self) -> bool {
        matches!(
            self,
            Self::NotSaved
                | Self::SavedVersion { .. }
                | Self::SavedHeader
                | Self::SavedLength { .. }
                | Self::SavedChecksum
                | Self::SavedOther { .. }
        )
    }
}

impl fmt::Display for Error {
    #[allow(clippy::too_many_lines, reason = "one message after the other")]
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
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
            Self::PartialPage { tokens, page_size } => {
                write!(
                    f,
                    "token_ids has {tokens} entries, expected a multiple of the page size {page_size}"
                )
            }
            Self::PageBytes { bytes, pages } => {
                write!(
                    f,
                    "pages has {bytes} bytes, expected a multiple of {pages}, the number of pages"
                )
            }
            Self::SavedText { what, length } => {
                write!(
                    f,
                    "{what} has {length} bytes, allowed are 0 to {}",
                    u32::MAX
                )
            }
            Self::NotSaved => f.write_str("not a saved prefix: the file begins with other bytes"),
            Self::SavedVersion { found } => {
                write!(
                    f,
                    "the saved prefix has version {found}, known is version 1"
                )
            }
            Self::SavedHeader => f.write_str("the header of the saved prefix is damaged"),
            Self::SavedLength { expected, actual } => {
                write!(
                    f,
                    "the saved prefix has {actual} bytes, expected {expected}: it was cut or extended"
                )
            }
            Self::SavedChecksum => {
                f.write_str("the saved prefix is damaged: its checksum differs from its content's")
            }
            Self::SavedOther {
                what,
                expected,
                found,
            } => {
                write!(
                    f,
                    "the saved prefix has {what} {found:?}, expected {expected:?}"
                )
            }
            Self::Io { what, message, .. } => write!(f, "cannot {what} the file: {message}"),
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
    #[allow(clippy::too_many_lines, reason = "one message after the other")]
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
                Error::PartialPage {
                    tokens: 5,
                    page_size: 4,
                },
                "token_ids has 5 entries, expected a multiple of the page size 4",
            ),
            (
                Error::PageBytes { bytes: 5, pages: 2 },
                "pages has 5 bytes, expected a multiple of 2, the number of pages",
            ),
            (
                Error::SavedText {
                    what: "dtype",
                    length: 1 << 32,
                },
                "dtype has 4294967296 bytes, allowed are 0 to 4294967295",
            ),
            (
                Error::NotSaved,
                "not a saved prefix: the file begins with other bytes",
            ),
            (
                Error::SavedVersion { found: 2 },
                "the saved prefix has version 2, known is version 1",
            ),
            (
                Error::SavedHeader,
                "the header of the saved prefix is damaged",
            ),
            (
                Error::SavedLength {
                    expected: 9,
                    actual: 8,
                },
                "the saved prefix has 8 bytes, expected 9: it was cut or extended",
            ),
            (
                Error::SavedChecksum,
                "the saved prefix is damaged: its checksum differs from its content's",
            ),
            (
                Error::SavedOther {
                    what: "dtype",
                    expected: "bf16".to_owned(),
                    found: "fp8".to_owned(),
                },
                "the saved prefix has dtype \"fp8\", expected \"bf16\"",
            ),
            (
                Error::io("create", &std::io::Error::other("no room")),
                "cannot create the file: no room",
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
