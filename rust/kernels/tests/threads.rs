//! Callers that share the resident threads, while another one changes how many there are. `make test-threads` runs this
//! with ThreadSanitizer.

// A failed expectation is how these tests fail.
#![allow(clippy::unwrap_used)]

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;

use abyssal_kernels::gate::{Gate, Values, gate_route};
use abyssal_kernels::mla::{Cache, Sizes, write_latents};
use abyssal_kernels::mla::{Rotary, Written};
use abyssal_kernels::{Choices, Expert, Layer, Matrix, Tier, Weights, experts, linear, pool};
use abyssal_quant::{Bf16, Element};
use abyssal_routing::{GroupScore, Output, Rule, Scoring, Weighting};
use mla_case::bits::{Bits, bits_of, emulated};
use mla_case::{Case, Kind};

#[allow(dead_code, reason = "shared with the tests of attention")]
mod mla_case;

const CALLERS: usize = 3;
const MOST: usize = 4;
const TOKENS: usize = 24;
const HIDDEN: usize = 128;
const INNER: usize = 96;
const EXPERTS: usize = 8;
const TOP_K: usize = 2;
const SIZES: Sizes = Sizes {
    heads: 4,
    kv_lora: 64,
    rope: 8,
    nope: 16,
    v: 16,
};

fn main() {
    callers_that_share_the_pool_get_the_results_of_one_thread();
    every_task_of_every_caller_runs_once();
    println!("2 tests with {CALLERS} callers passed");
}

/// Everything that the calls read.
struct Work {
    x: Vec<f32>,
    router: Vec<f32>,
    /// Gate, up and down of each expert.
    weights: Vec<[Vec<Bf16>; 3]>,
    case: Case,
}

impl Work {
    fn new() -> Self {
        let mut bits = Bits(5);
        let x = bits.numbers(TOKENS * HIDDEN);
        let router = bits.numbers(EXPERTS * HIDDEN);
        let mut matrix = || -> Vec<Bf16> {
            let numbers = bits.numbers(INNER * HIDDEN);
            numbers.into_iter().map(Bf16::store).collect()
        };
        Self {
            x,
            router,
            weights: (0..EXPERTS)
                .map(|_| [matrix(), matrix(), matrix()])
                .collect(),
            case: Case::random(SIZES, 300, Kind::Bf16, true, 8),
        }
    }

    /// The bits of what every kernel gives, one after the other.
    fn results(&self, tier: Tier, threads: usize) -> Vec<u32> {
        let mut found = self.products(tier, threads);
        found.extend(self.feed_forward(tier, threads));
        found.extend(bits_of(&self.case.step(tier, 290, 300, 0, threads)));
        found.extend(bits_of(&self.case.step(tier, 0, 40, 40, threads)));
        found.extend(self.latents(threads));
        found
    }

    fn products(&self, tier: Tier, threads: usize) -> Vec<u32> {
        let matrix = Matrix::new(INNER, HIDDEN, Weights::Bf16(&self.weights[0][0])).unwrap();
        let mut out = vec![0.0_f32; TOKENS * INNER];
        linear(tier, &matrix, &self.x, &mut out, threads).unwrap();
        bits_of(&out)
    }

