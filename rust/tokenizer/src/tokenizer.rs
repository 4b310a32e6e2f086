//! The tokenizer: tables made once, then read by any number of threads.

use std::borrow::Cow;

use unicode_normalization_alignments::{IsNormalized, UnicodeNormalization, is_nfc_quick};

use crate::added::{AddedToken, Matcher, Part};
use crate::bytelevel::{byte_of, bytes_of, spell};
use crate::cache::{Cache, Pool};
use crate::encoder::{Count, Encoder, Ids, Sink};
use crate::error::{Error, Result, shorten};
use crate::load::Parts;
use crate::merges::{Merges, NONE};
use crate::pieces::{Index, Strings};
use crate::pretokenize::PreTokenizer;
use crate::symbols::Symbols;
use crate::tiktoken::{self, Control};
use crate::whole::{LongWhole, Whole};

/// A question asked from time to time during long work: true means stop.
pub type Stop<'a> = &'a mut dyn FnMut() -> bool;

/// Byte-level BPE as a Hugging Face `tokenizer.json` describes it.
///
/// Immutable after loading but for its caches, which no two calls share, so it may be shared between threads.
#[derive(Debug)]
pub struct Tokenizer {
    pub(crate) splitter: PreTokenizer,
    pub(crate) merges: Merges,
    pub(crate) symbols: Symbols,
    /// Bytes of the longest token.
    pub(crate) longest: usize,
    pub(crate) whole: Whole,
    /// Where a piece that is spelled like a token is that token.
    long_whole: Option<LongWhole>,
    /// Text is brought to normalization form C before it is cut.
    pub(crate) composes: bool,
    caches: Pool,
    /// Tokens for bytes that the vocabulary lacks and an added token spells in the byte-level alphabet.
    byte_stand_ins: [u32; 256],
    index: Index,
    names: Strings,
    /// What each token decodes to.
    pub(crate) bytes: Strings,
    pub(crate) special: Vec<bool>,
    /// Added tokens whose name is text, and whose bytes are not: decoding to text gives the name.
    pub(crate) literal: Vec<bool>,
    /// The two passes over all added tokens.
    pub(crate) all_added: [Matcher; 2],
    /// The two passes over those that are text.
    pub(crate) text_added: [Matcher; 2],
    added: Vec<AddedToken>,
    /// No added token holds white space or takes that around it, so a cut beside white space cuts none.
    pub(crate) may_be_cut: bool,
}

impl Tokenizer {
    /// Reads the text of a `tokenizer.json`.
    ///
    /// # Errors
    /// When it is not JSON, contradicts itself, or describes a tokenizer that this crate does not have
    /// ([`Error::Unsupported`]).
    pub fn from_json(json: &[u8]) -> Result<Self> {
        Self::from_parts(Parts::from_json(json)?)
    }

    /// Reads the text of a `tiktoken.model`, as Moonlight and Kimi have it, and adds the control tokens that their
    /// configuration names.
    ///
    /// # Errors
    /// When a line is damaged, a token is listed twice, or an id is.
    pub fn from_tiktoken(model: &[u8], controls: &[Control]) -> Result<Self> {
        Self::from_parts(tiktoken::parts(model, controls)?)
    }

