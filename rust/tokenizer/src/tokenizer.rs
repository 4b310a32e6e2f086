//! The tokenizer: tables made once, then read by any number of threads.

use std::collections::HashMap;

use crate::added::{AddedToken, Matcher, Part};
use crate::bpe::{Merges, NONE};
use crate::bytelevel::{byte_of, bytes_of};
use crate::error::{Error, Result, shorten};
use crate::load::Parts;
use crate::pieces::{Pieces, Strings};
use crate::pretokenize::PreTokenizer;

/// Longest token that a whole piece is compared with; longer ones are merged from their bytes.
const MAX_PIECE: usize = 128;
/// Longest piece that is merged: its places are counted in 32 bits.
const MAX_MERGED: usize = (NONE - 1) as usize;
/// How many bytes pass between two looks at the caller's wish to stop.
const POLL_INTERVAL: usize = 1 << 16;

/// A question asked from time to time during long work: true means stop.
pub type Stop<'a> = &'a mut dyn FnMut() -> bool;

/// Byte-level BPE as a Hugging Face `tokenizer.json` describes it.
///
/// Immutable after loading, so it may be shared between threads.
#[derive(Debug)]
pub struct Tokenizer {
    splitter: PreTokenizer,
    merges: Merges,
    /// Token of each single byte, or `NONE`.
    byte_tokens: [u32; 256],
    /// Tokens for bytes that the vocabulary lacks and an added token spells in the byte-level alphabet.
    byte_stand_ins: [u32; 256],
    pieces: Pieces,
    ids: HashMap<Box<str>, u32>,
    names: Strings,
    /// What each token decodes to.
    pub(crate) bytes: Strings,
    pub(crate) special: Vec<bool>,
    /// Added tokens whose name is text, and whose bytes are not: decoding to text gives the name.
    pub(crate) literal: Vec<bool>,
    /// The two passes over all added tokens.
    all_added: [Matcher; 2],
    /// The two passes over those that are text.
    text_added: [Matcher; 2],
    added: Vec<AddedToken>,
}

impl Tokenizer {
    /// Reads the text of a `tokenizer.json`.
    ///
    /// # Errors
    /// When it is not JSON, contradicts itself, or describes a tokenizer that this crate does not have
    /// ([`Error::Unsupported`]).
    pub fn from_json(json: &[u8]) -> Result<Self> {
        let Parts {
            vocabulary,
            merges,
            added,
            pre_tokenizer,
        } = Parts::from_json(json)?;
        let largest = vocabulary
            .values()
            .copied()
            .chain(added.iter().map(|token| token.id))
            .max();
        let largest = largest.ok_or(Error::Field {
            field: "model.vocab".into(),
            expected: "at least one token",
        })?;
        let count = largest as usize + 1;
        let mut names = Strings::with_ids(count);
        let mut bytes = Strings::with_ids(count);
        let mut byte_tokens = [NONE; 256];
        let mut byte_stand_ins = [NONE; 256];
        let mut candidates = Vec::new();
        for (name, &id) in &vocabulary {
            names.set(id, name.as_bytes());
            let Some(spelled) = bytes_of(name) else {
                bytes.set(id, name.as_bytes());
                continue;
            };
            bytes.set(id, &spelled);
            if let [byte] = spelled[..] {
                byte_tokens[byte as usize] = id;
            }
            if (1..=MAX_PIECE).contains(&spelled.len()) {
                candidates.push(id);
            }
        }
        let mut ids = vocabulary;
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
            ids.insert(token.content.clone().into_boxed_str(), id);
            let mut characters = token.content.chars();
            if let (Some(only), None) = (characters.next(), characters.next())
                && let Some(byte) = byte_of(only)
            {
                byte_stand_ins[byte as usize] = id;
            }
        }
        let passes = |keep: &dyn Fn(&AddedToken) -> bool| {
            [false, true].map(|normalized| {
                let kept = added
                    .iter()
                    .filter(|token| token.normalized == normalized && keep(token));
                Matcher::new(kept.cloned().collect())
            })
        };
        let mut tokenizer = Self {
            splitter: pre_tokenizer,
            merges,
            byte_tokens,
            byte_stand_ins,
            pieces: Pieces::with_capacity(candidates.len()),
            ids,
            names,
            bytes,
            special,
            literal,
            all_added: passes(&|_| true),
            text_added: passes(&AddedToken::is_text),
            added,
        };
        tokenizer.find_whole_pieces(&candidates);
        Ok(tokenizer)
    }

    /// Fills `pieces` with the tokens that merging their own bytes gives back: a vocabulary may hold others.
    fn find_whole_pieces(&mut self, candidates: &[u32]) {
        let mut symbols = Vec::new();
        for &id in candidates {
            let Some(bytes) = self.bytes.get(id) else {
                continue;
            };
            symbols.clear();
            symbols.extend(bytes.iter().map(|&byte| self.byte_tokens[byte as usize]));
            if symbols.contains(&NONE) {
                continue;
            }
            self.merges.apply(&mut symbols, &mut || false);
            if symbols == [id] {
                self.pieces.insert(id, &self.bytes);
            }
        }
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
        let [first, second] = if parse_special {
            &self.all_added
        } else {
            &self.text_added
        };
        let mut encoder = Encoder::new(self, stop, out);
        first.split(text, &mut |part| match part {
            Part::Token(id) => encoder.token(id),
            Part::Text(text) => second.split(text, &mut |part| match part {
                Part::Token(id) => encoder.token(id),
                Part::Text(text) => encoder.text(text),
            }),
        });
        encoder.result
    }

    /// Appends the ids of any bytes to `out`; decoding them gives the same bytes back. No added token is recognized;
    /// a byte outside UTF-8 becomes its own token.
    ///
    /// # Errors
    /// As [`encode`](Self::encode).
    pub fn encode_bytes(&self, bytes: &[u8], stop: Stop<'_>, out: &mut Vec<u32>) -> Result<()> {
        let mut encoder = Encoder::new(self, stop, out);
        for chunk in bytes.utf8_chunks() {
            let _ = encoder.text(chunk.valid())
                && chunk.invalid().iter().all(|&byte| encoder.byte(byte));
        }
        encoder.result
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
        self.ids.get(token).copied()
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

/// One call's state. After an error every method returns false and does nothing.
struct Encoder<'a> {
    tokenizer: &'a Tokenizer,
    stop: Stop<'a>,
    out: &'a mut Vec<u32>,
    symbols: Vec<u32>,
    unpolled: usize,
    result: Result<()>,
}

