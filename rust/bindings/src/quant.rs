//! Python binding of `abyssal-quant`.
