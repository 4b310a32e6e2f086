//! The text of a `tokenizer.json`, read in one pass into borrowed strings: no tree of the whole file is built.
//!
//! Lists that grow with the file have a bound each; what lies beyond is read and not kept, and the caller reports it.

use std::borrow::Cow;
use std::fmt;

use serde::Deserialize;
use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::Value;
use serde_json::value::RawValue;

use crate::error::{Error, Result};

/// Largest part of the file, the lists of tokens and merges left out, that is looked at as a tree.
const MAX_TREE: usize = 1 << 20;

/// A field as the file holds it.
pub(crate) type Raw<'a> = &'a RawValue;

/// What a file holds, unchecked.
#[derive(Debug, Default)]
pub(crate) struct File<'a> {
    pub(crate) normalizer: Option<Raw<'a>>,
    pub(crate) pre_tokenizer: Option<Raw<'a>>,
    pub(crate) decoder: Option<Raw<'a>>,
    pub(crate) added_tokens: Option<List<Raw<'a>>>,
    pub(crate) model: Option<Model<'a>>,
}

/// The `model` of a file.
#[derive(Debug, Default)]
pub(crate) struct Model<'a> {
    /// All fields but the two below.
    pub(crate) fields: Vec<(Cow<'a, str>, Raw<'a>)>,
    pub(crate) vocabulary: Option<List<(Cow<'a, str>, Id)>>,
    pub(crate) merges: Option<List<Pair<'a>>>,
}

/// A list of at most so many entries as its reader allows.
#[derive(Debug)]
pub(crate) struct List<T> {
    pub(crate) entries: Vec<T>,
    /// How many there were.
    pub(crate) count: usize,
    /// It was of another type.
    pub(crate) wrong: bool,
}

/// A token id, or what stood in its place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Id {
    Number(u64),
    Wrong,
}

/// A merge, or what stood in its place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Pair<'a> {
    /// `"a b"`
    Text(Cow<'a, str>),
    /// `["a", "b"]`
    Two(Cow<'a, str>, Cow<'a, str>),
    Wrong,
}

/// Most entries of each list.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Bounds {
    pub(crate) vocabulary: usize,
    pub(crate) merges: usize,
    pub(crate) added: usize,
}

/// Reads a file.
///
/// # Errors
/// When it is not JSON, or not an object.
pub(crate) fn read(json: &[u8], bounds: Bounds) -> Result<File<'_>> {
    let message = |message: String| Error::Json { message };
    let text = str::from_utf8(json).map_err(|error| message(error.to_string()))?;
    let mut reader = serde_json::Deserializer::from_str(text);
    let file = FileSeed(bounds)
        .deserialize(&mut reader)
        .map_err(|error| message(error.to_string()))?;
    reader.end().map_err(|error| message(error.to_string()))?;
    file.ok_or(Error::Field {
        field: "the file".into(),
        expected: "a JSON object",
    })
}

/// A small part of the file as a tree; absent is null.
///
/// # Errors
/// [`Error::Unsupported`] when it is too large to be one of the known ones.
pub(crate) fn tree(field: &str, raw: Option<Raw<'_>>) -> Result<Value> {
    let Some(raw) = raw else {
        return Ok(Value::Null);
    };
    if raw.get().len() > MAX_TREE {
        return Err(Error::Unsupported {
            field: field.into(),
            found: format!("{} bytes long", raw.get().len()),
        });
    }
    serde_json::from_str(raw.get()).map_err(|error| Error::Json {
        message: error.to_string(),
    })
}

/// Implements the methods of a visitor for the types that it does not want.
macro_rules! otherwise {
    ($value:expr; $($name:ident: $kind:ty),*) => {
        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a value")
        }
        $(fn $name<E>(self, _: $kind) -> std::result::Result<Self::Value, E> { Ok($value) })*
        fn visit_unit<E>(self) -> std::result::Result<Self::Value, E> { Ok($value) }
    };
}

fn skip_seq<'de, A: SeqAccess<'de>>(mut seq: A) -> std::result::Result<(), A::Error> {
    while seq.next_element::<IgnoredAny>()?.is_some() {}
    Ok(())
}

