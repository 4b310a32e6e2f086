//! A decoding step of the page cache: 64 sequences reserve and commit one token each.
#![allow(
    clippy::unwrap_used,
    missing_docs,
    reason = "a bench may fail, and its names are its documentation"
)]

use abyssal_benches::criterion;
use abyssal_kvcache::{Handle, PageCache};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};

const SEQUENCES: usize = 64;
const WIDTH: usize = 64;
const PROMPT: u64 = 1000;

fn opened() -> (PageCache, Vec<Handle>, Vec<i32>) {
    let mut cache = PageCache::new(SEQUENCES * WIDTH, 64).unwrap();
    let handles: Vec<Handle> = (0..SEQUENCES)
        .map(|_| cache.open(&[], b"").unwrap().0)
        .collect();
    let mut tables = vec![-1; SEQUENCES * WIDTH];
    cache
        .step(&handles, &[PROMPT; SEQUENCES], &mut tables, WIDTH)
        .unwrap();
    cache
        .commit(&handles, &[PROMPT; SEQUENCES], &[true; SEQUENCES])
        .unwrap();
    (cache, handles, tables)
}

fn decode(c: &mut Criterion) {
    let (mut cache, handles, mut tables) = opened();
    let copies = cache
        .step(&handles, &[1; SEQUENCES], &mut tables, WIDTH)
        .unwrap();
    assert!(copies.is_empty());
    assert_eq!(cache.stats().used_pages, SEQUENCES * 16);
    cache.audit().unwrap();

    let mut group = c.benchmark_group("kvcache");
    group.throughput(Throughput::Elements(SEQUENCES as u64));
    group.bench_function("open, reserve, commit, close", |bencher| {
        bencher.iter(|| {
            let (handle, _) = cache.open(&[], b"").unwrap();
            cache
                .step(&[handle], &[PROMPT], &mut tables, WIDTH)
                .unwrap();
            cache.commit(&[handle], &[PROMPT], &[false]).unwrap();
            cache.close(handle).unwrap();
        });
    });
    group.bench_function("one step of 64 sequences", |bencher| {
        bencher.iter_batched_ref(
            opened,
            |(cache, handles, tables)| {
                cache.step(handles, &[1; SEQUENCES], tables, WIDTH).unwrap();
                cache
                    .commit(handles, &[PROMPT + 1; SEQUENCES], &[false; SEQUENCES])
                    .unwrap();
            },
            criterion::BatchSize::LargeInput,
        );
    });
    group.finish();
}

criterion_group!(name = benches; config = criterion(); targets = decode);
criterion_main!(benches);
