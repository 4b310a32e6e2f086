//! Byte-level BPE for the DeepSeek family: load, pre-tokenize, merge, decode.
//!
//! A [`Tokenizer`] comes from the text of a Hugging Face `tokenizer.json`. The pre-tokenizers are scanners written by
//! hand, recognized from the file's own description; there is no pattern engine.
//!
//! ```text
//! text -> added tokens (two passes) -> pieces (modern.rs, classic.rs, cased.rs, staged.rs) -> cache.rs, or merges (bpe.rs) -> ids
//! ids -> bytes -> text (decode.rs)
//! ```
#![deny(unsafe_code)]

mod added;
mod batch;
mod blocks;
mod bpe;
mod bytelevel;
mod cache;
mod cased;
mod classic;
mod cut;
mod decode;
mod encoder;
mod error;
mod json;
mod lines;
mod load;
mod merges;
mod modern;
mod offsets;
mod ordered;
mod pieces;
mod pretokenize;
#[allow(
    unsafe_code,
    reason = "the one file that may call instructions by name"
)]
mod simd;
mod staged;
mod symbols;
mod tiktoken;
mod tokenizer;
mod unicode;
mod unicode_cases;
mod unicode_ranges;
mod whole;

pub use cache::CACHE_BYTES;
pub use cut::EncodeStream;
pub use decode::DecodeStream;
pub use error::{Error, Result, SUPPORTED};
pub use offsets::Place;
pub use tiktoken::Control;
pub use tokenizer::{Stop, Tokenizer};
