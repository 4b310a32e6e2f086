//! From the text of a `tokenizer.json` to checked tables.

use std::borrow::Cow;
use std::collections::HashMap;

use serde_json::Value;

use crate::added::{AddedToken, MAX_LENGTH};
use crate::error::{Error, Result, shorten, shorten_json};
use crate::json::{self, Bounds, Id, List, Model, Pair, Raw};
use crate::merges::{MAX_MERGES, Merges, NONE};
use crate::pieces::{Index, Strings};
use crate::pretokenize::PreTokenizer;

/// Largest token id: tables are indexed by id, so a file must not ask for a table of any size it likes.
pub(crate) const MAX_ID: u32 = (1 << 22) - 1;
/// How many entries ahead memory is asked for.
const AHEAD: usize = 16;
/// Most added tokens.
const MAX_ADDED: usize = 1 << 16;

/// The checked content of a tokenizer file.
#[derive(Debug)]
pub(crate) struct Parts {
    /// Tokens as the file spells them; without the added tokens that the vocabulary lacks.
    pub(crate) names: Strings,
    pub(crate) index: Index,
    pub(crate) merges: Merges,
    pub(crate) added: Vec<AddedToken>,
    pub(crate) pre_tokenizer: PreTokenizer,
    /// A piece that is spelled like a token is that token.
    pub(crate) ignore_merges: bool,
    /// Text is brought to normalization form C first.
    pub(crate) composes: bool,
}

impl Parts {
    pub(crate) fn from_json(json: &[u8]) -> Result<Self> {
        let bounds = Bounds {
            vocabulary: MAX_ID as usize + 1,
            merges: MAX_MERGES,
            added: MAX_ADDED,
        };
        let file = json::read(json, bounds)?;
        let composes = composes(&json::tree("normalizer", file.normalizer)?)?;
        let pre_tokenizer =
            PreTokenizer::from_json(&json::tree("pre_tokenizer", file.pre_tokenizer)?)?;
        check_decoder(&json::tree("decoder", file.decoder)?)?;
        let model = file.model.ok_or(Error::Field {
            field: "model".into(),
            expected: "an object",
        })?;
        let ignore_merges = check_model(&model)?;
        let added_count = file
            .added_tokens
            .as_ref()
            .map_or(0, |list| list.entries.len());
        let (names, index) = read_vocabulary(model.vocabulary, added_count)?;
        let merges = read_merges(model.merges, &names, &index)?;
        let added = read_added(file.added_tokens, &names, &index)?;
        Ok(Self {
            names,
            index,
            merges,
            added,
            pre_tokenizer,
            ignore_merges,
            composes,
        })
    }
}

fn unsupported(field: impl Into<String>, found: &Value) -> Error {
    Error::Unsupported {
        field: field.into(),
        found: shorten_json(found),
    }
}

fn kind(value: &Value) -> &str {
    value.get("type").and_then(Value::as_str).unwrap_or("")
}

/// Whether the normalizer is form C; there may be none, or a sequence of none.
fn composes(value: &Value) -> Result<bool> {
    let steps = value.get("normalizers").and_then(Value::as_array);
    let empty = kind(value) == "Sequence" && steps.is_some_and(Vec::is_empty);
    match kind(value) {
        "NFC" => Ok(true),
        _ if value.is_null() || empty => Ok(false),
        _ => Err(unsupported("normalizer", value)),
    }
}

fn check_decoder(value: &Value) -> Result<()> {
    if kind(value) == "ByteLevel" {
        Ok(())
    } else {
        Err(unsupported("decoder", value))
    }
}

