//! Encoding and decoding prose with a vocabulary made here: all bytes, and merges of common pairs.
//!
//! The real vocabulary is measured beside its peers in `bench_tokenizer.py`.
#![allow(
    clippy::unwrap_used,
    missing_docs,
    reason = "a bench may fail, and its names are its documentation"
)]

use abyssal_benches::criterion;
use abyssal_tokenizer::Tokenizer;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};

const TEXT: &str = include_str!("../LICENSE");
const MERGES: [(&str, &str); 8] = [
    ("t", "h"),
    ("th", "e"),
    ("\u{120}", "the"),
    ("i", "n"),
    ("e", "r"),
    ("o", "n"),
    ("\u{120}", "a"),
    ("\u{120}", "o"),
];

/// A `tokenizer.json` in DeepSeek-V3's form.
fn tokenizer_json() -> String {
    let mut extra = 256..;
    let mut vocabulary = serde_json::Map::new();
    for byte in 0..=255_u8 {
        // The byte-level alphabet: printable Latin-1 stands for itself, the rest follows from U+0100 on.
        let printable = matches!(byte, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
        let code = if printable {
            u32::from(byte)
        } else {
            extra.next().unwrap()
        };
        let id = vocabulary.len();
        vocabulary.insert(char::from_u32(code).unwrap().to_string(), id.into());
    }
    for (left, right) in MERGES {
        let id = vocabulary.len();
        vocabulary.insert(format!("{left}{right}"), id.into());
    }
    let split = |pattern: &str| serde_json::json!({"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": false});
    let letters = concat!(
        "[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+|[^\r\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+|",
        " ?[\\p{P}\\p{S}]+[\r\n]*|\\s*[\r\n]+|\\s+(?!\\S)|\\s+"
    );
    serde_json::json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": [],
        "normalizer": {"type": "Sequence", "normalizers": []},
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
            split("\\p{N}{1,3}"),
            split("[\u{4e00}-\u{9fa5}\u{3040}-\u{309f}\u{30a0}-\u{30ff}]+"),
            split(letters),
            {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false},
        ]},
        "post_processor": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": false, "use_regex": true},
        "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true},
        "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
                  "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false,
                  "vocab": vocabulary, "merges": MERGES.map(|(left, right)| format!("{left} {right}"))},
    })
    .to_string()
}

fn encoded(tokenizer: &Tokenizer) -> Vec<u32> {
    let mut ids = Vec::new();
    tokenizer
        .encode(TEXT, true, &mut || false, &mut ids)
        .unwrap();
    ids
}

fn prose(c: &mut Criterion) {
    let tokenizer = Tokenizer::from_json(tokenizer_json().as_bytes()).unwrap();
    let ids: Vec<i64> = encoded(&tokenizer).into_iter().map(i64::from).collect();
    assert!(ids.len() < TEXT.len());
    assert_eq!(tokenizer.decode(&ids, false).unwrap(), TEXT);

    let mut group = c.benchmark_group("tokenizer");
    group.throughput(Throughput::Bytes(TEXT.len() as u64));
    group.bench_function("encode", |bencher| bencher.iter(|| encoded(&tokenizer)));
    group.bench_function("decode", |bencher| {
        bencher.iter(|| tokenizer.decode(&ids, false).unwrap());
    });
    group.finish();
}

criterion_group!(name = benches; config = criterion(); targets = prose);
criterion_main!(benches);
