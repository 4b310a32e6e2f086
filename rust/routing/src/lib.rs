//! Which experts see which token: scores, groups, top-k, permutation, load counters.
//!
//! Scalar code is the specification (`scores.rs`, `select.rs`, `route.rs`). The instruction tiers (`simd.rs`) take one
//! pass over a token, sixteen experts at a time (`pass.rs`), and give the same bits. The same steps in PyTorch are
//! `reference/routing.py`.
#![deny(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used, reason = "a test may fail"))]

mod columns;
mod error;
mod lane_scores;
mod lane_select;
mod logits;
mod pass;
mod permute;
mod rough;
mod route;
mod scores;
mod select;
#[allow(
    unsafe_code,
    reason = "vector instructions that the processor was found to have"
)]
mod simd;
mod table;

pub use error::{Error, Result};
pub use logits::Logits;
pub use permute::permute;
pub use route::{Output, Rule, Weighting, route};
pub use scores::{Scoring, exp_nonpositive};
pub use select::GroupScore;
pub use simd::Tier;
pub use table::{Table, route_table};
