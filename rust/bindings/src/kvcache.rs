//! Python binding of `abyssal-kvcache`.
