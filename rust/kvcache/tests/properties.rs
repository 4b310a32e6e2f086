//! Random operation sequences against a naive model that stores the token at every place.

// A failed expectation is how these tests fail.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::collections::HashMap;

use abyssal_kvcache::{Error, Handle, PageCache};
use proptest::prelude::*;

#[derive(Debug, Clone)]
enum Operation {
    Open,
    Step(Vec<(usize, u64)>),
    Commit(usize, u64),
    Fork(usize),
    Close(usize),
    Stale(usize),
}

fn operation() -> impl Strategy<Value = Operation> {
    let picks = proptest::collection::vec((0..16_usize, 0..9_u64), 0..5);
    prop_oneof![
        2 => Just(Operation::Open),
        6 => picks.prop_map(Operation::Step),
        3 => (0..16_usize, 0..9_u64).prop_map(|(pick, back)| Operation::Commit(pick, back)),
        3 => (0..16_usize).prop_map(Operation::Fork),
        2 => (0..16_usize).prop_map(Operation::Close),
        1 => (0..16_usize).prop_map(Operation::Stale),
    ]
}

/// One sequence of the model: the tokens it has written, by their own unique values.
#[derive(Clone)]
struct Naive {
    handle: Handle,
    tokens: Vec<u64>,
    computed: u64,
}

/// The model's memory: what the caller's rows hold after making the copies and writing the tokens.
struct World {
    cache: PageCache,
    page_size: usize,
    rows: Vec<u64>,
    open: Vec<Naive>,
    closed: Vec<Handle>,
    next_token: u64,
    tables: HashMap<Handle, Vec<i32>>,
}

impl World {
    fn new(num_pages: usize, page_size: usize) -> Self {
        Self {
            cache: PageCache::new(num_pages, page_size).unwrap(),
            page_size,
            rows: vec![0; num_pages * page_size],
            open: Vec::new(),
            closed: Vec::new(),
            next_token: 1,
            tables: HashMap::new(),
        }
    }

    fn step(&mut self, picks: &[(usize, u64)]) {
        let mut chosen: Vec<(usize, u64)> = Vec::new();
        for &(pick, count) in picks {
            let Some(pick) = pick.checked_rem(self.open.len()) else {
                return;
            };
            if chosen.iter().all(|&(other, _)| other != pick) {
                chosen.push((pick, count));
            }
        }
        let handles: Vec<_> = chosen
            .iter()
            .map(|&(pick, _)| self.open[pick].handle)
            .collect();
        let counts: Vec<_> = chosen.iter().map(|&(_, count)| count).collect();
        let width = self.rows.len() / self.page_size;
        let mut tables = vec![-1; handles.len() * width];
        let before = self.cache.stats();
        match self.cache.step(&handles, &counts, &mut tables, width) {
            Ok(copies) => {
                let old = self.rows.clone();
                for copy in copies {
                    let (from, to) = (copy.from.0 as usize, copy.to.0 as usize);
                    let size = self.page_size;
                    self.rows[to * size..][..size].copy_from_slice(&old[from * size..][..size]);
                }
                for (row, &(pick, count)) in chosen.iter().enumerate() {
                    let table = &tables[row * width..][..width];
                    for _ in 0..count {
                        let place = self.open[pick].tokens.len();
                        let page = usize::try_from(table[place / self.page_size]).unwrap();
                        self.rows[page * self.page_size + place % self.page_size] = self.next_token;
                        self.open[pick].tokens.push(self.next_token);
                        self.next_token += 1;
                    }
                    self.tables.insert(self.open[pick].handle, table.to_vec());
                }
            }
            Err(Error::OutOfPages { asked, free }) => {
                assert!(asked > free);
                assert_eq!(free, before.free_pages as u64);
                assert_eq!(self.cache.stats(), before);
                assert!(
                    tables.iter().all(|&entry| entry == -1),
                    "a refused step wrote the table"
                );
            }
            Err(error) => panic!("{error}"),
        }
    }