fn skip_map<'de, A: MapAccess<'de>>(mut map: A) -> std::result::Result<(), A::Error> {
    while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
    Ok(())
}

struct FileSeed(Bounds);

impl<'de> DeserializeSeed<'de> for FileSeed {
    type Value = Option<File<'de>>;
    fn deserialize<D: Deserializer<'de>>(self, d: D) -> std::result::Result<Self::Value, D::Error> {
        d.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for FileSeed {
    type Value = Option<File<'de>>;
    otherwise!(None; visit_bool: bool, visit_u64: u64, visit_i64: i64, visit_f64: f64, visit_str: &str);

    fn visit_seq<A: SeqAccess<'de>>(self, seq: A) -> std::result::Result<Self::Value, A::Error> {
        skip_seq(seq)?;
        Ok(None)
    }

    fn visit_map<A: MapAccess<'de>>(
        self,
        mut map: A,
    ) -> std::result::Result<Self::Value, A::Error> {
        let mut file = File::default();
        while let Some(Text(key)) = map.next_key()? {
            match &*key {
                "normalizer" => file.normalizer = Some(map.next_value()?),
                "pre_tokenizer" => file.pre_tokenizer = Some(map.next_value()?),
                "decoder" => file.decoder = Some(map.next_value()?),
                "added_tokens" => {
                    file.added_tokens = map.next_value_seed(RawListSeed(self.0.added))?;
                }
                "model" => file.model = map.next_value_seed(ModelSeed(self.0))?,
                _ => {
                    map.next_value::<IgnoredAny>()?;
                }
            }
        }
        Ok(Some(file))
    }
}

struct ModelSeed(Bounds);

impl<'de> DeserializeSeed<'de> for ModelSeed {
    type Value = Option<Model<'de>>;
    fn deserialize<D: Deserializer<'de>>(self, d: D) -> std::result::Result<Self::Value, D::Error> {
        d.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for ModelSeed {
    type Value = Option<Model<'de>>;
    otherwise!(None; visit_bool: bool, visit_u64: u64, visit_i64: i64, visit_f64: f64, visit_str: &str);

    fn visit_seq<A: SeqAccess<'de>>(self, seq: A) -> std::result::Result<Self::Value, A::Error> {
        skip_seq(seq)?;
        Ok(None)
    }

    fn visit_map<A: MapAccess<'de>>(
        self,
        mut map: A,
    ) -> std::result::Result<Self::Value, A::Error> {
        let mut model = Model::default();
        while let Some(Text(key)) = map.next_key()? {
            match &*key {
                "vocab" => {
                    model.vocabulary =
                        Some(map.next_value_seed(VocabularySeed(self.0.vocabulary))?);
                }
                "merges" => model.merges = Some(map.next_value_seed(MergesSeed(self.0.merges))?),
                _ => {
                    let raw = map.next_value()?;
                    // The known fields are few; a later one of the same name counts.
                    model.fields.retain(|(name, _)| *name != key);
                    if model.fields.len() < 64 {
                        model.fields.push((key, raw));
                    }
                }
            }
        }
        Ok(Some(model))
    }
}

struct RawListSeed(usize);

impl<'de> DeserializeSeed<'de> for RawListSeed {
    type Value = Option<List<Raw<'de>>>;
    fn deserialize<D: Deserializer<'de>>(self, d: D) -> std::result::Result<Self::Value, D::Error> {
        d.deserialize_any(self)
    }
}

impl<T> List<T> {
    fn wrong() -> Self {
        Self {
            entries: Vec::new(),
            count: 0,
            wrong: true,
        }
    }

    fn new() -> Self {
        Self {
            entries: Vec::new(),
            count: 0,
            wrong: false,
        }
    }

    fn push(&mut self, entry: T, most: usize) {
        self.count += 1;
        if self.entries.len() < most {
            self.entries.push(entry);
        }
    }
}

