//! Threads that share a tokenizer with its caches. `make test-threads` runs this with ThreadSanitizer.

// A failed expectation is how these tests fail.
#![allow(clippy::unwrap_used)]

use std::thread;

use abyssal_tokenizer::{DecodeStream, Tokenizer};
use serde_json::{Value, json};

const THREADS: usize = 4;

fn main() {
    let (tokenizer, texts) = (load(), texts());
    // What all threads read is made here, by the first use: the standard library's waiting for it is precompiled, and
    // hidden from the sanitizer. Of the caches one exists afterwards, the others are made by the threads.
    let expected = results(&tokenizer, &texts);
    threads_that_share_a_tokenizer_get_the_ids_of_one_thread(&tokenizer, &texts, &expected);
    batches_on_several_threads_at_once_get_the_ids_of_one_thread(&tokenizer, &texts, &expected);
    println!("2 tests with {THREADS} threads passed");
}

/// All bytes, a few merges, one control token.
fn load() -> Tokenizer {
    let mut stand_ins = 0x100..;
    let mut names: Vec<String> = (0..256_u32)
        .map(|byte| match byte {
            0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff => byte,
            _ => stand_ins.next().unwrap(),
        })
        .map(|letter| char::from_u32(letter).unwrap().into())
        .collect();
    let merges = ["t h", "th e", "Ġ the", "a a", "aa aa", "æ ·", "æ· ±"];
    names.extend(merges.map(|merge| merge.replace(' ', "")));
    let vocab: Value = names
        .iter()
        .enumerate()
        .map(|(id, name)| (name.clone(), json!(id)))
        .collect();
    let split = |pattern: &str| json!({"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": false});
    let file = json!({
        "added_tokens": [{"id": names.len(), "content": "<|end|>", "special": true, "normalized": false,
                          "lstrip": false, "rstrip": false, "single_word": false}],
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

/// Texts with words in common, so that threads meet in what is cached.
fn texts() -> Vec<String> {
    let words = [
        "the", "there", "aaaaa", "深深", "x1y22", "naïve", "<|end|>", "\n", "a,b",
    ];
    (0..24)
        .map(|text: usize| {
            let word = |place| words[(place * (text % 5 + 2) + text) % words.len()];
            (0..40 + text).map(word).collect::<Vec<_>>().join(" ")
        })
        .collect()
}

fn encode(tokenizer: &Tokenizer, text: &str) -> Vec<u32> {
    let mut ids = Vec::new();
    tokenizer
        .encode(text, true, &mut || false, &mut ids)
        .unwrap();
    ids
}

fn results(tokenizer: &Tokenizer, texts: &[String]) -> Vec<Vec<u32>> {
    texts.iter().map(|text| encode(tokenizer, text)).collect()
}

fn threads_that_share_a_tokenizer_get_the_ids_of_one_thread(
    tokenizer: &Tokenizer,
    texts: &[String],
    expected: &[Vec<u32>],
) {
    thread::scope(|scope| {
        let spawn = |worker: usize| {
            scope.spawn(move || {
                for round in 0..3 * texts.len() {
                    let place = (round + worker * 7) % texts.len();
                    let (text, expected) = (&texts[place], &expected[place]);
                    assert_eq!(&encode(tokenizer, text), expected);
                    let count = tokenizer.count(text, true, &mut || false);
                    assert_eq!(count, Ok(expected.len()));
                    let ids: Vec<i64> = expected.iter().map(|&id| id.into()).collect();
                    let mut stream = DecodeStream::new(false);
                    let mut decoded = String::new();
                    for &id in &ids {
                        decoded += &stream.push(tokenizer, id).unwrap();
                    }
                    decoded += &stream.finish();
                    assert_eq!(&decoded, text);
                    assert!(tokenizer.cache_bytes() <= abyssal_tokenizer::CACHE_BYTES);
                }
            })
        };
        let workers: Vec<_> = (0..THREADS).map(spawn).collect();
        // Joined one by one: the end of a scope is hidden from the sanitizer.
        for worker in workers {
            worker.join().unwrap();
        }
    });
}

fn batches_on_several_threads_at_once_get_the_ids_of_one_thread(
    tokenizer: &Tokenizer,
    texts: &[String],
    expected: &[Vec<u32>],
) {
    let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
    let texts = &texts;
    thread::scope(|scope| {
        let spawn = |_| {
            scope.spawn(move || {
                for threads in [1, 2, 3] {
                    let found = tokenizer.encode_many(texts, true, threads, &mut || false);
                    assert_eq!(found.unwrap(), expected);
                }
            })
        };
        let workers: Vec<_> = (0..2).map(spawn).collect();
        for worker in workers {
            worker.join().unwrap();
        }
    });
}
