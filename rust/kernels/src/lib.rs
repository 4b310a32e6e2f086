//! CPU arithmetic on weights as they are stored, and the resident thread pool it runs on.
//!
//! Weights are read as their checkpoint stores them and never repacked; it is the activation that is laid out to match.
//! Within an instruction tier every result's operations follow from its own row alone, so its bits depend neither on
//! the other rows nor on the threads.
#![cfg_attr(test, allow(clippy::unwrap_used, reason = "a test may fail"))]

mod activation;
mod avx2;
mod avx512;
pub mod decoder;
mod error;
mod experts;
pub mod gate;
mod greedy;
mod lanes;
mod linear;
mod matrix;
mod memory;
pub mod mla;
mod mxfp4;
mod mxfp4_order;
mod neon;
mod norm;
mod pairs;
pub mod pool;
mod product;
mod scalar;
mod tier;

pub use error::{Error, Result};
pub use experts::{Choices, Expert, Layer, experts};
pub use greedy::greedy;
pub use linear::linear;
pub use matrix::{Matrix, Weights};
pub use norm::rms_norm;
pub use tier::Tier;
