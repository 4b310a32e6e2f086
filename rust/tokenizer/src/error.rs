//! What can be wrong with a tokenizer file, a text or a token id.

use std::fmt;

/// Result of this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// A condition that stops loading, encoding or decoding.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Error {
    /// The file is not JSON.
    Json {
        /// The parser's own words.
        message: String,
    },
    /// A field is absent or of another type.
    Field {
        /// Path of the field in the file.
        field: String,
        /// What it has to be.
        expected: &'static str,
    },
    /// The file is well formed, and describes a tokenizer that this crate does not have.
    Unsupported {
        /// Path of the field in the file.
        field: String,
        /// What was found there, shortened.
        found: String,
    },
    /// A token id lies beyond what a table of tokens may span.
    IdTooLarge {
        /// The id.
        id: u64,
        /// The largest id allowed.
        limit: u32,
    },
    /// Two tokens claim one id.
    DuplicateId {
        /// The id.
        id: u32,
        /// The later claimant, shortened.
        token: String,
    },
    /// The vocabulary lists a token twice.
    DuplicateToken {
        /// The token, shortened.
        token: String,
        /// The two ids.
        ids: (u32, u32),
    },
    /// A line of a `tiktoken.model` is damaged.
    Line {
        /// Its number, counted from 1.
        number: usize,
        /// What it has to hold.
        expected: &'static str,
    },
    /// A list of the file is too long.
    TooMany {
        /// Path of the list.
        field: &'static str,
        /// Its length.
        count: usize,
        /// The largest length allowed.
        limit: usize,
    },
    /// An added token's id is not the one that its place in the file gives it.
    AddedTokenId {
        /// The token, shortened.
        token: String,
        /// The id that the file declares.
        declared: u32,
        /// The id that the vocabulary or the order of added tokens gives.
        actual: u32,
    },
    /// An added token is empty or too long.
    AddedTokenLength {
        /// Position in the list of added tokens.
        index: usize,
        /// Its length in bytes.
        length: usize,
        /// The largest length allowed.
        limit: usize,
    },
    /// A merge is not a pair of tokens.
    MergeForm {
        /// Position in the list of merges.
        index: usize,
    },
    /// A merge names or makes a token that the vocabulary lacks.
    MergeToken {
        /// Position in the list of merges.
        index: usize,
        /// The token, shortened.
        token: String,
    },
    /// The text holds a byte for which the vocabulary has no token.
    MissingByte {
        /// The byte.
        byte: u8,
    },
    /// One piece of the text has more bytes than places are counted for.
    PieceTooLong {
        /// Its length in bytes.
        length: usize,
        /// The largest length allowed.
        limit: usize,
    },
    /// A token id that no token has.
    UnknownId {
        /// The id.
        id: i64,
        /// The largest id of this tokenizer.
        max: u32,
    },
    /// The text is not UTF-8.
    NotUtf8 {
        /// The first byte that is not.
        at: usize,
    },
    /// Places were asked for in a text that is changed before it is encoded.
    Composed,
    /// The caller asked to stop.
    Interrupted,
}

/// The pre-tokenizers that exist here, for messages.
pub const SUPPORTED: &str = "byte-level BPE with the pre-tokenizer of DeepSeek V3, R1, V3.1, V3.2 and V4; \
     of DeepSeek LLM, V2 and V2-Lite; of DeepSeek Coder; of Qwen2, Llama 3 and GLM; \
     or Moonlight's and Kimi's tiktoken.model";

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Json { message } => write!(f, "not valid JSON: {message}"),
            Self::Field { field, expected } => write!(f, "{field} has to be {expected}"),
            Self::Unsupported { field, found } => {
                write!(
                    f,
                    "unsupported tokenizer: {field} is {found}; supported: {SUPPORTED}"
                )
            }
            Self::IdTooLarge { id, limit } => {
                write!(f, "token id {id} is above the largest id allowed, {limit}")
            }
            Self::DuplicateId { id, token } => {
                write!(
                    f,
                    "token id {id} is claimed twice, the second time by {token}"
                )
            }
            Self::DuplicateToken { token, ids } => {
                write!(f, "{token} is listed twice, with the ids {} and {}", ids.0, ids.1)
            }
            Self::Line { number, expected } => {
                write!(f, "line {number} has to hold {expected}")
            }
            Self::TooMany {
                field,
                count,
                limit,
            } => write!(f, "{field} has {count} entries, allowed are {limit}"),
            Self::AddedTokenId {
                token,
                declared,
                actual,
            } => write!(
                f,
                "added token {token} declares id {declared}, but its place in the file gives it {actual}"
            ),
            Self::AddedTokenLength {
                index,
                length,
                limit,
            } => write!(
                f,
                "added token {index} has {length} bytes, allowed are 1 to {limit}"
            ),
            Self::MergeForm { index } => {
                write!(
                    f,
                    "merge {index} has to be two tokens, as \"a b\" or [\"a\", \"b\"]"
                )
            }
            Self::MergeToken { index, token } => {
                write!(
                    f,
                    "merge {index} needs the token {token}, which the vocabulary lacks"
                )
            }
            Self::MissingByte { byte } => {
                write!(
                    f,
                    "the text holds the byte {byte:#04x}, for which the vocabulary has no token"
                )
            }
            Self::PieceTooLong { length, limit } => {
                write!(
                    f,
                    "the text holds a piece of {length} bytes, allowed are {limit}"
                )
            }
            Self::UnknownId { id, max } => {
                write!(
                    f,
                    "token id {id} is not in this tokenizer, whose largest id is {max}"
                )
            }
            Self::NotUtf8 { at } => write!(f, "byte {at} is not UTF-8"),
            Self::Composed => f.write_str(
                "this tokenizer brings the text to normalization form C first, so its tokens have no places in it",
            ),
            Self::Interrupted => f.write_str("interrupted"),
        }
    }
}

impl std::error::Error for Error {}

/// How many characters of a file's content a message repeats.
const SHOWN: usize = 80;

/// Quotes `text` for a message, cut to a length that a terminal can show.
pub(crate) fn shorten(text: &str) -> String {
    let head: String = text.chars().take(SHOWN).collect();
    if head.len() == text.len() {
        format!("{text:?}")
    } else {
        format!("{head:?}... ({} bytes)", text.len())
    }
}

/// As [`shorten`], for what is JSON already and needs no quotes.
pub(crate) fn shorten_json(value: &serde_json::Value) -> String {
    let text = value.to_string();
    let head: String = text.chars().take(SHOWN).collect();
    if head.len() == text.len() {
        text
    } else {
        format!("{head}... ({} bytes)", text.len())
    }
}
