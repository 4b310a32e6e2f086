//! Byte-level BPE for the DeepSeek family: load, pre-tokenize, merge, decode.
//!
//! A [`Tokenizer`] comes from the text of a Hugging Face `tokenizer.json`. The pre-tokenizers are scanners written by
//! hand, recognized from the file's own description; there is no pattern engine.
//!
//! ```text
//! text -> added tokens (two passes) -> pieces (modern.rs, staged.rs) -> whole piece, or merges (bpe.rs) -> ids
//! ids -> bytes -> text (decode.rs)
//! ```
#![forbid(unsafe_code)]

mod added;
mod bpe;
mod bytelevel;
mod decode;
mod error;
mod load;
mod modern;
mod pieces;
mod pretokenize;
mod staged;
mod tokenizer;
mod unicode;
mod unicode_ranges;

pub use decode::DecodeStream;
pub use error::{Error, Result, SUPPORTED};
pub use tokenizer::{Stop, Tokenizer};
