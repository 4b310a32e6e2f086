//! The crate from outside: a small file, round trips, and damaged files.

use abyssal_tokenizer::{DecodeStream, Error, Tokenizer};
use proptest::prelude::*;
use serde_json::{Value, json};

/// The byte-level alphabet, in byte order.
fn alphabet() -> Vec<char> {
    let printable = |byte: u32| matches!(byte, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff);
    let mut stand_ins = 0x100..;
    let character = |byte| {
        if printable(byte) {
            Some(byte)
        } else {
            stand_ins.next()
        }
    };
    (0..256)
        .filter_map(character)
        .filter_map(char::from_u32)
        .collect()
}

fn split(pattern: &str) -> Value {
    json!({"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": false})
}

/// All bytes, a few merges, one control token and one letter.
fn file() -> Value {
    let mut names: Vec<String> = alphabet().into_iter().map(String::from).collect();
    let merges = ["t h", "th e", "Ġ the", "a a", "aa aa", "æ ·", "æ· ±"];
    names.extend(merges.map(|merge| merge.replace(' ', "")));
    let vocab: Value = names
        .iter()
        .enumerate()
        .map(|(id, name)| (name.clone(), json!(id)))
        .collect();
    let added = |id: usize, content: &str, special: bool| {
        json!({"id": id, "content": content, "special": special, "normalized": false,
               "lstrip": false, "rstrip": false, "single_word": false})
    };
    json!({
        "added_tokens": [added(names.len(), "<|end|>", true), added(names.len() + 1, "ŭ", false)],
        "normalizer": null,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
            split("[\r\n]"), split(r"\s?\p{L}+"), split(r"\s?\p{P}+"), split("[一-龥]+"),
            {"type": "Digits", "individual_digits": true},
            {"type": "ByteLevel", "add_prefix_space": false, "use_regex": false}]},
        "decoder": {"type": "ByteLevel"},
        "model": {"type": "BPE", "vocab": vocab, "merges": merges},
    })
}

fn load() -> Tokenizer {
    match Tokenizer::from_json(file().to_string().as_bytes()) {
        Ok(tokenizer) => tokenizer,
        Err(error) => unreachable!("the file is in order, yet: {error}"),
    }
}

fn encode(tokenizer: &Tokenizer, text: &str, parse_special: bool) -> Vec<i64> {
    let mut ids = Vec::new();
    assert_eq!(
        tokenizer.encode(text, parse_special, &mut || false, &mut ids),
        Ok(())
    );
    ids.into_iter().map(i64::from).collect()
}

#[test]
fn merges_follow_their_order_and_control_tokens_their_parsing() {
    let tokenizer = load();
    let names = |text: &str, parse: bool| -> Vec<String> {
        let ids = encode(&tokenizer, text, parse);
        ids.iter()
            .filter_map(|&id| tokenizer.id_to_token(id as u32))
            .map(String::from)
            .collect()
    };
    assert_eq!(names("the the", true), ["the", "Ġthe"]);
    assert_eq!(names("aaaaa", true), ["aaaa", "a"]);
    assert_eq!(names("深<|end|>", true), ["æ·±", "<|end|>"]);
    assert_eq!(names("<|end|>", false), ["<", "|", "e", "n", "d", "|", ">"]);
    assert_eq!(names("ŭ", false), ["ŭ"]);
}

#[test]
fn a_stop_ends_the_encoding_with_an_error() {
    let tokenizer = load();
    for text in ["the ".repeat(100_000), "a".repeat(1_000_000)] {
        let mut ids = Vec::new();
        let result = tokenizer.encode(&text, true, &mut || true, &mut ids);
        assert_eq!(result, Err(Error::Interrupted));
    }
}

#[test]
fn errors_carry_their_numbers() {
    let tokenizer = load();
    let max = tokenizer.max_id();
    assert_eq!(
        tokenizer.decode(&[-1], false),
        Err(Error::UnknownId { id: -1, max })
    );
    let mut lacking = file();
    if let Some(vocab) = lacking["model"]["vocab"].as_object_mut() {
        vocab.remove("z");
        vocab.insert("zz".into(), json!(u32::from(b'z')));
    }
    let result = Tokenizer::from_json(lacking.to_string().as_bytes())
        .and_then(|tokenizer| tokenizer.encode("xyz", true, &mut || false, &mut Vec::new()));
    assert_eq!(result, Err(Error::MissingByte { byte: b'z' }));
}

proptest! {
    #[test]
    fn bytes_come_back(data in prop::collection::vec(any::<u8>(), 0..200)) {
        let tokenizer = load();
        let mut ids = Vec::new();
        prop_assert_eq!(tokenizer.encode_bytes(&data, &mut || false, &mut ids), Ok(()));
        let ids: Vec<i64> = ids.into_iter().map(i64::from).collect();
        prop_assert_eq!(tokenizer.decode_bytes(&ids, false), Ok(data));
    }

    #[test]
    fn a_stream_says_what_decoding_at_once_says(ids in prop::collection::vec(0_i64..265, 0..60)) {
        let tokenizer = load();
        let mut stream = DecodeStream::new(false);
        let mut text = String::new();
        for &id in &ids {
            text += &stream.push(&tokenizer, id).unwrap_or_default();
        }
        text += &stream.finish();
        prop_assert_eq!(Ok(text), tokenizer.decode(&ids, false));
    }

    #[test]
    fn a_damaged_file_is_an_error_or_a_tokenizer(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
        text in "\\PC*",
    ) {
        let mut json = file().to_string().into_bytes();
        for (place, byte) in changes {
            let place = place.index(json.len());
            json[place] = byte;
        }
        if let Ok(tokenizer) = Tokenizer::from_json(&json) {
            let mut ids = Vec::new();
            if tokenizer.encode(&text, true, &mut || false, &mut ids).is_ok() {
                let ids: Vec<i64> = ids.into_iter().map(i64::from).collect();
                prop_assert!(tokenizer.decode(&ids, false).is_ok());
            }
        }
    }
}
