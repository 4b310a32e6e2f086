//! From the text of a `tokenizer.json` to checked tables.

use std::collections::HashMap;

use serde_json::{Map, Value};

use crate::added::{AddedToken, MAX_LENGTH};
use crate::bpe::{Merge, Merges, NONE};
use crate::error::{Error, Result, shorten, shorten_json};
use crate::pretokenize::PreTokenizer;

/// Largest token id: tables are indexed by id, so a file must not ask for a table of any size it likes.
pub(crate) const MAX_ID: u32 = (1 << 22) - 1;

/// The checked content of a tokenizer file.
#[derive(Debug)]
pub(crate) struct Parts {
    /// Token as the file spells it, to id; without the added tokens that the vocabulary lacks.
    pub(crate) vocabulary: HashMap<Box<str>, u32>,
    pub(crate) merges: Merges,
    pub(crate) added: Vec<AddedToken>,
    pub(crate) pre_tokenizer: PreTokenizer,
}

impl Parts {
    pub(crate) fn from_json(json: &[u8]) -> Result<Self> {
        let root: Value = serde_json::from_slice(json).map_err(|error| Error::Json {
            message: error.to_string(),
        })?;
        let Value::Object(mut root) = root else {
            return Err(Error::Field {
                field: "the file".into(),
                expected: "a JSON object",
            });
        };
        check_normalizer(root.get("normalizer"))?;
        let pre_tokenizer =
            PreTokenizer::from_json(root.get("pre_tokenizer").unwrap_or(&Value::Null))?;
        check_decoder(root.get("decoder").unwrap_or(&Value::Null))?;
        let Some(Value::Object(mut model)) = root.remove("model") else {
            return Err(Error::Field {
                field: "model".into(),
                expected: "an object",
            });
        };
        check_model(&model)?;
        let vocabulary = read_vocabulary(model.remove("vocab"))?;
        let merges = read_merges(model.remove("merges"), &vocabulary)?;
        let added = read_added(root.get("added_tokens"), &vocabulary)?;
        Ok(Self {
            vocabulary,
            merges,
            added,
            pre_tokenizer,
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

/// No normalizer, or a sequence of none.
fn check_normalizer(value: Option<&Value>) -> Result<()> {
    let value = value.unwrap_or(&Value::Null);
    let steps = value.get("normalizers").and_then(Value::as_array);
    let empty = kind(value) == "Sequence" && steps.is_some_and(Vec::is_empty);
    if value.is_null() || empty {
        Ok(())
    } else {
        Err(unsupported("normalizer", value))
    }
}

fn check_decoder(value: &Value) -> Result<()> {
    if kind(value) == "ByteLevel" {
        Ok(())
    } else {
        Err(unsupported("decoder", value))
    }
}

/// Byte-level BPE and nothing beside it.
fn check_model(model: &Map<String, Value>) -> Result<()> {
    let field = |name: &str| model.get(name).unwrap_or(&Value::Null);
    if field("type").as_str() != Some("BPE") {
        return Err(unsupported("model.type", field("type")));
    }
    for name in [
        "unk_token",
        "continuing_subword_prefix",
        "end_of_word_suffix",
    ] {
        let value = field(name);
        if !value.is_null() && (name == "unk_token" || value.as_str() != Some("")) {
            return Err(unsupported(format!("model.{name}"), value));
        }
    }
    let dropout = field("dropout");
    if !dropout.is_null() && dropout.as_f64() != Some(0.0) {
        return Err(unsupported("model.dropout", dropout));
    }
    for name in ["byte_fallback", "ignore_merges"] {
        let value = field(name);
        if !value.is_null() && value.as_bool() != Some(false) {
            return Err(unsupported(format!("model.{name}"), value));
        }
    }
    Ok(())
}

fn read_id(value: &Value, field: impl FnOnce() -> String) -> Result<u32> {
    let id = value.as_u64().ok_or_else(|| Error::Field {
        field: field(),
        expected: "a whole number from 0 on",
    })?;
    match u32::try_from(id) {
        Ok(small) if small <= MAX_ID => Ok(small),
        _ => Err(Error::IdTooLarge { id, limit: MAX_ID }),
    }
}

fn read_vocabulary(value: Option<Value>) -> Result<HashMap<Box<str>, u32>> {
    let Some(Value::Object(entries)) = value else {
        return Err(Error::Field {
            field: "model.vocab".into(),
            expected: "an object of ids",
        });
    };
    let mut taken = vec![false; MAX_ID as usize + 1];
    let mut vocabulary = HashMap::with_capacity(entries.len());
    for (token, id) in entries {
        let id = read_id(&id, || format!("model.vocab[{}]", shorten(&token)))?;
        if std::mem::replace(&mut taken[id as usize], true) {
            return Err(Error::DuplicateId {
                id,
                token: shorten(&token),
            });
        }
        vocabulary.insert(token.into_boxed_str(), id);
    }
    Ok(vocabulary)
}

fn read_merges(value: Option<Value>, vocabulary: &HashMap<Box<str>, u32>) -> Result<Merges> {
    let Some(Value::Array(entries)) = value else {
        return Err(Error::Field {
            field: "model.merges".into(),
            expected: "an array",
        });
    };
    let mut merges = Merges::with_capacity(entries.len());
    let mut joined = String::new();
    for (index, entry) in entries.iter().enumerate() {
        let pair = match entry {
            Value::String(pair) => pair
                .split_once(' ')
                .filter(|(_, right)| !right.contains(' ')),
            Value::Array(pair) => match pair.as_slice() {
                [Value::String(left), Value::String(right)] => {
                    Some((left.as_str(), right.as_str()))
                }
                _ => None,
            },
            _ => None,
        };
        let (left, right) = pair.ok_or(Error::MergeForm { index })?;
        joined.clear();
        joined.push_str(left);
        joined.push_str(right);
        let id = |token: &str| {
            let missing = || Error::MergeToken {
                index,
                token: shorten(token),
            };
            vocabulary.get(token).copied().ok_or_else(missing)
        };
        let token = id(&joined)?;
        merges.insert(
            id(left)?,
            id(right)?,
            Merge {
                rank: index as u32,
                token,
            },
        );
    }
    Ok(merges)
}

fn read_added(
    value: Option<&Value>,
    vocabulary: &HashMap<Box<str>, u32>,
) -> Result<Vec<AddedToken>> {
    let entries = match value {
        None | Some(Value::Null) => return Ok(Vec::new()),
        Some(Value::Array(entries)) => entries,
        Some(_) => {
            return Err(Error::Field {
                field: "added_tokens".into(),
                expected: "an array",
            });
        }
    };
    let mut added: Vec<AddedToken> = Vec::with_capacity(entries.len());
    let mut ids: HashMap<&str, u32> = HashMap::new();
    let mut largest = NONE;
    for (index, entry) in entries.iter().enumerate() {
        let path = |name: &str| format!("added_tokens[{index}].{name}");
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
        let declared = read_id(entry.get("id").unwrap_or(&Value::Null), || path("id"))?;
        if content.is_empty() || content.len() > MAX_LENGTH {
            return Err(Error::AddedTokenLength {
                index,
                length: content.len(),
                limit: MAX_LENGTH,
            });
        }
        if flag("single_word")? {
            return Err(unsupported(path("single_word"), &Value::Bool(true)));
        }
        // Hugging Face numbers added tokens by their place: after the vocabulary, each one more than the largest.
        // A file that declares other ids means two things at once.
        let actual = vocabulary
            .get(content)
            .or_else(|| ids.get(content))
            .copied()
            .unwrap_or({
                let beyond = largest != NONE && largest as usize >= vocabulary.len();
                if beyond {
                    largest + 1
                } else {
                    vocabulary.len() as u32
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
        if ids.insert(content, declared).is_some() {
            return Err(Error::DuplicateId {
                id: declared,
                token: shorten(content),
            });
        }
        added.push(token);
    }
    Ok(added)
}
