//! What the benches share: the same random numbers everywhere, and criterion set for short runs.
//!
//! Each bench asserts its result before it is timed, and `cargo bench -- --test` runs it once for that alone.

use std::time::Duration;

use criterion::Criterion;

/// Criterion with half a second of warming up and two of measuring.
pub fn criterion() -> Criterion {
    Criterion::default()
        .warm_up_time(Duration::from_millis(500))
        .measurement_time(Duration::from_secs(2))
        .sample_size(20)
        .configure_from_args()
}

/// Numbers in -4 to 4 that look random and are the same in every run (Knuth's multiplicative sequence).
pub fn numbers(count: usize) -> Vec<f32> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = || {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1_u64 << 24) as f32 * 8.0 - 4.0
    };
    (0..count).map(|_| next()).collect()
}
