//! From ids to bytes and text, at once or one id at a time.

use crate::error::{Error, Result};
use crate::tokenizer::Tokenizer;

impl Tokenizer {
    /// The bytes of a token, or `None` for a special token that is to be left out.
    fn token_bytes(&self, id: i64, skip_special: bool) -> Result<Option<(u32, &[u8])>> {
        let known = u32::try_from(id)
            .ok()
            .and_then(|small| Some((small, self.bytes.get(small)?)));
        let (small, bytes) = known.ok_or(Error::UnknownId {
            id,
            max: self.max_id(),
        })?;
        Ok((!(skip_special && self.special[small as usize])).then_some((small, bytes)))
    }

    /// The bytes of the tokens, end to end.
    ///
    /// # Errors
    /// [`Error::UnknownId`] when an id is no token's.
    pub fn decode_bytes(&self, ids: &[i64], skip_special: bool) -> Result<Vec<u8>> {
        let mut out = Vec::with_capacity(ids.len() * 4);
        for &id in ids {
            if let Some((_, bytes)) = self.token_bytes(id, skip_special)? {
                out.extend_from_slice(bytes);
            }
        }
        Ok(out)
    }

    /// The text of the tokens; what is not UTF-8 becomes U+FFFD.
    ///
    /// An added token whose name is text, but spells bytes that are not, decodes to its name here ("ö" in the files
    /// of the DeepSeek LLM and V2 family, which would else be a lone byte 0xF6).
    ///
    /// # Errors
    /// [`Error::UnknownId`] when an id is no token's.
    pub fn decode(&self, ids: &[i64], skip_special: bool) -> Result<String> {
        let mut stream = DecodeStream::new(skip_special);
        let mut out = String::with_capacity(ids.len() * 4);
        for &id in ids {
            stream.push_into(self, id, &mut out)?;
        }
        stream.finish_into(&mut out);
        Ok(out)
    }
}

/// Decodes one id at a time and never splits a character: bytes that may be the beginning of one wait for the rest.
///
/// What `push` and `finish` return, end to end, is what [`Tokenizer::decode`] returns for all ids.
#[derive(Debug, Default)]
pub struct DecodeStream {
    /// The beginning of a character, at most three bytes between calls.
    pending: Vec<u8>,
    skip_special: bool,
}

impl DecodeStream {
    /// A stream at its beginning.
    pub fn new(skip_special: bool) -> Self {
        Self {
            pending: Vec::new(),
            skip_special,
        }
    }

    /// Takes the next id and returns the text that is now certain.
    ///
    /// # Errors
    /// [`Error::UnknownId`]; the stream is then as it was.
    pub fn push(&mut self, tokenizer: &Tokenizer, id: i64) -> Result<String> {
        let mut out = String::new();
        self.push_into(tokenizer, id, &mut out)?;
        Ok(out)
    }

    /// Returns what still waited, as U+FFFD, and begins anew.
    pub fn finish(&mut self) -> String {
        let mut out = String::new();
        self.finish_into(&mut out);
        out
    }

    fn push_into(&mut self, tokenizer: &Tokenizer, id: i64, out: &mut String) -> Result<()> {
        let Some((id, bytes)) = tokenizer.token_bytes(id, self.skip_special)? else {
            return Ok(());
        };
        if tokenizer.literal[id as usize]
            && let Some(name) = tokenizer.id_to_token(id)
        {
            self.finish_into(out);
            out.push_str(name);
            return Ok(());
        }
        if self.pending.is_empty()
            && let Ok(text) = str::from_utf8(bytes)
        {
            out.push_str(text);
            return Ok(());
        }
        self.pending.extend_from_slice(bytes);
        let mut done = 0;
        for chunk in self.pending.utf8_chunks() {
            out.push_str(chunk.valid());
            done += chunk.valid().len();
            let invalid = chunk.invalid();
            let may_continue =
                str::from_utf8(invalid).is_err_and(|error| error.error_len().is_none());
            if may_continue && done + invalid.len() == self.pending.len() {
                break;
            }
            if !invalid.is_empty() {
                out.push(char::REPLACEMENT_CHARACTER);
                done += invalid.len();
            }
        }
        self.pending.drain(..done);
        Ok(())
    }

    fn finish_into(&mut self, out: &mut String) {
        if !self.pending.is_empty() {
            out.push(char::REPLACEMENT_CHARACTER);
            self.pending.clear();
        }
    }
}
