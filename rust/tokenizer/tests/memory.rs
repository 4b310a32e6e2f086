//! The limit that is stated for the caches is that of the memory they take from the system.

#![cfg(target_os = "linux")]
// A failed expectation is how these tests fail.
#![allow(clippy::unwrap_used)]

use std::fmt::Write;
use std::sync::Barrier;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use abyssal_tokenizer::{CACHE_BYTES, Tokenizer};
use serde_json::{Value, json};

/// More calls at once than there are caches.
const CALLS: usize = 24;
/// What the calls themselves hold, and the allocator keeps of what they had.
const BESIDE: usize = CALLS << 19;

/// Printable ASCII characters, space and newline, and merges that make one token of sixteen times "a".
fn load() -> Tokenizer {
    let mut names: Vec<String> = (0x21_u8..0x7f)
        .map(|byte| char::from(byte).into())
        .collect();
    names.extend(["Ġ".into(), "Ċ".into()]);
    let merges = [1, 2, 4, 8].map(|half| ["a".repeat(half), "a".repeat(half)]);
    names.extend(merges.iter().map(|pair| pair.concat()));
    let vocab: Value = names
        .iter()
        .enumerate()
        .map(|(id, name)| (name.clone(), json!(id)))
        .collect();
    let split = |pattern: &str| json!({"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": false});
    let file = json!({
        "added_tokens": [],
        "normalizer": null,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
            split("[\r\n]"), split(r"\s?\p{L}+"), split(r"\s?\p{P}+"), split("[一-龥]+"),
            {"type": "Digits", "individual_digits": true},
            {"type": "ByteLevel", "add_prefix_space": false, "use_regex": false}]},
        "decoder": {"type": "ByteLevel"},
        "model": {"type": "BPE", "vocab": vocab, "merges": merges},
    });
    Tokenizer::from_json(file.to_string().as_bytes()).unwrap()
}

/// Words that all differ: short ones for every line of the largest cache, then long ones of few tokens for every byte.
fn text() -> String {
    let word = |mut number: usize| -> String {
        let letter = |_| {
            let letter = b'b' + (number % 25) as u8;
            number /= 25;
            char::from(letter)
        };
        (0..4).map(letter).collect()
    };
    let mut text = String::new();
    for number in 0..200_000 {
        let (low, high) = (word(number), word(number / 390_625));
        let end = if number % 100 == 0 { "\n" } else { "" };
        write!(text, " {low}{high}{end}").unwrap();
    }
    for number in 0..64_000 {
        writeln!(text, " {}{}", word(number), "a".repeat(64)).unwrap();
    }
    text
}

/// Bytes of this process that are in memory.
fn resident() -> usize {
    let pages = std::fs::read_to_string("/proc/self/smaps_rollup").unwrap();
    let line = pages.lines().find(|line| line.starts_with("Rss:")).unwrap();
    let kilobytes = line.split_whitespace().nth(1).unwrap();
    kilobytes.parse::<usize>().unwrap() << 10
}

#[test]
fn full_caches_take_the_memory_that_is_stated_and_no_more_than_the_limit() {
    let (tokenizer, text) = (load(), text());
    let expected = load().count(&text, true, &mut || false).unwrap();
    let before = resident();
    assert_eq!(tokenizer.cache_bytes(), 0);
    let all_work = Barrier::new(CALLS);
    let peak = AtomicUsize::new(0);
    thread::scope(|scope| {
        for _ in 0..CALLS {
            scope.spawn(|| {
                let mut begun = false;
                // Asked while a call holds its cache: none goes on before all hold theirs.
                let mut stop = || {
                    if !begun {
                        begun = true;
                        all_work.wait();
                    }
                    peak.fetch_max(resident(), Ordering::Relaxed);
                    false
                };
                let count = tokenizer.count(&text, true, &mut stop);
                assert_eq!(count, Ok(expected));
            });
        }
    });
    let (stated, after) = (tokenizer.cache_bytes(), resident() - before);
    let peak = peak.into_inner() - before;
    println!("stated {stated}, taken {after}, at most {peak}, limit {CACHE_BYTES}");
    assert!(stated <= CACHE_BYTES);
    assert!(stated >= CACHE_BYTES / 10 * 9, "not full");
    assert!(after.abs_diff(stated) <= BESIDE);
    assert!(peak <= CACHE_BYTES + BESIDE);
}
