//! Which experts see which token: scores, groups, top-k, permutation, load counters.
//!
//! Scalar code is the specification (`scores.rs`, `select.rs`); instruction tiers (`simd.rs`) compile the same code for
//! wider registers, so every tier gives the same bits. The same steps in PyTorch are `reference/routing.py`.
#![deny(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used, reason = "a test may fail"))]

mod error;
mod permute;
mod route;
mod scores;
mod select;
#[allow(
    unsafe_code,
    reason = "calls functions compiled for instructions that the processor was found to have"
)]
mod simd;

pub use error::{Error, Result};
pub use permute::permute;
pub use route::{Output, Rule, Table, Weighting, route, route_table};
pub use scores::Scoring;
pub use select::GroupScore;
pub use simd::Tier;
