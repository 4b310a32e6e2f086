//! Random operations against a naive cache, with the caller's memory played along.
//!
//! Every row of memory holds a number that follows from the salt and all tokens up to its own, as a latent does. Rows
//! are written when they are committed and hold rubbish before. So a page that is matched too early, across salts,
//! after other tokens or after it was given up shows as a wrong number in the sequence that got it. Beyond that,
//! everything that the real cache answers must be what the naive one answers: page ids, copies, counts.

// A failed expectation is how these tests fail.
#![allow(clippy::unwrap_used, clippy::panic, missing_docs, unreachable_pub)]

mod naive;

use std::collections::HashMap;

use abyssal_kvcache::{Error, Handle, KeptRows, Limits, PageCache};
use naive::Cache;

const RUBBISH: u64 = u64::MAX;
const SALTS: [&[u8]; 4] = [b"", b"a", b"a\0", b"\0"];

/// SplitMix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }

    fn pick<'a, T>(&mut self, from: &'a [T]) -> &'a T {
        &from[self.below(from.len() as u64) as usize]
    }
}

/// What a row holds after `token`, given what the row before it holds.
fn latent(before: u64, token: u32) -> u64 {
    let mixed = (before ^ u64::from(token) << 17).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    mixed ^ (mixed >> 29)
}

/// A sequence as its caller knows it.
#[derive(Clone)]
struct Caller {
    handle: Handle,
    salt: usize,
    /// All tokens it has or will have.
    ids: Vec<u32>,
    /// The number of each token's row.
    latents: Vec<u64>,
    row: Vec<i32>,
    written: i32,
}

/// What a step is told of its table.
#[derive(Clone, Copy, PartialEq)]
enum Mode {
    Anew,
    Written,
    Table,
}

struct World {
    random: Random,
    real: PageCache,
    naive: Cache,
    page_size: usize,
    num_pages: usize,
    memory: Vec<u64>,
    /// A block table that is kept, and what is known of its rows.
    table: Vec<i32>,
    kept: KeptRows,
    open: Vec<Caller>,
    closed: Vec<Handle>,
    /// Prompts seen so far: new ones begin like them.
    prompts: Vec<Vec<u32>>,
    seen: HashMap<&'static str, u64>,
}

impl World {
    fn new(seed: u64) -> Self {
        let mut random = Random(seed);
        let page_size = 1 + random.below(5) as usize;
        let num_pages = 1 + random.below(16) as usize;
        let bits = *random.pick(&[0, 1, 3, 64]);
        Self {
            real: PageCache::with_hash_bits(num_pages, page_size, bits).unwrap(),
            naive: Cache::new(num_pages, page_size),
            page_size,
            num_pages,
            memory: vec![RUBBISH; num_pages * page_size],
            table: vec![-1; 4 * num_pages],
            kept: KeptRows::default(),
            open: Vec::new(),
            closed: Vec::new(),
            prompts: vec![Vec::new()],
            seen: HashMap::new(),
            random,
        }
    }

    fn count(&mut self, what: &'static str, often: u64) {
        *self.seen.entry(what).or_default() += often;
    }

    fn tokens(&mut self, most: u64) -> Vec<u32> {
        let count = self.random.below(most + 1);
        (0..count).map(|_| self.random.below(2) as u32).collect()
    }

    fn pick_open(&mut self) -> Option<usize> {
        let count = self.open.len() as u64;
        (count > 0).then(|| self.random.below(count) as usize)
    }

