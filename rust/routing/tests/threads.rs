//! Threads that route the same logits, and that share the memory of one result. `make test-threads` runs this with
//! ThreadSanitizer.

// A failed expectation is how these tests fail.
#![allow(clippy::unwrap_used)]

use std::thread;

use abyssal_routing::{GroupScore, Output, Rule, Scoring, Tier, Weighting, permute, route};

const THREADS: usize = 4;
const TOKENS: usize = 64;
const EXPERTS: usize = 64;
const TOP_K: usize = 6;

fn main() {
    let logits = logits();
    for tier in Tier::available() {
        let expected = routed(tier, &logits);
        threads_that_read_the_same_logits_choose_the_same_experts(tier, &logits, &expected);
        threads_that_write_parts_of_one_result_make_the_whole(tier, &logits, &expected);
    }
    println!("2 tests with {THREADS} threads passed");
}

fn logits() -> Vec<f32> {
    let mut state = 1_u32;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / 1_048_576.0 - 8.0
    };
    (0..TOKENS * EXPERTS).map(|_| next()).collect()
}

fn rule() -> Rule {
    Rule {
        num_experts: EXPERTS,
        top_k: TOP_K,
        scoring: Scoring::Sigmoid,
        num_groups: 4,
        top_groups: 2,
        group_score: GroupScore::TopTwoSum,
        weighting: Weighting {
            normalize: true,
            scale: 2.5,
        },
    }
}

/// What a call gives: bits of the weights, experts, load, and the experts' positions in order.
type Found = (Vec<u32>, Vec<i32>, Vec<i64>, Vec<i32>);

fn routed(tier: Tier, logits: &[f32]) -> Found {
    let (mut weights, mut indices) = (vec![0.0; TOKENS * TOP_K], vec![0; TOKENS * TOP_K]);
    let mut load = vec![0; EXPERTS];
    let output = Output {
        weights: &mut weights,
        indices: &mut indices,
        load: Some(&mut load),
    };
    assert_eq!(route(tier, &rule(), logits, None, output), Ok(0));
    let (mut order, mut offsets) = (vec![0; indices.len()], vec![0; EXPERTS + 1]);
    permute(&indices, EXPERTS, &mut order, &mut offsets).unwrap();
    let weights = weights.into_iter().map(f32::to_bits).collect();
    (weights, indices, load, order)
}

fn threads_that_read_the_same_logits_choose_the_same_experts(
    tier: Tier,
    logits: &[f32],
    expected: &Found,
) {
    thread::scope(|scope| {
        let spawn = |_| {
            scope.spawn(move || {
                for _ in 0..20 {
                    assert_eq!(&routed(tier, logits), expected);
                }
            })
        };
        let workers: Vec<_> = (0..THREADS).map(spawn).collect();
        // Joined one by one: the end of a scope is hidden from the sanitizer.
        for worker in workers {
            worker.join().unwrap();
        }
    });
}

fn threads_that_write_parts_of_one_result_make_the_whole(
    tier: Tier,
    logits: &[f32],
    expected: &Found,
) {
    let (mut weights, mut indices) = (vec![0.0; TOKENS * TOP_K], vec![0; TOKENS * TOP_K]);
    let part = TOKENS / THREADS;
    thread::scope(|scope| {
        let parts = weights
            .chunks_mut(part * TOP_K)
            .zip(indices.chunks_mut(part * TOP_K))
            .zip(logits.chunks(part * EXPERTS));
        let workers: Vec<_> = parts
            .map(|((weights, indices), logits)| {
                scope.spawn(move || {
                    let output = Output {
                        weights,
                        indices,
                        load: None,
                    };
                    assert_eq!(route(tier, &rule(), logits, None, output), Ok(0));
                })
            })
            .collect();
        for worker in workers {
            worker.join().unwrap();
        }
    });
    assert_eq!(indices, expected.1);
    let bits: Vec<_> = weights.into_iter().map(f32::to_bits).collect();
    assert_eq!(bits, expected.0);
}