impl<'a> Encoder<'a> {
    fn new(tokenizer: &'a Tokenizer, stop: Stop<'a>, out: &'a mut Vec<u32>) -> Self {
        Self {
            tokenizer,
            stop,
            out,
            symbols: Vec::new(),
            unpolled: 0,
            result: Ok(()),
        }
    }

    fn token(&mut self, id: u32) -> bool {
        self.out.push(id);
        self.poll(1)
    }

    fn text(&mut self, text: &str) -> bool {
        let bytes = text.as_bytes();
        let splitter = &self.tokenizer.splitter;
        let mut start = 0;
        while start < bytes.len() && self.result.is_ok() {
            let end = splitter.next_stretch(bytes, start, &mut |piece| self.piece(piece));
            self.poll(end - start);
            start = end;
        }
        self.result.is_ok()
    }

    fn byte(&mut self, byte: u8) -> bool {
        let tokenizer = self.tokenizer;
        let tables = [&tokenizer.byte_tokens, &tokenizer.byte_stand_ins];
        if let Some(id) = tables
            .map(|table| table[byte as usize])
            .into_iter()
            .find(|&id| id != NONE)
        {
            return self.token(id);
        }
        self.result = Err(Error::MissingByte { byte });
        false
    }

    #[inline]
    fn piece(&mut self, piece: &[u8]) {
        let tokenizer = self.tokenizer;
        if let Some(id) = tokenizer.pieces.get(piece, &tokenizer.bytes) {
            self.out.push(id);
        } else if self.result.is_ok() {
            self.merge(piece);
        }
    }

    fn merge(&mut self, piece: &[u8]) {
        let (length, limit) = (piece.len(), MAX_MERGED);
        if length > limit {
            self.result = Err(Error::PieceTooLong { length, limit });
            return;
        }
        self.symbols.clear();
        for &byte in piece {
            let id = self.tokenizer.byte_tokens[byte as usize];
            if id == NONE {
                self.result = Err(Error::MissingByte { byte });
                return;
            }
            self.symbols.push(id);
        }
        if self.tokenizer.merges.apply(&mut self.symbols, self.stop) {
            self.out.extend_from_slice(&self.symbols);
        } else {
            self.result = Err(Error::Interrupted);
        }
    }

    #[inline]
    fn poll(&mut self, bytes: usize) -> bool {
        self.unpolled += bytes;
        if self.unpolled >= POLL_INTERVAL && self.result.is_ok() {
            self.unpolled = 0;
            if (self.stop)() {
                self.result = Err(Error::Interrupted);
            }
        }
        self.result.is_ok()
    }
}