    fn feed_forward(&self, tier: Tier, threads: usize) -> Vec<u32> {
        let rule = Rule {
            num_experts: EXPERTS,
            top_k: TOP_K,
            scoring: Scoring::Sigmoid,
            num_groups: 1,
            top_groups: 1,
            group_score: GroupScore::Max,
            weighting: Weighting {
                normalize: true,
                scale: 1.5,
            },
        };
        let gate = Gate {
            x: Values::F32(&self.x),
            weight: Values::F32(&self.router),
            hidden_size: HIDDEN,
        };
        let (mut weights, mut indices) = (vec![0.0; TOKENS * TOP_K], vec![0; TOKENS * TOP_K]);
        let output = Output {
            weights: &mut weights,
            indices: &mut indices,
            load: None,
        };
        let best = abyssal_routing::Tier::best();
        gate_route(best, &rule, gate, None, output, None, threads).unwrap();
        let expert = |number: usize| {
            let [gate, up, down] = self.weights[number]
                .each_ref()
                .map(|half| Weights::Bf16(half));
            Expert::new(
                Matrix::new(INNER, HIDDEN, gate)?,
                Matrix::new(INNER, HIDDEN, up)?,
                Matrix::new(HIDDEN, INNER, down)?,
            )
        };
        let layer = Layer {
            hidden_size: HIDDEN,
            num_experts: EXPERTS,
            num_routes: EXPERTS,
            expert: &expert,
            shared: Some(expert(0).unwrap()),
            limit: None,
        };
        let choices = Choices {
            indices: &indices,
            weights: &weights,
            top_k: TOP_K,
        };
        let mut out = vec![0.0_f32; self.x.len()];
        experts(tier, layer, choices, &self.x, &mut out, threads).unwrap();
        let mut found = bits_of(&out);
        found.extend(bits_of(&weights));
        found.extend(indices.iter().map(|&index| index as u32));
        found
    }

    fn latents(&self, threads: usize) -> Vec<u32> {
        let width = SIZES.kv_lora + SIZES.rope;
        let tokens = self.case.tokens();
        let slots: Vec<i64> = (0..tokens as i64).rev().collect();
        let written = Written {
            values: &self.case.rows,
            norm: &vec![1.0_f32; SIZES.kv_lora],
            eps: 1e-6,
            rotary: Rotary {
                cos: &self.case.cos,
                sin: &self.case.sin,
            },
            slots: &slots,
        };
        let mut cache = vec![0.0_f32; tokens * width];
        write_latents(&written, &mut Cache::F32(&mut cache), threads).unwrap();
        bits_of(&cache)
    }
}

fn callers_that_share_the_pool_get_the_results_of_one_thread() {
    let work = Work::new();
    let tier = Tier::best();
    // What the standard library makes once is made here; its waiting for that is hidden from the sanitizer.
    let expected = work.results(tier, 1);
    let default = pool::num_threads();
    let rounds = if emulated() { 1 } else { 10 };
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        let (work, expected, done) = (&work, &expected, &done);
        let spawn = |_| {
            scope.spawn(move || {
                for _ in 0..rounds {
                    assert!(&work.results(tier, pool::num_threads()) == expected);
                }
            })
        };
        let callers: Vec<_> = (0..CALLERS).map(spawn).collect();
        let changes = scope.spawn(move || {
            let mut count = 0;
            while !done.load(Ordering::Relaxed) {
                count += 1;
                pool::set_num_threads(1 + count % MOST);
                assert!((1..=MOST).contains(&pool::num_threads()));
                thread::yield_now();
            }
        });
        // Joined one by one: the end of a scope is hidden from the sanitizer.
        for caller in callers {
            caller.join().unwrap();
        }
        done.store(true, Ordering::Relaxed);
        changes.join().unwrap();
    });
    pool::set_num_threads(default);
}

/// Regions so short that workers come late, and that begin while another caller's region runs.
fn every_task_of_every_caller_runs_once() {
    const TASKS: usize = 7;
    let rounds = if emulated() { 100 } else { 2000 };
    thread::scope(|scope| {
        let spawn = |caller: usize| {
            scope.spawn(move || {
                for round in 0..rounds {
                    let counts = [const { AtomicUsize::new(0) }; TASKS];
                    pool::for_each(1 + round % MOST, TASKS, &|task| {
                        counts[task].fetch_add(caller + 1, Ordering::Relaxed);
                    });
                    assert!(
                        counts
                            .into_iter()
                            .all(|count| count.into_inner() == caller + 1)
                    );
                }
            })
        };
        let callers: Vec<_> = (0..CALLERS).map(spawn).collect();
        for caller in callers {
            caller.join().unwrap();
        }
    });
}
