//! Routing against a naive search, in every tier, on rows with ties, infinities, zeros and NaN.
#![allow(clippy::expect_used, reason = "a test may fail")]

use abyssal_routing::{
    Error, GroupScore, Output, Rule, Scoring, Table, Tier, Weighting, route, route_table,
};
use proptest::prelude::*;

fn logit() -> impl Strategy<Value = f32> {
    prop_oneof![
        8 => -20.0_f32..20.0,
        3 => prop::sample::select(vec![0.0, -0.0, 1.0, 1.5, -2.0]),
        1 => prop::sample::select(vec![f32::NAN, f32::INFINITY, f32::NEG_INFINITY, f32::MAX, -1e-40]),
    ]
}

fn scoring() -> impl Strategy<Value = Scoring> {
    prop::sample::select(vec![
        Scoring::Softmax,
        Scoring::Sigmoid,
        Scoring::SqrtSoftplus,
    ])
}

#[derive(Debug, Clone)]
struct Case {
    rule: Rule,
    logits: Vec<f32>,
    bias: Option<Vec<f32>>,
}

fn case() -> impl Strategy<Value = Case> {
    (
        1_usize..5,
        1_usize..9,
        scoring(),
        any::<bool>(),
        any::<bool>(),
    )
        .prop_flat_map(|(num_groups, size, scoring, maximum, normalize)| {
            let num_experts = num_groups * size;
            (1..=num_groups, 1_usize..20).prop_flat_map(move |(top_groups, tokens)| {
                (
                    1..=top_groups * size,
                    prop::collection::vec(logit(), tokens * num_experts),
                    prop::option::of(prop::collection::vec(-1.0_f32..1.0, num_experts)),
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
                    })
            })
        })
}

struct Routed {
    weights: Vec<f32>,
    indices: Vec<i32>,
    load: Vec<i64>,
    incomplete: usize,
}

fn run(tier: Tier, rule: &Rule, logits: &[f32], bias: Option<&[f32]>) -> Routed {
    let cells = logits.len() / rule.num_experts * rule.top_k;
    let mut routed = Routed {
        weights: vec![0.0; cells],
        indices: vec![0; cells],
        load: vec![0; rule.num_experts],
        incomplete: 0,
    };
    let output = Output {
        weights: &mut routed.weights,
        indices: &mut routed.indices,
        load: Some(&mut routed.load),
    };
    routed.incomplete = route(tier, rule, logits, bias, output).expect("a valid rule");
    routed
}

/// The scores of a row: those of a rule that selects every expert and leaves the weights alone.
fn scores(rule: &Rule, row: &[f32]) -> Vec<f32> {
    let cleaned: Vec<f32> = row
        .iter()
        .map(|&logit| {
            if logit.is_nan() {
                f32::NEG_INFINITY
            } else {
                logit
            }
        })
        .collect();
    let weighting = Weighting {
        normalize: false,
        scale: 1.0,
    };
    let all = Rule {
        top_k: rule.num_experts,
        num_groups: 1,
        top_groups: 1,
        weighting,
        ..*rule
    };
    let routed = run(Tier::best(), &all, &cleaned, None);
    let mut scores = vec![0.0; rule.num_experts];
    for (&index, &weight) in routed.indices.iter().zip(&routed.weights) {
        scores[index as usize] = weight;
    }
    scores
}

/// The positions of the best numbers, best first, the lower position first among equals.
fn best(values: &[Option<f32>], count: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..values.len())
        .filter(|&index| values[index].is_some())
        .collect();
    order.sort_by(|&a, &b| values[b].partial_cmp(&values[a]).expect("no NaN"));
    order.truncate(count);
    order
}

