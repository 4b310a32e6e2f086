//! FP8 and MXFP4: every operation in every tier of the machine on a 2048 x 2048 matrix, in bytes read and written.
#![allow(
    clippy::unwrap_used,
    missing_docs,
    reason = "a bench may fail, and its names are its documentation"
)]

use abyssal_benches::{criterion, numbers};
use abyssal_quant::{
    Bf16, Element, F16, Rows, ScaleFormat, Scales, Tier, dequantize_fp8, dequantize_mxfp4,
    quantize_fp8, quantize_mxfp4,
};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};

const SIZE: usize = 2048;
const COUNT: usize = SIZE * SIZE;
const BLOCKS: [(usize, usize); 2] = [(1, 128), (128, 128)];

fn num_scales((rows, columns): (usize, usize)) -> usize {
    COUNT / rows / columns
}

fn quantized<T: Element>(tier: Tier, x: &[T], block: (usize, usize)) -> (Vec<u8>, Vec<f32>) {
    let (mut codes, mut scales) = (vec![0; COUNT], vec![0.0; num_scales(block)]);
    let x = Rows::contiguous(x, SIZE).unwrap();
    quantize_fp8(tier, x, block, ScaleFormat::F32, &mut codes, &mut scales).unwrap();
    (codes, scales)
}

fn packed<T: Element>(tier: Tier, x: &[T]) -> (Vec<u8>, Vec<u8>) {
    let (mut codes, mut scales) = (vec![0; COUNT / 2], vec![0; COUNT / 32]);
    let x = Rows::contiguous(x, SIZE).unwrap();
    quantize_mxfp4(tier, x, &mut codes, &mut scales).unwrap();
    (codes, scales)
}

/// Every operation from or to one type of element.
fn formats<T: Element>(c: &mut Criterion, name: &str) {
    let x: Vec<T> = numbers(COUNT).into_iter().map(T::store).collect();
    let scalar = Tier::available()[0];
    let mut group = c.benchmark_group(name);
    for tier in Tier::available() {
        for block in BLOCKS {
            let (mut codes, mut scales) = quantized(tier, &x, block);
            assert!(
                (&codes, &scales)
                    == (
                        &quantized(scalar, &x, block).0,
                        &quantized(scalar, &x, block).1
                    )
            );
            let bytes = size_of_val(&*x) + COUNT + 4 * scales.len();
            group.throughput(Throughput::Bytes(bytes as u64));
            let rows = Rows::contiguous(&x, SIZE).unwrap();
            group.bench_function(
                format!("quantize fp8 {block:?} {}", tier.name()),
                |bencher| {
                    bencher.iter(|| {
                        quantize_fp8(tier, rows, block, ScaleFormat::F32, &mut codes, &mut scales)
                            .unwrap();
                    });
                },
            );
            let mut back = vec![T::default(); COUNT];
            let rows = Rows::contiguous(&codes, SIZE).unwrap();
            dequantize_fp8(tier, rows, Scales::F32(&scales), block, &mut back).unwrap();
            for (value, original) in back.iter().zip(&x) {
                let (value, original) = (value.load(), original.load());
                // Three bits of mantissa: half a unit in the last place is a 16th, and rounding to two bytes adds a
                // 256th at most; below 2^-6 of the scaled range, 2^-10.
                let bound = (original.abs() * (1.0 / 16.0 + 1.0 / 256.0)).max(4.1 / 448.0 / 1024.0);
                assert!((value - original).abs() <= bound);
            }
            group.bench_function(
                format!("dequantize fp8 {block:?} {}", tier.name()),
                |bencher| {
                    bencher.iter(|| {
                        dequantize_fp8(tier, rows, Scales::F32(&scales), block, &mut back).unwrap();
                    });
                },
            );
        }
        let (mut codes, mut scales) = packed(tier, &x);
        assert!((&codes, &scales) == (&packed(scalar, &x).0, &packed(scalar, &x).1));
        let bytes = size_of_val(&*x) + COUNT / 2 + scales.len();
        group.throughput(Throughput::Bytes(bytes as u64));
        let rows = Rows::contiguous(&x, SIZE).unwrap();
        group.bench_function(format!("quantize mxfp4 {}", tier.name()), |bencher| {
            bencher.iter(|| quantize_mxfp4(tier, rows, &mut codes, &mut scales).unwrap());
        });
        let mut back = [vec![T::default(); COUNT], vec![T::default(); COUNT]];
        let rows = Rows::contiguous(&codes, SIZE / 2).unwrap();
        for (tier, back) in [tier, scalar].into_iter().zip(&mut back) {
            dequantize_mxfp4(tier, rows, &scales, back).unwrap();
        }
        let [mut back, expected] = back;
        assert!(
            back.iter()
                .zip(&expected)
                .all(|(left, right)| left.load() == right.load())
        );
        group.bench_function(format!("dequantize mxfp4 {}", tier.name()), |bencher| {
            bencher.iter(|| dequantize_mxfp4(tier, rows, &scales, &mut back).unwrap());
        });
    }
    group.finish();
}

fn every_type(c: &mut Criterion) {
    formats::<f32>(c, "f32");
    formats::<Bf16>(c, "bf16");
    formats::<F16>(c, "f16");
}

criterion_group!(name = benches; config = criterion(); targets = every_type);
criterion_main!(benches);