/// Byte-level BPE and nothing beside it; whether a piece that is spelled like a token is that token.
fn check_model(model: &Model<'_>) -> Result<bool> {
    let field = |name: &str| {
        let found = model.fields.iter().find(|(field, _)| field == name);
        json::tree(&format!("model.{name}"), found.map(|&(_, raw)| raw))
    };
    let kind = field("type")?;
    if kind.as_str() != Some("BPE") {
        return Err(unsupported("model.type", &kind));
    }
    for name in [
        "unk_token",
        "continuing_subword_prefix",
        "end_of_word_suffix",
    ] {
        let value = field(name)?;
        if !value.is_null() && (name == "unk_token" || value.as_str() != Some("")) {
            return Err(unsupported(format!("model.{name}"), &value));
        }
    }
    let dropout = field("dropout")?;
    if !dropout.is_null() && dropout.as_f64() != Some(0.0) {
        return Err(unsupported("model.dropout", &dropout));
    }
    let byte_fallback = field("byte_fallback")?;
    if !byte_fallback.is_null() && byte_fallback.as_bool() != Some(false) {
        return Err(unsupported("model.byte_fallback", &byte_fallback));
    }
    match field("ignore_merges")? {
        Value::Null => Ok(false),
        Value::Bool(value) => Ok(value),
        other => Err(unsupported("model.ignore_merges", &other)),
    }
}

fn checked_id(id: Option<u64>, field: impl FnOnce() -> String) -> Result<u32> {
    let id = id.ok_or_else(|| Error::Field {
        field: field(),
        expected: "a whole number from 0 on",
    })?;
    match u32::try_from(id) {
        Ok(small) if small <= MAX_ID => Ok(small),
        _ => Err(Error::IdTooLarge { id, limit: MAX_ID }),
    }
}

fn within<T>(list: &List<T>, field: &'static str, limit: usize) -> Result<()> {
    if list.count > limit {
        let count = list.count;
        return Err(Error::TooMany {
            field,
            count,
            limit,
        });
    }
    Ok(())
}

