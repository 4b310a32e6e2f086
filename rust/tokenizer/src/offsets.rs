//! Where in the text each token stands, counted in characters.

use crate::added::Part;
use crate::encoder::{Encoder, Ids};
use crate::error::{Error, Result};
use crate::tokenizer::{Stop, Tokenizer, composed};

/// Where something begins and ends.
pub type Place = (usize, usize);

/// Counts characters as places in bytes go up.
struct Characters<'a> {
    text: &'a [u8],
    at: usize,
    /// Characters that start before `at`.
    started: usize,
}

impl Characters<'_> {
    /// Characters that start before `place`, which is not before the last one asked for.
    fn before(&mut self, place: usize) -> usize {
        let passed = &self.text[self.at..place];
        self.started += passed.iter().filter(|&&byte| byte & 0xc0 != 0x80).count();
        self.at = place;
        self.started
    }
}

impl Tokenizer {
    /// The ids of `text`, and for each where its characters begin and end. A token that holds a part of a character
    /// stands where the whole character does; the white space that an added token takes belongs to none.
    ///
    /// # Errors
    /// As [`encode`](Self::encode), and [`Error::Composed`] when the tokenizer brings text to normalization form C and
    /// that changes this one.
    pub fn encode_with_offsets(
        &self,
        text: &str,
        parse_special: bool,
        stop: Stop<'_>,
    ) -> Result<(Vec<u32>, Vec<Place>)> {
        if self.composes && *composed(text) != *text {
            return Err(Error::Composed);
        }
        let [first, second] = if parse_special {
            &self.all_added
        } else {
            &self.text_added
        };
        let mut ids = Vec::new();
        // Ranges of bytes.
        let mut places: Vec<Place> = Vec::new();
        let mut result = Ok(());
        let place_of = |part: &str| part.as_ptr() as usize - text.as_ptr() as usize;
        first.split(text, &mut |part| match part {
            Part::Token(id, place) => {
                ids.push(id);
                places.push(place);
                true
            }
            Part::Text(outer) => second.split(outer, &mut |part| match part {
                Part::Token(id, (start, end)) => {
                    let base = place_of(outer);
                    ids.push(id);
                    places.push((base + start, base + end));
                    true
                }
                Part::Text(inner) => {
                    let from = ids.len();
                    let mut sink = Ids::new(&mut ids, inner.len());
                    result = self.with_cache(inner.len(), |cache| {
                        let mut encoder = Encoder::new(self, cache, &mut *stop, &mut sink);
                        encoder.text(inner);
                        encoder.finish()
                    });
                    sink.finish();
                    let mut start = place_of(inner);
                    for &id in &ids[from..] {
                        let end = start + self.bytes.get(id).map_or(0, <[u8]>::len);
                        places.push((start, end));
                        start = end;
                    }
                    result.is_ok()
                }
            }),
        });
        result?;
        let mut starts = Characters {
            text: text.as_bytes(),
            at: 0,
            started: 0,
        };
        let mut ends = Characters {
            text: text.as_bytes(),
            at: 0,
            started: 0,
        };
        for (start, end) in &mut places {
            // The character that holds the first byte is the last that starts at it or before.
            (*start, *end) = (starts.before(*start + 1) - 1, ends.before(*end));
        }
        Ok((ids, places))
    }
}
