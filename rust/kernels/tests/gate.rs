//! The gate against its definition, in every tier, over all shapes, formats and numbers of threads.
#![allow(clippy::expect_used, reason = "a test may fail")]

use abyssal_kernels::gate::{Error, Gate, Values, gate_route};
use abyssal_routing::{GroupScore, Output, Rule, Scoring, Tier, Weighting, route};
use proptest::prelude::*;

const LANES: usize = 16;

/// The definition: sixteen lanes in order, then halves.
fn defined(x: &[f32], weight: &[f32]) -> f32 {
    let mut lanes = [0.0_f32; LANES];
    for (x, weight) in x.chunks(LANES).zip(weight.chunks(LANES)) {
        for (lane, sum) in lanes.iter_mut().enumerate() {
            let product = match (x.get(lane), weight.get(lane)) {
                (Some(x), Some(weight)) => x * weight,
                _ => 0.0,
            };
            *sum += product;
        }
    }
    let mut width = LANES;
    while width > 1 {
        width /= 2;
        for lane in 0..width {
            lanes[lane] += lanes[lane + width];
        }
    }
    lanes[0]
}

fn number() -> impl Strategy<Value = f32> {
    prop_oneof![
        200 => -2.0_f32..2.0,
        4 => prop::sample::select(vec![0.0, -0.0, 1e-23, -1e-40, 1e4, 1e-30]),
        1 => prop::sample::select(vec![f32::INFINITY, f32::NAN, f32::MAX]),
    ]
}

#[derive(Debug, Clone)]
struct Case {
    rule: Rule,
    hidden_size: usize,
    x: Vec<f32>,
    weight: Vec<f32>,
    narrow: (bool, bool),
    threads: usize,
}

fn case() -> impl Strategy<Value = Case> {
    let sizes = (0_usize..9, 1_usize..40, 1_usize..100);
    (sizes, any::<(bool, bool)>(), 1_usize..4).prop_flat_map(
        |((tokens, num_experts, hidden_size), narrow, threads)| {
            (
                1..=num_experts,
                prop::collection::vec(number(), tokens * hidden_size),
                prop::collection::vec(number(), num_experts * hidden_size),
            )
                .prop_map(move |(top_k, x, weight)| Case {
                    rule: Rule {
                        num_experts,
                        top_k,
                        scoring: Scoring::Sigmoid,
                        num_groups: 1,
                        top_groups: 1,
                        group_score: GroupScore::Max,
                        weighting: Weighting {
                            normalize: true,
                            scale: 1.5,
                        },
                    },
                    hidden_size,
                    x,
                    weight,
                    narrow,
                    threads,
                })
        },
    )
}

fn bf16(values: &[f32]) -> Vec<u16> {
    values
        .iter()
        .map(|value| (value.to_bits() >> 16) as u16)
        .collect()
}

fn widened(values: &[u16]) -> Vec<f32> {
    values
        .iter()
        .map(|&bits| f32::from_bits(u32::from(bits) << 16))
        .collect()
}

fn bits(values: &[f32]) -> Vec<u32> {
    // NaN has no defined bits in arithmetic.
    values
        .iter()
        .map(|value| {
            if value.is_nan() {
                0x7fc0_0000
            } else {
                value.to_bits()
            }
        })
        .collect()
}

type Routed = (Vec<u32>, Vec<u32>, Vec<i32>, Vec<i64>, usize);

fn run(tier: Tier, case: &Case) -> Routed {
    let (x16, weight16) = (bf16(&case.x), bf16(&case.weight));
    let gate = Gate {
        x: if case.narrow.0 {
            Values::Bf16(&x16)
        } else {
            Values::F32(&case.x)
        },
        weight: if case.narrow.1 {
            Values::Bf16(&weight16)
        } else {
            Values::F32(&case.weight)
        },
        hidden_size: case.hidden_size,
    };
    let tokens = case.x.len() / case.hidden_size;
    let cells = tokens * case.rule.top_k;
    let (mut weights, mut indices) = (vec![0.0; cells], vec![0; cells]);
    let mut load = vec![1; case.rule.num_experts];
    let mut logits = vec![7.0; tokens * case.rule.num_experts];
    let output = Output {
        weights: &mut weights,
        indices: &mut indices,
        load: Some(&mut load),
    };
    let place = Some(&mut logits[..]);
    let incomplete = gate_route(tier, &case.rule, gate, None, output, place, case.threads);
    let incomplete = incomplete.expect("a valid call");
    (bits(&logits), bits(&weights), indices, load, incomplete)
}