fn naive_selection(rule: &Rule, row: &[f32], bias: Option<&[f32]>) -> Vec<usize> {
    let scores = scores(rule, row);
    let keys: Vec<Option<f32>> = (0..rule.num_experts)
        .map(|expert| scores[expert] + bias.map_or(0.0, |bias| bias[expert]))
        .zip(row)
        .map(|(key, logit)| (!logit.is_nan()).then_some(key))
        .collect();
    let size = rule.num_experts / rule.num_groups;
    let groups: Vec<Option<f32>> = keys
        .chunks(size)
        .map(|keys| {
            let wanted = if rule.group_score == GroupScore::Max {
                1
            } else {
                2
            };
            let best: Vec<f32> = best(keys, wanted)
                .into_iter()
                .filter_map(|index| keys[index])
                .collect();
            best.into_iter().reduce(|a, b| a + b)
        })
        .collect();
    let kept = best(&groups, rule.top_groups);
    let open: Vec<Option<f32>> = keys
        .iter()
        .enumerate()
        .map(|(index, &key)| key.filter(|_| kept.contains(&(index / size))))
        .collect();
    best(&open, rule.top_k)
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
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
    #![proptest_config(cases(400))]

    #[test]
    fn selection_equals_a_naive_search(case in case()) {
        let Case { rule, logits, bias } = case;
        let routed = run(Tier::best(), &rule, &logits, bias.as_deref());
        let mut incomplete = 0;
        let mut load = vec![0; rule.num_experts];
        for (token, row) in logits.chunks(rule.num_experts).enumerate() {
            let expected = naive_selection(&rule, row, bias.as_deref());
            let cells = token * rule.top_k..(token + 1) * rule.top_k;
            if expected.len() < rule.top_k {
                incomplete += 1;
                prop_assert!(routed.weights[cells].iter().all(|weight| weight.is_nan()));
                continue;
            }
            let actual: Vec<usize> = routed.indices[cells].iter().map(|&index| index as usize).collect();
            for &index in &actual {
                load[index] += 1;
            }
            prop_assert_eq!(actual, expected);
        }
        prop_assert_eq!(routed.incomplete, incomplete);
        prop_assert_eq!(routed.load, load);
    }

    #[test]
    fn every_tier_gives_the_same_bits(case in case()) {
        let Case { rule, logits, bias } = case;
        let first = run(Tier::available()[0], &rule, &logits, bias.as_deref());
        for tier in Tier::available() {
            let other = run(tier, &rule, &logits, bias.as_deref());
            prop_assert_eq!(bits(&first.weights), bits(&other.weights));
            prop_assert_eq!(&first.indices, &other.indices);
        }
    }

    #[test]
    fn a_row_does_not_depend_on_its_neighbors(case in case()) {
        let Case { rule, logits, bias } = case;
        let together = run(Tier::best(), &rule, &logits, bias.as_deref());
        for (row, weights) in logits.chunks(rule.num_experts).zip(together.weights.chunks(rule.top_k)) {
            let alone = run(Tier::best(), &rule, row, bias.as_deref());
            prop_assert_eq!(bits(&alone.weights), bits(weights));
        }
    }

    #[test]
    fn looking_up_what_a_rule_chose_gives_its_weights(case in case()) {
        let Case { rule, logits, .. } = case;
        let rule = Rule { num_groups: 1, top_groups: 1, ..rule };
        let routed = run(Tier::best(), &rule, &logits, None);
        let tokens: Vec<i64> = (0..(logits.len() / rule.num_experts) as i64).collect();
        let (mut weights, mut indices) = (routed.weights.clone(), routed.indices.clone());
        let output = Output { weights: &mut weights, indices: &mut indices, load: None };
        let table = Table { experts: &routed.indices, top_k: rule.top_k };
        let how = (rule.scoring, rule.weighting);
        let incomplete = route_table(Tier::best(), how, rule.num_experts, &logits, &tokens, table, output);
        prop_assert_eq!(incomplete, Ok(routed.incomplete));
        prop_assert_eq!(bits(&weights), bits(&routed.weights));
    }
}

const RULE: Rule = Rule {
    num_experts: 8,
    top_k: 2,
    scoring: Scoring::Sigmoid,
    num_groups: 4,
    top_groups: 2,
    group_score: GroupScore::TopTwoSum,
    weighting: Weighting {
        normalize: true,
        scale: 1.0,
    },
};

fn refusal(rule: &Rule, logits: &[f32], bias: Option<&[f32]>) -> String {
    let (mut weights, mut indices) = ([7.0; 2], [7; 2]);
    let output = Output {
        weights: &mut weights,
        indices: &mut indices,
        load: None,
    };
    let error = route(Tier::best(), rule, logits, bias, output).expect_err("an invalid call");
    assert_eq!((weights, indices), ([7.0; 2], [7; 2]), "nothing is written");
    error.to_string()
}

#[test]
fn a_rule_that_does_not_fit_is_refused_with_its_numbers() {
    let row = [0.0; 8];
    let cases = [
        (
            Rule {
                num_experts: 0,
                ..RULE
            },
            "number of experts is 0; at least 1 is needed",
        ),
        (
            Rule {
                num_groups: 3,
                ..RULE
            },
            "num_groups is 3; it must divide the 8 experts",
        ),
        (
            Rule {
                num_groups: 0,
                ..RULE
            },
            "num_groups is 0; it must divide the 8 experts",
        ),
        (
            Rule {
                top_groups: 5,
                ..RULE
            },
            "top_groups is 5; it must lie in 1..4",
        ),
        (Rule { top_k: 5, ..RULE }, "top_k is 5; it must lie in 1..4"),
        (Rule { top_k: 0, ..RULE }, "top_k is 0; it must lie in 1..4"),
    ];
    for (rule, message) in cases {
        assert_eq!(refusal(&rule, &row, None), message);
    }
    assert_eq!(
        refusal(&RULE, &row[..7], None),
        "logits has 7 elements; it must have 0"
    );
    assert_eq!(
        refusal(&RULE, &row, Some(&[0.0; 3])),
        "correction_bias has 3 elements; it must have 8"
    );
}

#[test]
fn a_token_or_expert_outside_the_table_is_refused() {
    let call = |token: i64, expert: i64| {
        let (mut weights, mut indices) = ([0.0; 1], [0; 1]);
        let output = Output {
            weights: &mut weights,
            indices: &mut indices,
            load: None,
        };
        let how = (RULE.scoring, RULE.weighting);
        let table = Table {
            experts: &[0, expert],
            top_k: 1,
        };
        route_table(Tier::best(), how, 4, &[0.0; 4], &[token], table, output)
    };
    assert_eq!(call(2, 0), Err(Error::Token { id: 2, rows: 2 }));
    assert_eq!(call(-1, 0), Err(Error::Token { id: -1, rows: 2 }));
    assert_eq!(
        call(1, 4),
        Err(Error::Expert {
            index: 4,
            num_experts: 4
        })
    );
    assert_eq!(call(0, 4), Ok(0), "rows that no token uses are not read");
}
