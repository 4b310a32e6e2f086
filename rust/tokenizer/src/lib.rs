//! Byte-level BPE: load, pre-tokenize, merge, decode.