    fn apply(&mut self, operation: &Operation) {
        match operation {
            Operation::Open => {
                let (handle, cached) = self.cache.open(&[1, 2], b"salt").unwrap();
                assert_eq!(cached, 0);
                assert!(
                    !self.closed.contains(&handle),
                    "a closed handle was given out again"
                );
                self.open.push(Naive {
                    handle,
                    tokens: Vec::new(),
                    computed: 0,
                });
            }
            Operation::Step(picks) => self.step(picks),
            Operation::Commit(pick, back) => {
                let Some(pick) = pick.checked_rem(self.open.len()) else {
                    return;
                };
                let naive = &mut self.open[pick];
                let computed = (naive.tokens.len() as u64)
                    .saturating_sub(*back)
                    .max(naive.computed);
                self.cache
                    .commit(&[naive.handle], &[computed], &[*back == 0])
                    .unwrap();
                naive.computed = computed;
                let beyond = naive.tokens.len() as u64 + 1;
                let error = self
                    .cache
                    .commit(&[naive.handle], &[beyond], &[true])
                    .unwrap_err();
                assert!(matches!(error, Error::Computed { .. }));
            }
            Operation::Fork(pick) => {
                let Some(pick) = pick.checked_rem(self.open.len()) else {
                    return;
                };
                let naive = self.open[pick].clone();
                let whole = naive.computed == naive.tokens.len() as u64;
                match self.cache.fork(naive.handle) {
                    Ok(handle) => {
                        assert!(whole);
                        if let Some(table) = self.tables.get(&naive.handle).cloned() {
                            self.tables.insert(handle, table);
                        }
                        self.open.push(Naive { handle, ..naive });
                    }
                    Err(error) => {
                        assert!(!whole && matches!(error, Error::ForkUncomputed { .. }));
                    }
                }
            }
            Operation::Close(pick) => {
                let Some(pick) = pick.checked_rem(self.open.len()) else {
                    return;
                };
                let naive = self.open.swap_remove(pick);
                self.cache.close(naive.handle).unwrap();
                self.closed.push(naive.handle);
            }
            Operation::Stale(pick) => {
                let Some(pick) = pick.checked_rem(self.closed.len()) else {
                    return;
                };
                let stale = [self.closed[pick]];
                let error = Error::StaleHandle { handle: stale[0].0 };
                assert_eq!(self.cache.close(stale[0]), Err(error));
                assert_eq!(self.cache.fork(stale[0]), Err(error));
                assert_eq!(self.cache.commit(&stale, &[0], &[false]), Err(error));
                assert_eq!(self.cache.step(&stale, &[1], &mut [0; 8], 8), Err(error));
            }
        }
    }

