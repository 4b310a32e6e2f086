//! Every instruction tier of the machine gives the bits of the scalar one, over shapes and numbers of all kinds.
#![allow(clippy::expect_used, reason = "a test may fail")]

use abyssal_routing::{
    GroupScore, Logits, Output, Rule, Scoring, Table, Tier, Weighting, permute, route, route_table,
};
use proptest::prelude::*;

/// Numbers that a tier could get wrong, and ordinary ones; few different ones when `tied`.
fn number(tied: bool) -> BoxedStrategy<f32> {
    let hard = vec![
        0.0,
        -0.0,
        1e-23,
        -1e-23,
        1e-45,
        -1e-40,
        f32::MIN_POSITIVE,
        80.0,
        -80.000_01,
        87.4,
        -103.9,
        -104.1,
        -200.0,
        f32::MAX,
        f32::MIN,
        f32::INFINITY,
        f32::NEG_INFINITY,
        f32::NAN,
        -f32::NAN,
    ];
    if tied {
        prop::sample::select(vec![-1.0, -0.0, 0.0, 0.5, 2.0]).boxed()
    } else {
        prop_oneof![
            400 => -8.0_f32..8.0,
            20 => -120.0_f32..120.0,
            1 => prop::sample::select(hard),
        ]
        .boxed()
    }
}

#[derive(Debug, Clone)]
struct Case {
    rule: Rule,
    logits: Vec<f32>,
    bias: Option<Vec<f32>>,
    /// Where the logits begin in their memory.
    offset: usize,
}

impl Case {
    fn logits(&self) -> &[f32] {
        &self.logits[self.offset..]
    }
}

fn shape() -> impl Strategy<Value = (usize, usize)> {
    prop_oneof![
        // One group of any size, groups of any size, and those of published models.
        4 => (Just(1_usize), 1_usize..600),
        3 => (1_usize..20, 1_usize..40),
        4 => prop::sample::select(vec![(8, 32), (1, 384), (1, 64), (8, 20), (1, 256), (1, 768), (4, 64)]),
    ]
}

fn case() -> impl Strategy<Value = Case> {
    let scoring = prop::sample::select(vec![
        Scoring::Softmax,
        Scoring::Sigmoid,
        Scoring::SqrtSoftplus,
    ]);
    let flags = (any::<bool>(), any::<bool>(), prop::bool::weighted(0.2));
    (shape(), scoring, flags).prop_flat_map(|((num_groups, size), scoring, flags)| {
        let (maximum, normalize, tied) = flags;
        let num_experts = num_groups * size;
        (1..=num_groups, 0_usize..6, 0_usize..4).prop_flat_map(
            move |(top_groups, tokens, offset)| {
                let bias = prop_oneof![30 => -0.3_f32..0.3, 1 => number(false)];
                (
                    1..=(top_groups * size).min(24),
                    prop::collection::vec(number(tied), offset + tokens * num_experts),
                    prop::option::of(prop::collection::vec(bias, num_experts)),
                )
                    .prop_map(move |(top_k, logits, bias)| Case {
                        rule: Rule {
                            num_experts,
                            top_k,
                            scoring,
                            num_groups,
                            top_groups,
                            group_score: if maximum {
                                GroupScore::Max
                            } else {
                                GroupScore::TopTwoSum
                            },
                            weighting: Weighting {
                                normalize,
                                scale: 2.5,
                            },
                        },
                        logits,
                        bias,
                        offset,
                    })
            },
        )
    })
}

/// Bits of the weights, indices, load and the number of incomplete rows. Indices of incomplete rows have no meaning.
type Routed = (Vec<u32>, Vec<i32>, Vec<i64>, usize);

