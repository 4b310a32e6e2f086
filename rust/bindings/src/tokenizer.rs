//! Python binding of `abyssal-tokenizer`.