    fn from_parts(parts: Parts) -> Result<Self> {
        let Parts {
            mut names,
            mut index,
            merges,
            added,
            pre_tokenizer,
            ignore_merges,
            composes,
        } = parts;
        let largest = added.iter().map(|token| token.id as usize + 1).max();
        let count = names.len().max(largest.unwrap_or(0));
        if count == 0 {
            return Err(Error::Field {
                field: "model.vocab".into(),
                expected: "at least one token",
            });
        }
        let vocabulary = names.len();
        names.extend_ids(count);
        let mut bytes = Strings::with_ids(count, names.bytes());
        let mut byte_tokens = [NONE; 256];
        let mut byte_stand_ins = [NONE; 256];
        let mut longest = 1;
        let mut spelled = Vec::new();
        for id in 0..vocabulary as u32 {
            let Some(name) = names.get(id) else {
                continue;
            };
            if !spell(name, &mut spelled) {
                bytes.set(id, name);
                continue;
            }
            bytes.set(id, &spelled);
            longest = longest.max(spelled.len());
            if let [byte] = spelled[..] {
                byte_tokens[byte as usize] = id;
            }
        }
        let symbols = Symbols::new(&byte_tokens, &merges, &bytes);
        let (whole, long_whole) = if ignore_merges {
            (Whole::all(&bytes), Some(LongWhole::all(&bytes)))
        } else {
            (Whole::new(&merges, &bytes), None)
        };
        let mut special = vec![false; count];
        let mut literal = vec![false; count];
        for token in &added {
            let (id, place) = (token.id, token.id as usize);
            special[place] = token.special;
            let spelled = bytes_of(&token.content);
            literal[place] = spelled
                .as_ref()
                .is_some_and(|spelled| str::from_utf8(spelled).is_err());
            if let Some(name) = names.get(id) {
                if name != token.content.as_bytes() {
                    return Err(Error::DuplicateId {
                        id,
                        token: shorten(&token.content),
                    });
                }
                continue;
            }
            names.set(id, token.content.as_bytes());
            bytes.set(id, spelled.as_deref().unwrap_or(token.content.as_bytes()));
            index.insert(id, &names);
            let mut characters = token.content.chars();
            if let (Some(only), None) = (characters.next(), characters.next())
                && let Some(byte) = byte_of(only)
            {
                byte_stand_ins[byte as usize] = id;
            }
        }
        Ok(Self {
            splitter: pre_tokenizer,
            merges,
            symbols,
            longest,
            whole,
            long_whole,
            composes,
            caches: Pool::new(),
            byte_stand_ins,
            index,
            names,
            bytes,
            special,
            literal,
            all_added: passes(&added, composes, |_| true),
            text_added: passes(&added, composes, AddedToken::is_text),
            may_be_cut: !added.iter().any(AddedToken::touches_white_space),
            added,
        })
    }

    /// Appends the ids of `text` to `out`.
    ///
    /// With `parse_special` added tokens in the text become their ids, as in Hugging Face `tokenizers`. Without it no
    /// text becomes a control token: only added tokens that are one character and not marked special (letters, in
    /// the files that have them) are still recognized.
    ///
    /// # Errors
    /// [`Error::MissingByte`] when the vocabulary lacks a byte of the text; [`Error::Interrupted`] when `stop`
    /// returned true. `out` then holds a part of the ids.
    pub fn encode(
        &self,
        text: &str,
        parse_special: bool,
        stop: Stop<'_>,
        out: &mut Vec<u32>,
    ) -> Result<()> {
        let mut ids = Ids::new(out, text.len());
        let result = self.encode_into(text, parse_special, stop, &mut ids);
        ids.finish();
        result
    }

    /// How many ids `text` has; none is kept.
    ///
    /// # Errors
    /// As [`encode`](Self::encode).
    pub fn count(&self, text: &str, parse_special: bool, stop: Stop<'_>) -> Result<usize> {
        let mut count = Count::default();
        self.encode_into(text, parse_special, stop, &mut count)?;
        Ok(count.0)
    }

    fn encode_into(
        &self,
        text: &str,
        parse_special: bool,
        stop: Stop<'_>,
        sink: &mut impl Sink,
    ) -> Result<()> {
        let [first, second] = if parse_special {
            &self.all_added
        } else {
            &self.text_added
        };
        self.with_cache(text.len(), |cache| {
            let mut encoder = Encoder::new(self, cache, stop, sink);
            first.split(text, &mut |part| match part {
                Part::Token(id, _) => encoder.token(id),
                Part::Text(text) => {
                    let text = if self.composes {
                        composed(text)
                    } else {
                        text.into()
                    };
                    second.split(&text, &mut |part| match part {
                        Part::Token(id, _) => encoder.token(id),
                        Part::Text(text) => encoder.text(text),
                    })
                }
            });
            encoder.finish()
        })
    }

