//! Routing of published models, the gate, and the grouping of tokens by expert.
#![allow(
    clippy::unwrap_used,
    missing_docs,
    reason = "a bench may fail, and its names are its documentation"
)]

use abyssal_benches::{criterion, numbers};
use abyssal_kernels::gate::{Gate, Values, gate_route};
use abyssal_routing::{GroupScore, Output, Rule, Scoring, Tier, Weighting, permute, route};
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};

/// DeepSeek-V3: 256 experts, 8 groups, 8 chosen.
const V3: Rule = Rule {
    num_experts: 256,
    top_k: 8,
    scoring: Scoring::Sigmoid,
    num_groups: 8,
    top_groups: 4,
    group_score: GroupScore::TopTwoSum,
    weighting: Weighting {
        normalize: true,
        scale: 2.5,
    },
};
/// Kimi K2: 384 experts in one group.
const K2: Rule = Rule {
    num_experts: 384,
    num_groups: 1,
    top_groups: 1,
    ..V3
};
/// DeepSeek-V2-Lite: 64 experts, softmax, 6 chosen.
const V2_LITE: Rule = Rule {
    num_experts: 64,
    top_k: 6,
    scoring: Scoring::Softmax,
    weighting: Weighting {
        normalize: false,
        scale: 1.0,
    },
    ..K2
};
/// DeepSeek-V2: 160 experts, groups by their best.
const V2: Rule = Rule {
    num_experts: 160,
    num_groups: 8,
    top_groups: 3,
    group_score: GroupScore::Max,
    ..V2_LITE
};
const RULES: [(&str, Rule); 4] = [("v3", V3), ("k2", K2), ("v2 lite", V2_LITE), ("v2", V2)];

fn run(tier: Tier, rule: &Rule, logits: &[f32], weights: &mut [f32], indices: &mut [i32]) {
    let output = Output {
        weights,
        indices,
        load: None,
    };
    assert_eq!(route(tier, rule, logits, None, output).unwrap(), 0);
}

fn routing(c: &mut Criterion) {
    let mut group = c.benchmark_group("routing");
    for (name, rule) in RULES {
        for tokens in [1, 4096] {
            let logits = numbers(tokens * rule.num_experts);
            let cells = tokens * rule.top_k;
            let (mut weights, mut indices) = (vec![0.0; cells], vec![0; cells]);
            run(
                Tier::available()[0],
                &rule,
                &logits,
                &mut weights,
                &mut indices,
            );
            let expected = (weights.clone(), indices.clone());
            group.throughput(Throughput::Elements(tokens as u64));
            for tier in Tier::available() {
                run(tier, &rule, &logits, &mut weights, &mut indices);
                assert_eq!((&weights, &indices), (&expected.0, &expected.1));
                let id = BenchmarkId::new(format!("{name} {}", tier.name()), tokens);
                group.bench_function(id, |bencher| {
                    bencher.iter(|| run(tier, &rule, &logits, &mut weights, &mut indices));
                });
            }
        }
    }
    group.finish();
}

fn grouping(c: &mut Criterion) {
    let mut group = c.benchmark_group("permute");
    for tokens in [1, 64, 4096] {
        let cells = tokens * V3.top_k;
        let (mut weights, mut indices) = (vec![0.0; cells], vec![0; cells]);
        let logits = numbers(tokens * V3.num_experts);
        run(Tier::best(), &V3, &logits, &mut weights, &mut indices);
        let (mut order, mut offsets) = (vec![0; cells], vec![0; V3.num_experts + 1]);
        permute(&indices, V3.num_experts, &mut order, &mut offsets).unwrap();
        assert_eq!(offsets[V3.num_experts] as usize, cells);
        group.throughput(Throughput::Elements(cells as u64));
        group.bench_function(BenchmarkId::new("indices", tokens), |bencher| {
            bencher.iter(|| permute(&indices, V3.num_experts, &mut order, &mut offsets).unwrap());
        });
    }
    group.finish();
}

fn gate(c: &mut Criterion) {
    const HIDDEN: usize = 2048;
    let mut group = c.benchmark_group("gate 64 x 2048");
    let weight = numbers(V2_LITE.num_experts * HIDDEN);
    for tokens in [1, 64] {
        let x = numbers(tokens * HIDDEN);
        let cells = tokens * V2_LITE.top_k;
        let (mut weights, mut indices) = (vec![0.0; cells], vec![0; cells]);
        let mut call = |tier: Tier| {
            let gate = Gate {
                x: Values::F32(&x),
                weight: Values::F32(&weight),
                hidden_size: HIDDEN,
            };
            let output = Output {
                weights: &mut weights,
                indices: &mut indices,
                load: None,
            };
            assert_eq!(
                gate_route(tier, &V2_LITE, gate, None, output, None, 1).unwrap(),
                0
            );
            (weights.clone(), indices.clone())
        };
        let expected = call(Tier::available()[0]);
        group.throughput(Throughput::Elements(tokens as u64));
        for tier in Tier::available() {
            assert_eq!(call(tier), expected);
            let id = BenchmarkId::new(tier.name(), tokens);
            group.bench_function(id, |bencher| bencher.iter(|| call(tier)));
        }
    }
    group.finish();
}

criterion_group!(name = benches; config = criterion(); targets = routing, grouping, gate);
criterion_main!(benches);