    fn open(&mut self) {
        let earlier = self.random.pick(&self.prompts).clone();
        let kept = self
            .random
            .below(earlier.len() as u64 + 1)
            .max(self.random.below(9));
        let mut prompt: Vec<u32> = earlier.into_iter().take(kept as usize).collect();
        prompt.extend(self.tokens(6));
        prompt.truncate(24);
        let salt = if self.random.below(4) == 0 {
            self.random.below(SALTS.len() as u64) as usize
        } else {
            0
        };
        let mut limits = Limits::default();
        if self.random.below(4) == 0 {
            limits.max_cached = self.random.below(20);
            limits.multiple_of = 1 + self.random.below(6);
        }
        let (handle, cached) = self.real.open_within(&prompt, SALTS[salt], limits).unwrap();
        assert_eq!(
            cached,
            self.naive.open(handle.0, &prompt, SALTS[salt], limits)
        );
        assert!(cached <= limits.max_cached && cached.is_multiple_of(limits.multiple_of));
        assert!(
            !self.closed.contains(&handle),
            "a closed handle was given out again"
        );
        self.count("cached tokens", cached);
        let mut before = salt as u64;
        let latents = prompt
            .iter()
            .map(|&token| {
                before = latent(before, token);
                before
            })
            .collect();
        self.prompts.push(prompt.clone());
        self.open.push(Caller {
            handle,
            salt,
            ids: prompt,
            latents,
            row: vec![-1; self.num_pages],
            written: 0,
        });
        // The row is written at the first step, which may reserve nothing.
        let last = self.open.len() - 1;
        self.step(&[(last, 0)]);
    }

    fn step_some(&mut self) {
        let mut picks: Vec<(usize, u64)> = Vec::new();
        for _ in 0..self.random.below(4) {
            if let Some(pick) = self.pick_open()
                && picks.iter().all(|&(other, _)| other != pick)
            {
                picks.push((pick, self.random.below(8)));
            }
        }
        self.step(&picks);
    }

    fn step(&mut self, picks: &[(usize, u64)]) {
        let handles: Vec<Handle> = picks
            .iter()
            .map(|&(pick, _)| self.open[pick].handle)
            .collect();
        let counts: Vec<u64> = picks.iter().map(|&(_, count)| count).collect();
        let names: Vec<(u64, u64)> = picks
            .iter()
            .map(|&(pick, count)| (self.open[pick].handle.0, count))
            .collect();
        let rows = |open: &[Caller]| -> Vec<i32> {
            picks
                .iter()
                .flat_map(|&(pick, _)| open[pick].row.clone())
                .collect()
        };
        let mode = *self.random.pick(&[Mode::Anew, Mode::Written, Mode::Table]);
        // The last mode finds in a row what the step before left there, whose ever it was.
        let old_tables = match mode {
            Mode::Table => self.table.clone(),
            _ => rows(&self.open),
        };
        let mut tables = old_tables.clone();
        let mut written: Vec<i32> = picks
            .iter()
            .map(|&(pick, _)| self.open[pick].written)
            .collect();
        let reserved: Vec<u64> = names
            .iter()
            .map(|&(name, _)| self.naive.get(name).reserved)
            .collect();
        let before = self.real.stats();
        let (real, width) = (&mut self.real, self.num_pages);
        let result = match mode {
            Mode::Anew => real.step(&handles, &counts, &mut tables, width),
            Mode::Written => real.step_kept(&handles, &counts, &mut tables, width, &mut written),
            Mode::Table => real.step_table(&handles, &counts, &mut tables, width, &mut self.kept),
        };
        match (result, self.naive.step(&names)) {
            (Ok(copies), Ok(expected)) => {
                let pairs: Vec<(usize, usize)> = copies
                    .iter()
                    .map(|copy| (copy.from.0 as usize, copy.to.0 as usize))
                    .collect();
                assert_eq!(pairs, expected);
                self.count("copies", copies.len() as u64);
                let old = self.memory.clone();
                for (from, to) in pairs {
                    self.memory[to * self.page_size..][..self.page_size]
                        .copy_from_slice(&old[from * self.page_size..][..self.page_size]);
                }
                for (row, &(pick, count)) in picks.iter().enumerate() {
                    let table = &tables[row * self.num_pages..][..self.num_pages];
                    let pages = &self.naive.get(handles[row].0).pages;
                    for (place, &page) in pages.iter().enumerate() {
                        assert_eq!(table[place] as usize, page);
                    }
                    self.open[pick].row = table.to_vec();
                    self.open[pick].written = pages.len() as i32;
                    assert!(mode != Mode::Written || written[row] as usize == pages.len());
                    for place in reserved[row]..reserved[row] + count {
                        let at = self.place(pick, place as usize);
                        self.memory[at] = RUBBISH;
                    }
                }
            }
            (Err(Error::OutOfPages { asked, free }), Err(expected)) => {
                assert_eq!((asked, free), expected);
                assert_eq!(self.real.stats(), before);
                assert_eq!(tables, old_tables, "a refused step wrote the table");
                self.count("refused steps", 1);
            }
            (real, naive) => panic!("{real:?}, the naive cache {naive:?}"),
        }
        if mode == Mode::Table {
            self.table = tables;
        }
    }