fn run(tier: Tier, rule: &Rule, logits: Logits<'_>, bias: Option<&[f32]>) -> Routed {
    let cells = logits.len() / rule.num_experts * rule.top_k;
    let (mut weights, mut indices) = (vec![0.0; cells], vec![-1; cells]);
    let mut load = vec![3; rule.num_experts];
    let output = Output {
        weights: &mut weights,
        indices: &mut indices,
        load: Some(&mut load),
    };
    let incomplete = route(tier, rule, logits, bias, output).expect("a valid rule");
    assert!(
        indices
            .iter()
            .all(|&index| (0..rule.num_experts as i32).contains(&index))
    );
    let bits = weights.iter().map(|weight| weight.to_bits()).collect();
    (bits, indices, load, incomplete)
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
    #![proptest_config(cases(1500))]

    #[test]
    fn every_tier_gives_the_bits_of_the_scalar_one(case in case()) {
        let bias = case.bias.as_deref();
        let scalar = run(Tier::available()[0], &case.rule, case.logits().into(), bias);
        for tier in &Tier::available()[1..] {
            prop_assert_eq!(&scalar, &run(*tier, &case.rule, case.logits().into(), bias), "{}", tier.name());
        }
    }

    #[test]
    fn narrow_logits_are_routed_as_the_float32_that_they_are(case in case()) {
        let bias = case.bias.as_deref();
        let bits: Vec<u16> = case.logits().iter().map(|logit| (logit.to_bits() >> 16) as u16).collect();
        let wide: Vec<f32> = bits.iter().map(|&bits| f32::from_bits(u32::from(bits) << 16)).collect();
        for tier in Tier::available() {
            let expected = run(tier, &case.rule, (&wide).into(), bias);
            prop_assert_eq!(expected, run(tier, &case.rule, Logits::Bf16(&bits), bias), "{}", tier.name());
        }
        // The same bits read as float16: every tier agrees on other numbers too.
        let scalar = run(Tier::available()[0], &case.rule, Logits::F16(&bits), bias);
        for tier in Tier::available() {
            prop_assert_eq!(&scalar, &run(tier, &case.rule, Logits::F16(&bits), bias), "{}", tier.name());
        }
    }

    #[test]
    fn every_tier_weighs_a_table_alike(case in case()) {
        let Rule { num_experts, top_k, scoring, weighting, .. } = case.rule;
        let tokens: Vec<i32> = (0..(case.logits().len() / num_experts) as i32).rev().collect();
        let experts: Vec<i64> = (0..tokens.len() * top_k).map(|cell| (cell * 7 % num_experts) as i64).collect();
        let call = |tier| {
            let (mut weights, mut indices) = (vec![0.0; experts.len()], vec![0; experts.len()]);
            let output = Output { weights: &mut weights, indices: &mut indices, load: None };
            let table = Table { experts: &experts, top_k };
            let incomplete = route_table(tier, (scoring, weighting), num_experts, case.logits(), &tokens, table, output);
            (weights.iter().map(|weight| weight.to_bits()).collect::<Vec<_>>(), indices, incomplete)
        };
        let scalar = call(Tier::available()[0]);
        for tier in Tier::available() {
            prop_assert_eq!(&scalar, &call(tier), "{}", tier.name());
        }
    }

    #[test]
    fn permuting_is_a_stable_sort(indices in prop::collection::vec(0_i64..37, 0..300), spare in 0_usize..5) {
        let num_experts = 37 + spare;
        let (mut order, mut offsets) = (vec![0; indices.len()], vec![0; num_experts + 1]);
        permute(&indices, num_experts, &mut order, &mut offsets).expect("valid indices");
        let mut expected: Vec<i32> = (0..indices.len() as i32).collect();
        expected.sort_by_key(|&at| indices[at as usize]);
        prop_assert_eq!(&order, &expected);
        for expert in 0..num_experts {
            for &at in &order[offsets[expert] as usize..offsets[expert + 1] as usize] {
                prop_assert_eq!(indices[at as usize], expert as i64);
            }
        }
    }
}

fn names() -> Vec<&'static str> {
    Tier::available().into_iter().map(Tier::name).collect()
}

#[test]
fn the_best_tier_is_the_last_one_available() {
    println!("tiers: {}", names().join(" "));
    assert_eq!(names()[0], "scalar");
    assert_eq!(Tier::available().last(), Some(&Tier::best()));
}

// `make test-tiers` asks for these by name on the machines that must have them.

#[test]
#[ignore = "for machines with AVX2"]
fn this_machine_has_avx2() {
    assert!(names().contains(&"avx2"), "{:?}", names());
}

#[test]
#[ignore = "for machines with AVX-512"]
fn this_machine_has_avx512() {
    assert!(names().contains(&"avx512"), "{:?}", names());
}

#[test]
#[ignore = "for machines with NEON"]
fn this_machine_has_neon() {
    assert!(names().contains(&"neon"), "{:?}", names());
}