    /// Runs `work` with a cache of the pool, or with a very small one where all are lent.
    pub(crate) fn with_cache<T>(&self, expected: usize, work: impl FnOnce(&mut Cache) -> T) -> T {
        if let Some(mut lent) = self.caches.lend(expected)
            && let Some(cache) = &mut *lent
        {
            return work(cache);
        }
        work(&mut Cache::small())
    }

    /// The token that a long piece is spelled like, where that is all that counts.
    pub(crate) fn long_whole(&self, piece: &[u8]) -> Option<u32> {
        self.long_whole.as_ref()?.get(piece, &self.bytes)
    }

    /// The token of a byte on its own.
    pub(crate) fn byte_token(&self, byte: u8) -> Option<u32> {
        [self.symbols.byte(byte), self.byte_stand_ins[byte as usize]]
            .into_iter()
            .find(|&id| id != NONE)
    }

    /// Bytes of memory that the caches take now, at most [`CACHE_BYTES`](crate::CACHE_BYTES).
    pub fn cache_bytes(&self) -> usize {
        self.caches.size()
    }

    /// Appends the ids of any bytes to `out`; decoding them gives the same bytes back. No added token is recognized;
    /// a byte outside UTF-8 becomes its own token.
    ///
    /// # Errors
    /// As [`encode`](Self::encode).
    pub fn encode_bytes(&self, bytes: &[u8], stop: Stop<'_>, out: &mut Vec<u32>) -> Result<()> {
        let mut ids = Ids::new(out, bytes.len());
        let result = self.with_cache(bytes.len(), |cache| {
            let mut encoder = Encoder::new(self, cache, stop, &mut ids);
            for chunk in bytes.utf8_chunks() {
                let _ = encoder.text(chunk.valid())
                    && chunk.invalid().iter().all(|&byte| encoder.byte(byte));
            }
            encoder.finish()
        });
        ids.finish();
        result
    }

    /// Number of tokens, added ones included.
    pub fn vocab_size(&self) -> usize {
        self.names.count()
    }

    /// The largest id.
    pub fn max_id(&self) -> u32 {
        (self.special.len() - 1) as u32
    }

    /// The id of a token, spelled as in the file.
    pub fn token_to_id(&self, token: &str) -> Option<u32> {
        self.index.get(token.as_bytes(), &self.names)
    }

    /// A token as the file spells it.
    pub fn id_to_token(&self, id: u32) -> Option<&str> {
        self.names
            .get(id)
            .and_then(|name| str::from_utf8(name).ok())
    }

    /// Ids, contents and special marks of the added tokens, in the order of the file.
    pub fn added_tokens(&self) -> impl Iterator<Item = (u32, &str, bool)> {
        self.added
            .iter()
            .map(|token| (token.id, token.content.as_str(), token.special))
    }
}

/// The two searches for those of the added tokens that pass: the not normalized, then the others.
fn passes(
    added: &[AddedToken],
    composes: bool,
    keep: impl Fn(&AddedToken) -> bool,
) -> [Matcher; 2] {
    [false, true].map(|normalized| {
        let kept = added
            .iter()
            .filter(|token| token.normalized == normalized && keep(token));
        let found = kept.cloned().map(|mut token| {
            if normalized && composes {
                token.content = composed(&token.content).into_owned();
            }
            token
        });
        Matcher::new(found.collect())
    })
}

/// Normalization form C of a text, by the tables of the crate that Hugging Face `tokenizers` uses: they are those of an
/// older Unicode version, and ids follow them.
pub(crate) fn composed(text: &str) -> Cow<'_, str> {
    if text.is_ascii() || is_nfc_quick(text.chars()) == IsNormalized::Yes {
        return text.into();
    }
    text.nfc().map(|(character, _)| character).collect()
}
