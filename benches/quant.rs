//! FP8: quantizing, dequantizing and multiplying by a 2048 x 2048 weight.
#![allow(
    clippy::unwrap_used,
    missing_docs,
    reason = "a bench may fail, and its names are its documentation"
)]

use abyssal_benches::{criterion, numbers};
use abyssal_quant::{
    Blocks, Layer, ScaleFormat, Scales, Tier, dequantize_fp8, fp8_linear, quantize_fp8,
};
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};

const SIZE: usize = 2048;
const BLOCKS: Blocks = Blocks {
    rows: SIZE,
    columns: SIZE,
    block_rows: 128,
    block_columns: 128,
};

fn quantized(tier: Tier, x: &[f32]) -> (Vec<u8>, Vec<f32>) {
    let (mut codes, mut scales) = (vec![0; x.len()], vec![0.0; BLOCKS.num_scales()]);
    quantize_fp8(tier, x, BLOCKS, ScaleFormat::F32, &mut codes, &mut scales).unwrap();
    (codes, scales)
}

fn multiplied(tier: Tier, x: &[f32], codes: &[u8], scales: &[f32]) -> Vec<f32> {
    let layer = Layer {
        rows: SIZE,
        columns: SIZE,
        num_threads: 1,
    };
    let mut out = vec![0.0; x.len()];
    fp8_linear(tier, layer, x, codes, Scales::F32(scales), &mut out).unwrap();
    out
}

fn fp8(c: &mut Criterion) {
    let weight = numbers(SIZE * SIZE);
    let (codes, scales) = quantized(Tier::available()[0], &weight);
    assert_eq!(
        (codes.clone(), scales.clone()),
        quantized(Tier::best(), &weight)
    );
    let mut back = vec![0.0; weight.len()];
    dequantize_fp8(
        Tier::best(),
        &codes,
        Scales::F32(&scales),
        BLOCKS,
        &mut back,
    )
    .unwrap();
    for (value, original) in back.iter().zip(&weight) {
        // Three bits of mantissa: half a unit in the last place is a 16th; below 2^-6 of the scaled range, 2^-10.
        assert!((value - original).abs() <= (original.abs() / 16.0).max(4.1 / 448.0 / 1024.0));
    }

    let mut group = c.benchmark_group("fp8");
    group.throughput(Throughput::Elements((SIZE * SIZE) as u64));
    for tier in Tier::available() {
        group.bench_function(format!("quantize {tier:?}"), |bencher| {
            bencher.iter(|| quantized(tier, &weight));
        });
        group.bench_function(format!("dequantize {tier:?}"), |bencher| {
            bencher.iter(|| {
                dequantize_fp8(tier, &codes, Scales::F32(&scales), BLOCKS, &mut back).unwrap();
            });
        });
        for tokens in [1, 16] {
            let x = numbers(tokens * SIZE);
            let out = multiplied(tier, &x, &codes, &scales);
            assert_eq!(out, multiplied(Tier::available()[0], &x, &codes, &scales));
            let name = BenchmarkId::new(format!("linear {tier:?}"), tokens);
            group.bench_function(name, |bencher| {
                bencher.iter(|| multiplied(tier, &x, &codes, &scales));
            });
        }
    }
    group.finish();
}

criterion_group!(name = benches; config = criterion(); targets = fp8);
criterion_main!(benches);