/// The number of random cases, unless `PROPTEST_CASES` says another.
fn cases(usual: u32) -> ProptestConfig {
    if std::env::var_os("PROPTEST_CASES").is_some() {
        ProptestConfig::default()
    } else {
        ProptestConfig::with_cases(usual)
    }
}

proptest! {
    #![proptest_config(cases(300))]

    #[test]
    fn every_tier_gives_the_defined_logits_and_routes_them(case in case()) {
        let x = if case.narrow.0 { widened(&bf16(&case.x)) } else { case.x.clone() };
        let weight = if case.narrow.1 { widened(&bf16(&case.weight)) } else { case.weight.clone() };
        let logits: Vec<f32> = x
            .chunks(case.hidden_size)
            .flat_map(|x| weight.chunks(case.hidden_size).map(move |weight| defined(x, weight)))
            .collect();
        let cells = x.len() / case.hidden_size * case.rule.top_k;
        let (mut weights, mut indices) = (vec![0.0; cells], vec![0; cells]);
        let mut load = vec![1; case.rule.num_experts];
        let output = Output { weights: &mut weights, indices: &mut indices, load: Some(&mut load) };
        let incomplete = route(Tier::available()[0], &case.rule, &logits, None, output).expect("a valid rule");
        let expected = (bits(&logits), bits(&weights), indices, load, incomplete);
        for tier in Tier::available() {
            prop_assert_eq!(&expected, &run(tier, &case), "{}", tier.name());
        }
    }
}

#[test]
fn a_token_does_not_depend_on_its_neighbors_or_the_threads() {
    let (tokens, num_experts, hidden_size) = (67, 37, 1000);
    let numbers = |count: usize, factor: usize| -> Vec<f32> {
        (0..count)
            .map(|at| (at * factor % 1009) as f32 / 500.0 - 1.0)
            .collect()
    };
    let mut case = Case {
        rule: Rule {
            num_experts,
            top_k: 5,
            scoring: Scoring::Softmax,
            num_groups: 1,
            top_groups: 1,
            group_score: GroupScore::Max,
            weighting: Weighting {
                normalize: false,
                scale: 1.0,
            },
        },
        hidden_size,
        x: numbers(tokens * hidden_size, 7919),
        weight: numbers(num_experts * hidden_size, 104_729),
        narrow: (false, false),
        threads: 1,
    };
    let together = run(Tier::best(), &case);
    case.threads = 3;
    assert_eq!(together, run(Tier::best(), &case));
    let all = case.x.clone();
    for (token, x) in all.chunks(hidden_size).enumerate() {
        case.x = x.to_vec();
        let alone = run(Tier::best(), &case);
        let row = token * num_experts..(token + 1) * num_experts;
        assert_eq!(alone.0, together.0[row]);
    }
}

#[test]
fn a_size_that_does_not_fit_is_refused_with_its_numbers() {
    let rule = Rule {
        num_experts: 2,
        top_k: 1,
        scoring: Scoring::Softmax,
        num_groups: 1,
        top_groups: 1,
        group_score: GroupScore::Max,
        weighting: Weighting {
            normalize: false,
            scale: 1.0,
        },
    };
    let call =
        |hidden_size: usize, top_k: usize, weight: &[f32], logits: usize| -> Result<usize, Error> {
            let (mut weights, mut indices) = ([7.0], [7]);
            let output = Output {
                weights: &mut weights,
                indices: &mut indices,
                load: None,
            };
            let gate = Gate {
                x: Values::F32(&[1.0, 2.0, 3.0]),
                weight: Values::F32(weight),
                hidden_size,
            };
            let rule = Rule { top_k, ..rule };
            let mut logits = vec![0.0; logits];
            let done = gate_route(
                Tier::best(),
                &rule,
                gate,
                None,
                output,
                Some(&mut logits),
                1,
            );
            if done.is_err() {
                assert_eq!((weights, indices), ([7.0], [7]), "nothing is written");
            }
            done
        };
    let message = |done: Result<usize, Error>| done.expect_err("an invalid call").to_string();
    assert_eq!(call(3, 1, &[0.0; 6], 2), Ok(0));
    assert_eq!(
        message(call(0, 1, &[], 2)),
        "hidden size is 0; at least 1 is needed"
    );
    assert_eq!(
        message(call(2, 1, &[0.0; 4], 2)),
        "x has 3 elements; it must have 2"
    );
    assert_eq!(
        message(call(3, 1, &[0.0; 5], 2)),
        "weight has 5 elements; it must have 6"
    );
    assert_eq!(
        message(call(3, 1, &[0.0; 6], 3)),
        "logits has 3 elements; it must have 2"
    );
    assert_eq!(
        message(call(3, 3, &[0.0; 6], 2)),
        "top_k is 3; it must lie in 1..2"
    );
}
