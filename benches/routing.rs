//! Routing of DeepSeek-V3 (256 experts, 8 groups, 8 chosen) and the grouping of tokens by expert.
#![allow(
    clippy::unwrap_used,
    missing_docs,
    reason = "a bench may fail, and its names are its documentation"
)]

use abyssal_benches::{criterion, numbers};
use abyssal_routing::{GroupScore, Output, Rule, Scoring, Tier, Weighting, permute, route};
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};

const EXPERTS: usize = 256;
const TOP_K: usize = 8;
const RULE: Rule = Rule {
    num_experts: EXPERTS,
    top_k: TOP_K,
    scoring: Scoring::Sigmoid,
    num_groups: 8,
    top_groups: 4,
    group_score: GroupScore::TopTwoSum,
    weighting: Weighting {
        normalize: true,
        scale: 2.5,
    },
};

fn run(tier: Tier, logits: &[f32], bias: &[f32]) -> (Vec<f32>, Vec<i32>) {
    let tokens = logits.len() / EXPERTS;
    let (mut weights, mut indices) = (vec![0.0; tokens * TOP_K], vec![0; tokens * TOP_K]);
    let output = Output {
        weights: &mut weights,
        indices: &mut indices,
        load: None,
    };
    assert_eq!(route(tier, &RULE, logits, Some(bias), output).unwrap(), 0);
    (weights, indices)
}

fn routing(c: &mut Criterion) {
    let mut group = c.benchmark_group("routing");
    let bias = vec![0.0; EXPERTS];
    for tokens in [1, 64, 1024] {
        let logits = numbers(tokens * EXPERTS);
        let expected = run(Tier::available()[0], &logits, &bias);
        assert_eq!(expected, run(Tier::best(), &logits, &bias));
        for weights in expected.0.chunks(TOP_K) {
            // Eight roundings of numbers of at most 2.5.
            assert!((weights.iter().sum::<f32>() - 2.5).abs() < 8.0 * 2.5 * f32::EPSILON);
        }
        group.throughput(Throughput::Elements(tokens as u64));
        for tier in Tier::available() {
            group.bench_function(
                BenchmarkId::new(format!("route {tier:?}"), tokens),
                |bencher| {
                    bencher.iter(|| run(tier, &logits, &bias));
                },
            );
        }
        let (mut order, mut offsets) = (vec![0; tokens * TOP_K], vec![0; EXPERTS + 1]);
        permute(&expected.1, EXPERTS, &mut order, &mut offsets).unwrap();
        assert_eq!(offsets[EXPERTS] as usize, tokens * TOP_K);
        group.bench_function(BenchmarkId::new("permute", tokens), |bencher| {
            bencher.iter(|| permute(&expected.1, EXPERTS, &mut order, &mut offsets).unwrap());
        });
    }
    group.finish();
}

criterion_group!(name = benches; config = criterion(); targets = routing);
criterion_main!(benches);
