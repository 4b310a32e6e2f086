//! Files that nobody wrote in good faith: each is a tokenizer or an error, in little time and memory.
//!
//! Cases are changes of the files in `corpus/`: bytes, stretches, numbers, repeated and swapped parts. A file there that
//! is none of the six families' is a case that once went wrong. `ABYSSAL_FUZZ_SECONDS=600` goes on for ten minutes; what
//! fails is written into the system's folder for temporary files.

#![allow(
    clippy::expect_used,
    reason = "a test may fail where its files cannot be read"
)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use abyssal_tokenizer::Tokenizer;

/// Most memory of one case: the tables of a file of 300 tokens, and of ids up to the largest allowed.
const MOST_MEMORY: usize = 512 << 20;
const MOST_TIME: Duration = Duration::from_secs(20);

/// Counts what is allocated.
struct Counting;

static NOW: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

// SAFETY: every call goes to the system's allocator unchanged; counting allocates nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size());
        // SAFETY: the caller's promises are passed on.
        unsafe { System.alloc(layout) }
    }
    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count(layout.size());
        // SAFETY: the caller's promises are passed on.
        unsafe { System.alloc_zeroed(layout) }
    }
    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        NOW.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller's promises are passed on.
        unsafe { System.dealloc(pointer, layout) }
    }
}

fn count(size: usize) {
    let now = NOW.fetch_add(size, Ordering::Relaxed) + size;
    PEAK.fetch_max(now, Ordering::Relaxed);
}

#[global_allocator]
static COUNTING: Counting = Counting;

/// A generator of numbers: splitmix64.
struct Draw(u64);

impl Draw {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut x = self.0;
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ (x >> 31)
    }

    fn below(&mut self, limit: usize) -> usize {
        (self.next() % limit.max(1) as u64) as usize
    }
}

const FRAGMENTS: [&str; 24] = [
    "null",
    "true",
    "[]",
    "{}",
    "\"\"",
    "-1",
    "0",
    "4194303",
    "4194304",
    "1e999",
    "18446744073709551616",
    "[[[[[[[[",
    "\"\\ud800\"",
    "\"\\u0000\"",
    "\\",
    ",",
    ":",
    "\"Ġ\"",
    " ",
    "\"a b c\"",
    "\u{0120}",
    "==",
    "\n",
    "\u{feff}",
];

fn change(draw: &mut Draw, data: &mut Vec<u8>) {
    for _ in 0..=draw.below(4) {
        let length = data.len();
        let at = draw.below(length);
        let widest = 1 << draw.below(12);
        let end = (at + draw.below(widest)).min(length);
        match draw.below(8) {
            0 if length > 0 => data[at] = draw.next() as u8,
            1 if length > 0 => data[at] ^= 1 << draw.below(8),
            2 => drop(data.drain(at..end)),
            3 => {
                let part = data[at..end].to_vec();
                let to = draw.below(length);
                data.splice(to..to, part);
            }
            4 => {
                let fragment = FRAGMENTS[draw.below(FRAGMENTS.len())];
                data.splice(at..at, fragment.bytes());
            }
            5 => {
                // A value in the place of another: what stands between two commas, colons or brackets.
                let stops = |byte: &u8| b",:[]{}".contains(byte);
                let from = data[..at]
                    .iter()
                    .rposition(stops)
                    .map_or(0, |place| place + 1);
                let to = data[at..]
                    .iter()
                    .position(stops)
                    .map_or(length, |place| at + place);
                let fragment = FRAGMENTS[draw.below(FRAGMENTS.len())];
                data.splice(from..to, fragment.bytes());
            }
            6 => data.truncate(at),
            _ => {
                let digits = |byte: &u8| byte.is_ascii_digit();
                if let Some(place) = data[at..].iter().position(digits) {
                    data[at + place] = b'0' + draw.below(10) as u8;
                }
            }
        }
    }
}

/// Loads a file and, if it is one, uses the tokenizer.
fn use_file(data: &[u8], ranks: bool) -> bool {
    let loaded = if ranks {
        let controls = [(data.len() as u32, "<end>".to_owned(), true)];
        Tokenizer::from_tiktoken(data, &controls)
    } else {
        Tokenizer::from_json(data)
    };
    let Ok(tokenizer) = loaded else {
        return false;
    };
    let text = "the In  12345 don't\r\n 深度求索 é ö <｜begin｜>｜>｜\0 aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";
    let mut ids = Vec::new();
    if tokenizer
        .encode(text, true, &mut || false, &mut ids)
        .is_ok()
    {
        let count = tokenizer.count(text, true, &mut || false);
        assert_eq!(count, Ok(ids.len()));
        let ids: Vec<i64> = ids.iter().map(|&id| i64::from(id)).collect();
        assert!(tokenizer.decode(&ids, false).is_ok());
    }
    let mut ids = Vec::new();
    let bytes = b"a\xff\xc3b\x80";
    if tokenizer
        .encode_bytes(bytes, &mut || false, &mut ids)
        .is_ok()
    {
        let ids: Vec<i64> = ids.iter().map(|&id| i64::from(id)).collect();
        assert_eq!(
            tokenizer.decode_bytes(&ids, false).as_deref(),
            Ok(&bytes[..])
        );
    }
    true
}

#[test]
fn a_hostile_file_is_an_error_or_a_tokenizer_in_little_time_and_memory() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/corpus");
    let mut seeds: Vec<_> = std::fs::read_dir(folder)
        .expect("the corpus is there")
        .map(|entry| entry.expect("its entries can be read").path())
        .collect();
    seeds.sort();
    let files: Vec<(bool, Vec<u8>)> = seeds
        .iter()
        .map(|path| {
            let data = std::fs::read(path).expect("a file of the corpus");
            (path.extension().is_some_and(|kind| kind == "model"), data)
        })
        .collect();
    for ((ranks, data), path) in files.iter().zip(&seeds) {
        assert!(use_file(data, *ranks), "{}", path.display());
    }
    let seconds = std::env::var("ABYSSAL_FUZZ_SECONDS").ok();
    let seconds: Option<u64> = seconds.and_then(|text| text.parse().ok());
    let (started, mut cases, mut loaded) = (Instant::now(), 0_u64, 0_u64);
    let goes_on = |cases: u64| match seconds {
        Some(seconds) => started.elapsed() < Duration::from_secs(seconds),
        None => cases < 1500,
    };
    while goes_on(cases) {
        let mut draw = Draw(cases);
        let (ranks, seed) = &files[draw.below(files.len())];
        let mut data = seed.clone();
        change(&mut draw, &mut data);
        PEAK.store(NOW.load(Ordering::Relaxed), Ordering::Relaxed);
        let before = NOW.load(Ordering::Relaxed);
        let used = || {
            let start = Instant::now();
            let result = catch_unwind(AssertUnwindSafe(|| use_file(&data, *ranks)));
            (result, start.elapsed())
        };
        let (mut result, mut time) = used();
        let memory = PEAK.load(Ordering::Relaxed) - before;
        if time > MOST_TIME {
            // A process may have been made to stand still: only what is slow again is slow.
            (result, time) = used();
        }
        if result.is_err() || memory > MOST_MEMORY || time > MOST_TIME {
            let path = std::env::temp_dir().join(format!("hostile-{cases}"));
            std::fs::write(&path, &data).expect("the failing file can be written");
            unreachable!(
                "case {cases}: {memory} bytes, {time:?}; see {}",
                path.display()
            );
        }
        loaded += u64::from(result.unwrap_or(false));
        cases += 1;
    }
    println!("{cases} files, {loaded} of them loaded");
    assert!(loaded > 0 && loaded < cases);
}