    fn place(&self, pick: usize, token: usize) -> usize {
        let page = usize::try_from(self.open[pick].row[token / self.page_size]).unwrap();
        page * self.page_size + token % self.page_size
    }

    fn commit(&mut self) {
        let Some(pick) = self.pick_open() else {
            return;
        };
        let handle = self.open[pick].handle;
        let (from, reserved) = {
            let sequence = self.naive.get(handle.0);
            (sequence.computed, sequence.reserved)
        };
        let short = self.random.below(5).saturating_sub(2);
        let computed = reserved.saturating_sub(short).max(from);
        let publish = self.random.below(4) != 0;
        while (self.open[pick].ids.len() as u64) < computed {
            let token = self.random.below(2) as u32;
            let caller = &mut self.open[pick];
            let before = caller.latents.last().copied().unwrap_or(caller.salt as u64);
            caller.ids.push(token);
            caller.latents.push(latent(before, token));
        }
        for token in from as usize..computed as usize {
            let at = self.place(pick, token);
            self.memory[at] = self.open[pick].latents[token];
        }
        let missing = self.naive.ids_missing(handle.0, computed) as usize;
        let mut ids = self.open[pick].ids[computed as usize - missing..computed as usize].to_vec();
        let counts = [computed];
        if self.random.below(4) == 0 {
            self.real.commit(&[handle], &counts, &[publish]).unwrap();
            ids.clear();
        } else {
            let more = [ids.clone(), vec![1]].concat();
            let error = self
                .real
                .commit_tokens(&[handle], &counts, &[publish], &more);
            let (given, expected) = (missing + 1, missing as u64);
            assert_eq!(error, Err(Error::TokenIds { given, expected }));
            self.real
                .commit_tokens(&[handle], &counts, &[publish], &ids)
                .unwrap();
        }
        self.naive.commit(handle.0, computed, publish, &ids);
        let error = self
            .real
            .commit(&[handle], &[reserved + 1], &[true])
            .unwrap_err();
        assert!(matches!(error, Error::Computed { .. }));
        if publish {
            let ids = self.open[pick].ids.clone();
            self.prompts.push(ids);
        }
    }

    fn fork(&mut self) {
        let partial = |caller: &Caller| {
            let sequence = self.naive.get(caller.handle.0);
            sequence.computed == sequence.reserved
                && !sequence.reserved.is_multiple_of(self.page_size as u64)
        };
        // The interesting ones share a page that both will write to.
        let found = self.open.iter().position(partial);
        let found = found.or_else(|| self.pick_open());
        let Some(pick) = found.filter(|_| self.open.len() < 6) else {
            return;
        };
        let caller = self.open[pick].clone();
        let sequence = self.naive.get(caller.handle.0);
        let whole = sequence.computed == sequence.reserved;
        match self.real.fork(caller.handle) {
            Ok(handle) => {
                assert!(whole);
                self.naive.fork(caller.handle.0, handle.0);
                let mut copy = Caller { handle, ..caller };
                // The two go on with different tokens.
                copy.ids.truncate(sequence_length(&self.naive, handle));
                copy.latents.truncate(copy.ids.len());
                self.open.push(copy);
                self.count("forks", 1);
                if self.random.below(2) == 0 {
                    let (new, counts) = (self.open.len() - 1, 1 + self.random.below(3));
                    self.step(&[(pick, counts), (new, counts)]);
                }
            }
            Err(error) => assert!(!whole && matches!(error, Error::ForkUncomputed { .. })),
        }
    }