impl<'de> Visitor<'de> for RawListSeed {
    type Value = Option<List<Raw<'de>>>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }
    fn visit_unit<E>(self) -> std::result::Result<Self::Value, E> {
        Ok(None)
    }
    fn visit_bool<E>(self, _: bool) -> std::result::Result<Self::Value, E> {
        Ok(Some(List::wrong()))
    }
    fn visit_u64<E>(self, _: u64) -> std::result::Result<Self::Value, E> {
        Ok(Some(List::wrong()))
    }
    fn visit_i64<E>(self, _: i64) -> std::result::Result<Self::Value, E> {
        Ok(Some(List::wrong()))
    }
    fn visit_f64<E>(self, _: f64) -> std::result::Result<Self::Value, E> {
        Ok(Some(List::wrong()))
    }
    fn visit_str<E>(self, _: &str) -> std::result::Result<Self::Value, E> {
        Ok(Some(List::wrong()))
    }
    fn visit_map<A: MapAccess<'de>>(self, map: A) -> std::result::Result<Self::Value, A::Error> {
        skip_map(map)?;
        Ok(Some(List::wrong()))
    }
    fn visit_seq<A: SeqAccess<'de>>(
        self,
        mut seq: A,
    ) -> std::result::Result<Self::Value, A::Error> {
        let mut list = List::new();
        while let Some(entry) = seq.next_element::<Raw<'de>>()? {
            list.push(entry, self.0);
        }
        Ok(Some(list))
    }
}

struct VocabularySeed(usize);

impl<'de> DeserializeSeed<'de> for VocabularySeed {
    type Value = List<(Cow<'de, str>, Id)>;
    fn deserialize<D: Deserializer<'de>>(self, d: D) -> std::result::Result<Self::Value, D::Error> {
        d.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for VocabularySeed {
    type Value = List<(Cow<'de, str>, Id)>;
    otherwise!(List::wrong(); visit_bool: bool, visit_u64: u64, visit_i64: i64, visit_f64: f64, visit_str: &str);

    fn visit_seq<A: SeqAccess<'de>>(self, seq: A) -> std::result::Result<Self::Value, A::Error> {
        skip_seq(seq)?;
        Ok(List::wrong())
    }

    fn visit_map<A: MapAccess<'de>>(
        self,
        mut map: A,
    ) -> std::result::Result<Self::Value, A::Error> {
        let mut list = List::new();
        while let Some((Text(token), id)) = map.next_entry()? {
            list.push((token, id), self.0);
        }
        Ok(list)
    }
}

struct MergesSeed(usize);

impl<'de> DeserializeSeed<'de> for MergesSeed {
    type Value = List<Pair<'de>>;
    fn deserialize<D: Deserializer<'de>>(self, d: D) -> std::result::Result<Self::Value, D::Error> {
        d.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for MergesSeed {
    type Value = List<Pair<'de>>;
    otherwise!(List::wrong(); visit_bool: bool, visit_u64: u64, visit_i64: i64, visit_f64: f64, visit_str: &str);

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> std::result::Result<Self::Value, A::Error> {
        skip_map(map)?;
        Ok(List::wrong())
    }

    fn visit_seq<A: SeqAccess<'de>>(
        self,
        mut seq: A,
    ) -> std::result::Result<Self::Value, A::Error> {
        let mut list = List::new();
        while let Some(pair) = seq.next_element()? {
            list.push(pair, self.0);
        }
        Ok(list)
    }
}

/// A string, borrowed where the file spells it without escapes.
struct Text<'a>(Cow<'a, str>);

impl<'de> Deserialize<'de> for Text<'de> {
    fn deserialize<D: Deserializer<'de>>(d: D) -> std::result::Result<Self, D::Error> {
        struct TextVisitor;
        impl<'de> Visitor<'de> for TextVisitor {
            type Value = Text<'de>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string")
            }
            fn visit_borrowed_str<E>(self, text: &'de str) -> std::result::Result<Self::Value, E> {
                Ok(Text(Cow::Borrowed(text)))
            }
            fn visit_str<E>(self, text: &str) -> std::result::Result<Self::Value, E> {
                Ok(Text(Cow::Owned(text.into())))
            }
        }
        d.deserialize_str(TextVisitor)
    }
}