/// `more` is the number of ids that added tokens may take beyond the vocabulary.
fn read_vocabulary(
    list: Option<List<(Cow<'_, str>, Id)>>,
    more: usize,
) -> Result<(Strings, Index)> {
    let list = list.filter(|list| !list.wrong).ok_or(Error::Field {
        field: "model.vocab".into(),
        expected: "an object of ids",
    })?;
    within(&list, "model.vocab", MAX_ID as usize + 1)?;
    let mut largest = None;
    let mut bytes = 0;
    let mut ids = Vec::with_capacity(list.entries.len());
    for (token, id) in &list.entries {
        let number = match *id {
            Id::Number(number) => Some(number),
            Id::Wrong => None,
        };
        let id = checked_id(number, || format!("model.vocab[{}]", shorten(token)))?;
        largest = largest.max(Some(id));
        bytes += token.len();
        ids.push(id);
    }
    let mut names = Strings::with_ids(largest.map_or(0, |id| id as usize + 1), bytes);
    let mut index = Index::with_capacity(list.entries.len() + more);
    let hashes: Vec<u64> = list
        .entries
        .iter()
        .map(|(token, _)| index.hash(token.as_bytes()))
        .collect();
    for (place, ((token, _), &id)) in list.entries.iter().zip(&ids).enumerate() {
        if let Some(&hash) = hashes.get(place + AHEAD) {
            index.prefetch(hash);
        }
        let hash = hashes[place];
        let duplicate = || Error::DuplicateId {
            id,
            token: shorten(token),
        };
        if names.get(id).is_some() {
            return Err(duplicate());
        }
        if let Some(earlier) = index.get_hashed(hash, token.as_bytes(), &names) {
            return Err(Error::DuplicateToken {
                token: shorten(token),
                ids: (earlier, id),
            });
        }
        names.set(id, token.as_bytes());
        index.insert_hashed(hash, id);
    }
    Ok((names, index))
}

fn read_merges(list: Option<List<Pair<'_>>>, names: &Strings, index: &Index) -> Result<Merges> {
    let list = list.filter(|list| !list.wrong).ok_or(Error::Field {
        field: "model.merges".into(),
        expected: "an array",
    })?;
    within(&list, "model.merges", MAX_MERGES)?;
    let mut merges = Merges::with_capacity(list.entries.len(), names.len());
    let mut joined = String::new();
    let mut last = NONE;
    // In groups, so that what all entries of one need is on its way from memory before the first is looked up.
    let mut parts = Vec::with_capacity(AHEAD);
    let mut found = Vec::with_capacity(AHEAD);
    for (group, entries) in list.entries.chunks(AHEAD).enumerate() {
        let first = group * AHEAD;
        parts.clear();
        for (place, entry) in (first..).zip(entries) {
            let pair = match entry {
                Pair::Text(pair) => pair
                    .split_once(' ')
                    .filter(|(_, right)| !right.contains(' ')),
                Pair::Two(left, right) => Some((&**left, &**right)),
                Pair::Wrong => None,
            };
            let (left, right) = pair.ok_or(Error::MergeForm { index: place })?;
            let hashes = [left, right].map(|part| index.hash(part.as_bytes()));
            for hash in hashes {
                index.prefetch(hash);
            }
            parts.push((left, right, hashes));
        }
        found.clear();
        for (place, &(left, right, hashes)) in (first..).zip(&parts) {
            let missing = |token: &str| Error::MergeToken {
                index: place,
                token: shorten(token),
            };
            joined.clear();
            joined.push_str(left);
            joined.push_str(right);
            // Vocabularies list tokens in the order of their merges, so the next id is worth a look.
            let next = last.wrapping_add(1);
            last = match names.get(next) {
                Some(name) if name == joined.as_bytes() => next,
                _ => index
                    .get(joined.as_bytes(), names)
                    .ok_or_else(|| missing(&joined))?,
            };
            let id = |part: &str, hash| {
                let found = index.get_hashed(hash, part.as_bytes(), names);
                found.ok_or_else(|| missing(part))
            };
            let (left, right) = (id(left, hashes[0])?, id(right, hashes[1])?);
            merges.prefetch(left, right);
            found.push((left, right, last));
        }
        for &(left, right, token) in &found {
            merges.push(left, right, token);
        }
    }
    merges.finish();
    Ok(merges)
}

fn read_added(
    list: Option<List<Raw<'_>>>,
    names: &Strings,
    index: &Index,
) -> Result<Vec<AddedToken>> {
    let Some(list) = list else {
        return Ok(Vec::new());
    };
    if list.wrong {
        return Err(Error::Field {
            field: "added_tokens".into(),
            expected: "an array",
        });
    }
    within(&list, "added_tokens", MAX_ADDED)?;
    let vocabulary = names.count();
    let mut added: Vec<AddedToken> = Vec::with_capacity(list.entries.len());
    let mut ids: HashMap<String, u32> = HashMap::new();
    let mut largest = NONE;
    for (place, &entry) in list.entries.iter().enumerate() {
        let entry = json::tree("added_tokens", Some(entry))?;
        let path = |name: &str| format!("added_tokens[{place}].{name}");
        let flag = |name: &str| {
            let value = entry.get(name).and_then(Value::as_bool);
            value.ok_or_else(|| Error::Field {
                field: path(name),
                expected: "true or false",
            })
        };
        let content = entry
            .get("content")
            .and_then(Value::as_str)
            .ok_or_else(|| Error::Field {
                field: path("content"),
                expected: "a string",
            })?;
        let declared = checked_id(entry.get("id").and_then(Value::as_u64), || path("id"))?;
        if content.is_empty() || content.len() > MAX_LENGTH {
            return Err(Error::AddedTokenLength {
                index: place,
                length: content.len(),
                limit: MAX_LENGTH,
            });
        }
        if flag("single_word")? {
            return Err(unsupported(path("single_word"), &Value::Bool(true)));
        }
        // Hugging Face numbers added tokens by their place: after the vocabulary, each one more than the largest.
        // A file that declares other ids means two things at once.
        let actual = index
            .get(content.as_bytes(), names)
            .or_else(|| ids.get(content).copied())
            .unwrap_or({
                let beyond = largest != NONE && largest as usize >= vocabulary;
                if beyond {
                    largest + 1
                } else {
                    vocabulary as u32
                }
            });
        if declared != actual {
            return Err(Error::AddedTokenId {
                token: shorten(content),
                declared,
                actual,
            });
        }
        if largest == NONE || declared > largest {
            largest = declared;
        }
        let token = AddedToken {
            id: declared,
            content: content.into(),
            special: flag("special")?,
            normalized: flag("normalized")?,
            strip_left: flag("lstrip")?,
            strip_right: flag("rstrip")?,
        };
        if ids.insert(content.into(), declared).is_some() {
            return Err(Error::DuplicateId {
                id: declared,
                token: shorten(content),
            });
        }
        added.push(token);
    }
    Ok(added)
}
