//! Python binding of `abyssal-routing`.