    /// Every sequence reads back exactly what it wrote, whatever the others did.
    fn check(&self) {
        self.cache.audit().unwrap();
        let stats = self.cache.stats();
        assert_eq!(stats.sequences, self.open.len());
        assert_eq!(
            stats.reserved_tokens,
            self.open
                .iter()
                .map(|naive| naive.tokens.len() as u64)
                .sum::<u64>()
        );
        assert_eq!(
            stats.computed_tokens,
            self.open.iter().map(|naive| naive.computed).sum::<u64>()
        );
        for naive in &self.open {
            for (place, &token) in naive.tokens.iter().enumerate() {
                let page = self.tables[&naive.handle][place / self.page_size] as usize;
                assert_eq!(
                    self.rows[page * self.page_size + place % self.page_size],
                    token
                );
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_sequence_reads_back_its_own_tokens(
        num_pages in 1..12_usize,
        page_size in 1..6_usize,
        operations in proptest::collection::vec(operation(), 1..80),
    ) {
        let mut world = World::new(num_pages, page_size);
        for operation in &operations {
            world.apply(operation);
            world.check();
        }
        while let Some(naive) = world.open.pop() {
            world.cache.close(naive.handle).unwrap();
        }
        world.cache.audit().unwrap();
        prop_assert_eq!(world.cache.stats().free_pages, num_pages);
    }
}

#[test]
fn of_three_holders_of_a_half_filled_page_two_copy_it() {
    let mut cache = PageCache::new(8, 4).unwrap();
    let (first, _) = cache.open(&[], b"").unwrap();
    cache.step(&[first], &[6], &mut [0; 8], 8).unwrap();
    cache.commit(&[first], &[6], &[false]).unwrap();
    let (second, third) = (cache.fork(first).unwrap(), cache.fork(first).unwrap());
    let copies = cache
        .step(&[first, second, third], &[1, 1, 1], &mut [0; 24], 8)
        .unwrap();
    assert_eq!(copies.len(), 2);
    assert!(copies.iter().all(|copy| copy.from.0 == 1));
    assert_eq!(cache.stats().used_pages, 4);
    cache.audit().unwrap();
}

#[test]
fn a_fork_at_a_page_border_copies_nothing() {
    let mut cache = PageCache::new(8, 4).unwrap();
    let (first, _) = cache.open(&[], b"").unwrap();
    cache.step(&[first], &[8], &mut [0; 8], 8).unwrap();
    cache.commit(&[first], &[8], &[false]).unwrap();
    let second = cache.fork(first).unwrap();
    assert!(
        cache
            .step(&[first, second], &[1, 1], &mut [0; 16], 8)
            .unwrap()
            .is_empty()
    );
    assert_eq!(cache.stats().used_pages, 4);
}

#[test]
fn a_refused_step_changes_nothing() {
    let mut cache = PageCache::new(4, 4).unwrap();
    let (first, _) = cache.open(&[], b"").unwrap();
    let (other, _) = cache.open(&[], b"").unwrap();
    cache.step(&[first], &[6], &mut [0; 4], 4).unwrap();
    cache.commit(&[first], &[6], &[false]).unwrap();
    let fork = cache.fork(first).unwrap();
    let before = cache.stats();
    let mut tables = [-1; 12];
    let both = [first, fork, other];
    let refused = [
        (
            cache.step(&both, &[1, 1, 5], &mut tables, 4),
            Error::OutOfPages { asked: 3, free: 2 },
        ),
        (
            cache.step(&both, &[u64::MAX, 1, 1], &mut tables, 4),
            Error::OutOfPages {
                asked: u64::MAX / 4 + 1,
                free: 2,
            },
        ),
        (
            cache.step(&both, &[1, 1], &mut tables, 4),
            Error::Lengths {
                what: "counts",
                expected: 3,
                actual: 2,
            },
        ),
        (
            cache.step(&both, &[1, 1, 1], &mut tables[..8], 4),
            Error::Lengths {
                what: "block_tables_out",
                expected: 3,
                actual: 2,
            },
        ),
        (
            cache.step(&both, &[1, 1, 1], &mut tables, 1),
            Error::TableWidth { pages: 2, width: 1 },
        ),
        (
            cache.step(&[first, other, first], &[1, 1, 1], &mut tables, 4),
            Error::RepeatedHandle { handle: first.0 },
        ),
        (
            cache.step(&[Handle(0)], &[1], &mut tables, 4),
            Error::StaleHandle { handle: 0 },
        ),
    ];
    for (result, error) in refused {
        assert_eq!(result, Err(error));
    }
    assert_eq!(cache.stats(), before);
    assert_eq!(tables, [-1; 12]);
    cache.audit().unwrap();
}

#[test]
fn sizes_out_of_range_are_refused() {
    assert_eq!(
        PageCache::new(0, 64).unwrap_err(),
        Error::NumPages { asked: 0 }
    );
    assert_eq!(
        PageCache::new(4, 0).unwrap_err(),
        Error::PageSize { asked: 0 }
    );
    let asked = i32::MAX as usize + 1;
    assert_eq!(
        PageCache::new(asked, 64).unwrap_err(),
        Error::NumPages { asked }
    );
}