    fn close(&mut self) {
        if let Some(pick) = self.pick_open() {
            let caller = self.open.swap_remove(pick);
            self.real.close(caller.handle).unwrap();
            self.naive.close(caller.handle.0);
            self.closed.push(caller.handle);
        }
    }

    fn stale(&mut self) {
        if let Some(&handle) = self.closed.get(self.random.below(8) as usize) {
            let error = Error::StaleHandle { handle: handle.0 };
            assert_eq!(self.real.close(handle), Err(error.clone()));
            assert_eq!(self.real.fork(handle), Err(error.clone()));
            assert_eq!(
                self.real.commit(&[handle], &[0], &[true]),
                Err(error.clone())
            );
            assert_eq!(self.real.step(&[handle], &[1], &mut [0; 9], 9), Err(error));
        }
    }

    fn operation(&mut self) {
        match self.random.below(100) {
            0..20 if self.open.len() < 6 => self.open(),
            20..45 => self.step_some(),
            45..72 => self.commit(),
            72..78 => self.fork(),
            78..97 => self.close(),
            97 if self.random.below(8) == 0 => {
                self.real.clear();
                self.naive.clear();
                self.count("clears", 1);
            }
            _ => self.stale(),
        }
    }

    /// The real cache is whole, counts like the naive one, and every computed row holds what it should.
    fn check(&self) {
        self.real.audit().unwrap();
        assert_eq!(self.real.stats(), self.naive.stats());
        for (pick, caller) in self.open.iter().enumerate() {
            let computed = self.naive.get(caller.handle.0).computed as usize;
            for token in 0..computed {
                let latent = self.memory[self.place(pick, token)];
                assert_eq!(
                    latent, caller.latents[token],
                    "token {token} of {:?}",
                    caller.handle
                );
            }
        }
    }
}

/// Tokens of a fork that are fixed: those that are computed, or whose ids the cache was told.
fn sequence_length(naive: &Cache, handle: Handle) -> usize {
    naive.get(handle.0).known_or_computed()
}

/// One case: returns the number of operations, and how often what happened.
fn case(seed: u64) -> (u64, HashMap<&'static str, u64>) {
    let mut world = World::new(seed);
    let operations = 100;
    for _ in 0..operations {
        world.operation();
        world.check();
    }
    while !world.open.is_empty() {
        world.close();
        world.check();
    }
    let stats = world.real.stats();
    assert_eq!(stats.free_pages, world.num_pages, "a page leaked");
    world.count("evictions", stats.evictions);
    (operations, world.seen)
}

#[test]
fn a_million_random_operations_behave_like_the_naive_cache() {
    let cases = match std::env::var("ABYSSAL_TEST_PROFILE").as_deref() {
        Ok("full") => 200_000,
        Ok("emulated") => 50,
        _ => 10_500,
    };
    let mut operations = 0;
    let mut seen: HashMap<&str, u64> = HashMap::new();
    for seed in 0..cases {
        let result = std::panic::catch_unwind(|| case(seed));
        let Ok((done, events)) = result else {
            panic!("the case with seed {seed} failed, see above");
        };
        operations += done;
        for (what, often) in events {
            *seen.entry(what).or_default() += often;
        }
    }
    assert!(operations >= 1_000_000 || cases < 10_000);
    // The cases are worth something only if everything happens often.
    for what in [
        "cached tokens",
        "copies",
        "refused steps",
        "forks",
        "clears",
        "evictions",
    ] {
        assert!(seen[what] >= cases / 10, "{what}: {seen:?}");
    }
    println!("{operations} operations: {seen:?}");
}
