//! CPU arithmetic on weights.
#![cfg_attr(test, allow(clippy::unwrap_used, reason = "a test may fail"))]

pub mod gate;
