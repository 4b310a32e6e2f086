//! The page cache: pages in bulk, a decoding step, prompts that are cached and that are not, and a new chunk after
//! contexts of different lengths.
#![allow(
    clippy::unwrap_used,
    missing_docs,
    reason = "a bench may fail, and its names are its documentation"
)]

use abyssal_benches::criterion;
use abyssal_kvcache::{Handle, PageCache};
use criterion::{BatchSize, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};

const PAGE: usize = 64;
const SEQUENCES: usize = 256;
const WIDTH: usize = 64;
const PROMPT: usize = 32_768;
const CHUNK: usize = 2048;

/// Token ids that look random: those of another seed are others.
fn tokens(count: usize, seed: u64) -> Vec<u32> {
    let mut state = seed;
    let mut next = || {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as u32 % 129_280
    };
    (0..count).map(|_| next()).collect()
}

/// Computes and publishes what is not cached of a prompt; returns what was.
fn compute(cache: &mut PageCache, ids: &[u32], table: &mut [i32]) -> (Handle, u64) {
    let (handle, cached) = cache.open(ids, b"").unwrap();
    let length = ids.len() as u64;
    let width = table.len();
    cache
        .step(&[handle], &[length - cached], table, width)
        .unwrap();
    cache.commit(&[handle], &[length], &[true]).unwrap();
    (handle, cached)
}

fn pages(c: &mut Criterion) {
    const PAGES: usize = 8192;
    let mut cache = PageCache::new(PAGES, PAGE).unwrap();
    let mut table = vec![-1; PAGES];
    let mut group = c.benchmark_group("kvcache");
    group.throughput(Throughput::Elements(PAGES as u64));
    group.bench_function("allocate and free 8192 pages", |bencher| {
        bencher.iter(|| {
            let (handle, _) = cache.open(&[], b"").unwrap();
            cache
                .step(&[handle], &[(PAGES * PAGE) as u64], &mut table, PAGES)
                .unwrap();
            cache.close(handle).unwrap();
        });
    });
    assert_eq!(cache.free_pages(), PAGES);
    assert_eq!(
        table.iter().map(|&page| page as usize).sum::<usize>(),
        PAGES * (PAGES - 1) / 2
    );
    group.finish();
}

fn decode(c: &mut Criterion) {
    let opened = || {
        let mut cache = PageCache::new(SEQUENCES * WIDTH, PAGE).unwrap();
        let handles: Vec<Handle> = (0..SEQUENCES)
            .map(|_| cache.open(&[], b"").unwrap().0)
            .collect();
        let mut tables = vec![-1; SEQUENCES * WIDTH];
        let mut written = [0; SEQUENCES];
        let counts = [1000; SEQUENCES];
        cache
            .step_kept(&handles, &counts, &mut tables, WIDTH, &mut written)
            .unwrap();
        cache
            .commit(&handles, &counts, &[false; SEQUENCES])
            .unwrap();
        (cache, handles, tables, written)
    };
    let (mut cache, handles, mut tables, mut written) = opened();
    let ones = [1; SEQUENCES];
    cache
        .step_kept(&handles, &ones, &mut tables, WIDTH, &mut written)
        .unwrap();
    assert_eq!(
        (cache.stats().used_pages, written),
        (SEQUENCES * 16, [16; SEQUENCES])
    );
    cache.audit().unwrap();
    let mut group = c.benchmark_group("kvcache");
    group.throughput(Throughput::Elements(SEQUENCES as u64));
    group.bench_function("64 steps of 256 sequences by one token", |bencher| {
        bencher.iter_batched_ref(
            opened,
            |(cache, handles, tables, written)| {
                for _ in 0..64 {
                    cache
                        .step_kept(handles, &ones, tables, WIDTH, written)
                        .unwrap();
                }
            },
            BatchSize::LargeInput,
        );
    });
    group.finish();
}

fn prompts(c: &mut Criterion) {
    let mut group = c.benchmark_group("kvcache");
    for length in [PROMPT, 1 << 20] {
        let ids = tokens(length, 1);
        let mut cache = PageCache::new(length / PAGE, PAGE).unwrap();
        let mut table = vec![-1; length / PAGE];
        let (handle, _) = compute(&mut cache, &ids, &mut table);
        cache.close(handle).unwrap();
        group.throughput(Throughput::Elements(length as u64));
        group.bench_function(
            BenchmarkId::new("match and close, all cached", length),
            |bencher| {
                bencher.iter(|| {
                    let (handle, cached) = cache.open(&ids, b"").unwrap();
                    assert_eq!(cached, length as u64);
                    cache.close(handle).unwrap();
                });
            },
        );
        cache.audit().unwrap();
    }
    // A cache of 16 prompts: from the 17th on pages are given up for it.
    let mut cache = PageCache::new(16 * PROMPT / PAGE, PAGE).unwrap();
    let mut table = vec![-1; PROMPT / PAGE];
    let mut seed = 0;
    group.throughput(Throughput::Elements(PROMPT as u64));
    group.bench_function(
        BenchmarkId::new("open, publish and close, none cached", PROMPT),
        |bencher| {
            bencher.iter_batched(
                || {
                    seed += 1;
                    tokens(PROMPT, seed)
                },
                |ids| {
                    let (handle, cached) = compute(&mut cache, &ids, &mut table);
                    assert_eq!(cached, 0);
                    cache.close(handle).unwrap();
                },
                BatchSize::LargeInput,
            );
        },
    );
    group.finish();
}

/// What a chunk costs must not depend on what was there before it.
fn chunks(c: &mut Criterion) {
    let mut group = c.benchmark_group("kvcache, a chunk of 2048 tokens after");
    for context in [1 << 12, 1 << 16, 1 << 20] {
        let length = context + 8 * CHUNK;
        let ids = tokens(length, 1);
        let begun = || {
            let mut cache = PageCache::new(length / PAGE, PAGE).unwrap();
            let (mut table, mut written) = (vec![-1; length / PAGE], [0]);
            let (handle, _) = cache.open(&ids, b"").unwrap();
            let width = table.len();
            cache
                .step_kept(
                    &[handle],
                    &[context as u64],
                    &mut table,
                    width,
                    &mut written,
                )
                .unwrap();
            cache.commit(&[handle], &[context as u64], &[true]).unwrap();
            (cache, handle, table, written)
        };
        group.bench_function(BenchmarkId::from_parameter(context), |bencher| {
            bencher.iter_batched_ref(
                begun,
                |(cache, handle, table, written)| {
                    let width = table.len();
                    for chunk in 1..=8 {
                        let computed = [(context + chunk * CHUNK) as u64];
                        cache
                            .step_kept(&[*handle], &[CHUNK as u64], table, width, written)
                            .unwrap();
                        cache.commit(&[*handle], &computed, &[true]).unwrap();
                    }
                    assert_eq!(cache.stats().published_pages, length / PAGE);
                },
                BatchSize::LargeInput,
            );
        });
    }
    group.finish();
}

criterion_group!(name = benches; config = criterion(); targets = pages, decode, prompts, chunks);
criterion_main!(benches);
