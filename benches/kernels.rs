//! Products on stored weights: one token over more memory than any cache holds, in bytes of weights, beside plain reads
//! of the same memory; and many tokens, in multiplications.
#![allow(
    clippy::unwrap_used,
    missing_docs,
    reason = "a bench may fail, and its names are its documentation"
)]

use abyssal_benches::{criterion, numbers};
use abyssal_kernels::{Matrix, Tier, Weights, linear, pool};
use abyssal_quant::{Bf16, Element, Scales, e4m3_to_f32};
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};

const SHAPES: [(usize, usize); 3] = [(2048, 1408), (1408, 2048), (7168, 7168)];
const WORKING_SET: usize = 512 << 20;
const SCALE: f32 = 0.01;

/// Codes without NaN.
fn codes(count: usize) -> Vec<u8> {
    (0..count)
        .map(|index| (index.wrapping_mul(2_654_435_761) >> 13) as u8)
        .map(|code| if code & 0x7f == 0x7f { 1 } else { code })
        .collect()
}

fn read(bytes: &[u8], threads: usize) {
    let share = bytes.len() / 64;
    pool::for_each(threads, 64, &|part| {
        let mut sums = [0_u64; 16];
        for line in bytes[part * share..][..share].as_chunks::<128>().0 {
            for (sum, word) in sums.iter_mut().zip(line.as_chunks::<8>().0) {
                *sum = sum.wrapping_add(u64::from_ne_bytes(*word));
            }
        }
        std::hint::black_box(sums);
    });
}

/// `[rows, columns]` of FP8 codes, all with one scale.
fn multiply<T: Element>(
    (rows, columns): (usize, usize),
    codes: &[u8],
    scales: &[f32],
    x: &[T],
    threads: usize,
) -> Vec<f32> {
    let weights = Weights::Fp8 {
        codes,
        scales: Scales::F32(scales),
    };
    let matrix = Matrix::new(rows, columns, weights).unwrap();
    let mut out = vec![0.0; x.len() / columns * rows];
    linear(Tier::best(), &matrix, x, &mut out, threads).unwrap();
    out
}

fn check(columns: usize, codes: &[u8], x: &[Bf16], out: &[f32]) {
    for (row, &product) in codes.chunks(columns).zip(out) {
        let terms = row.iter().zip(x).map(|(&code, x)| {
            f64::from(e4m3_to_f32(code)) * f64::from(SCALE) * f64::from(x.load())
        });
        let (sum, size) = terms.fold((0.0, 0.0), |(sum, size), term| {
            (sum + term, size + term.abs())
        });
        // One rounding of each partial sum, and one of each activation times its scale; pairs round each weight times
        // its scale to bfloat16, eight bits.
        let mut bound = (columns + 2) as f64 * f64::from(f32::EPSILON) * size;
        if Tier::best().name() == "avx512-bf16" {
            bound += size / 256.0;
        }
        assert!((f64::from(product) - sum).abs() <= bound);
    }
}

fn one_token(c: &mut Criterion) {
    let bytes = codes(WORKING_SET);
    let mut group = c.benchmark_group("one token, fp8");
    group.sample_size(10);
    for threads in [1, pool::num_threads()] {
        group.throughput(Throughput::Bytes(WORKING_SET as u64));
        group.bench_function(BenchmarkId::new("read", threads), |bencher| {
            bencher.iter(|| read(&bytes, threads));
        });
        for shape @ (rows, columns) in SHAPES {
            let scales = vec![SCALE; rows.div_ceil(128) * columns.div_ceil(128)];
            let x: Vec<Bf16> = numbers(columns).into_iter().map(Bf16::store).collect();
            let matrices = bytes.chunks_exact(rows * columns);
            let out = multiply(shape, &bytes[..rows * columns], &scales, &x, threads);
            check(columns, &bytes[..rows * columns], &x, &out);
            group.throughput(Throughput::Bytes((matrices.len() * rows * columns) as u64));
            let name = format!("{rows} x {columns}");
            group.bench_function(BenchmarkId::new(name, threads), |bencher| {
                bencher.iter(|| {
                    for codes in matrices.clone() {
                        multiply(shape, codes, &scales, &x, threads);
                    }
                });
            });
        }
    }
    group.finish();
}

fn many_tokens(c: &mut Criterion) {
    let mut group = c.benchmark_group("many tokens, fp8 1408 x 2048");
    group.sample_size(10);
    let shape @ (rows, columns) = (1408, 2048);
    let codes = codes(rows * columns);
    let scales = vec![SCALE; rows.div_ceil(128) * columns.div_ceil(128)];
    for tokens in [4, 8, 48, 256] {
        let x: Vec<Bf16> = numbers(tokens * columns)
            .into_iter()
            .map(Bf16::store)
            .collect();
        check(
            columns,
            &codes,
            &x,
            &multiply(shape, &codes, &scales, &x, 1)[..rows],
        );
        group.throughput(Throughput::Elements((tokens * rows * columns) as u64));
        group.bench_function(BenchmarkId::from_parameter(tokens), |bencher| {
            bencher.iter(|| multiply(shape, &codes, &scales, &x, 1));
        });
    }
    group.finish();
}

criterion_group!(name = benches; config = criterion(); targets = one_token, many_tokens);
criterion_main!(benches);