impl<'de> Deserialize<'de> for Id {
    fn deserialize<D: Deserializer<'de>>(d: D) -> std::result::Result<Self, D::Error> {
        struct IdVisitor;
        impl<'de> Visitor<'de> for IdVisitor {
            type Value = Id;
            otherwise!(Id::Wrong; visit_bool: bool, visit_i64: i64, visit_f64: f64, visit_str: &str);
            fn visit_u64<E>(self, id: u64) -> std::result::Result<Self::Value, E> {
                Ok(Id::Number(id))
            }
            fn visit_seq<A: SeqAccess<'de>>(self, seq: A) -> std::result::Result<Id, A::Error> {
                skip_seq(seq)?;
                Ok(Id::Wrong)
            }
            fn visit_map<A: MapAccess<'de>>(self, map: A) -> std::result::Result<Id, A::Error> {
                skip_map(map)?;
                Ok(Id::Wrong)
            }
        }
        d.deserialize_any(IdVisitor)
    }
}

impl<'de> Deserialize<'de> for Pair<'de> {
    fn deserialize<D: Deserializer<'de>>(d: D) -> std::result::Result<Self, D::Error> {
        struct PairVisitor;
        impl<'de> Visitor<'de> for PairVisitor {
            type Value = Pair<'de>;
            otherwise!(Pair::Wrong; visit_bool: bool, visit_u64: u64, visit_i64: i64, visit_f64: f64);
            fn visit_borrowed_str<E>(self, text: &'de str) -> std::result::Result<Self::Value, E> {
                Ok(Pair::Text(Cow::Borrowed(text)))
            }
            fn visit_str<E>(self, text: &str) -> std::result::Result<Self::Value, E> {
                Ok(Pair::Text(Cow::Owned(text.into())))
            }
            fn visit_map<A: MapAccess<'de>>(
                self,
                map: A,
            ) -> std::result::Result<Self::Value, A::Error> {
                skip_map(map)?;
                Ok(Pair::Wrong)
            }
            fn visit_seq<A: SeqAccess<'de>>(
                self,
                mut seq: A,
            ) -> std::result::Result<Self::Value, A::Error> {
                let mut found = [None, None];
                let mut count = 0;
                while let Some(MaybeText(text)) = seq.next_element()? {
                    if let Some(place) = found.get_mut(count) {
                        *place = text;
                    }
                    count += 1;
                }
                Ok(match (count, found) {
                    (2, [Some(left), Some(right)]) => Pair::Two(left, right),
                    _ => Pair::Wrong,
                })
            }
        }
        d.deserialize_any(PairVisitor)
    }
}

/// A string, or anything else.
struct MaybeText<'a>(Option<Cow<'a, str>>);

impl<'de> Deserialize<'de> for MaybeText<'de> {
    fn deserialize<D: Deserializer<'de>>(d: D) -> std::result::Result<Self, D::Error> {
        struct MaybeVisitor;
        impl<'de> Visitor<'de> for MaybeVisitor {
            type Value = MaybeText<'de>;
            otherwise!(MaybeText(None); visit_bool: bool, visit_u64: u64, visit_i64: i64, visit_f64: f64);
            fn visit_borrowed_str<E>(self, text: &'de str) -> std::result::Result<Self::Value, E> {
                Ok(MaybeText(Some(Cow::Borrowed(text))))
            }
            fn visit_str<E>(self, text: &str) -> std::result::Result<Self::Value, E> {
                Ok(MaybeText(Some(Cow::Owned(text.into()))))
            }
            fn visit_seq<A: SeqAccess<'de>>(
                self,
                seq: A,
            ) -> std::result::Result<Self::Value, A::Error> {
                skip_seq(seq)?;
                Ok(MaybeText(None))
            }
            fn visit_map<A: MapAccess<'de>>(
                self,
                map: A,
            ) -> std::result::Result<Self::Value, A::Error> {
                skip_map(map)?;
                Ok(MaybeText(None))
            }
        }
        d.deserialize_any(MaybeVisitor)
    }
}
