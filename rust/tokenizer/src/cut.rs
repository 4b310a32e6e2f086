//! Where a text may be cut so that the parts have the ids of the whole.
//!
//! ```text
//! ...\n|x...     behind a newline, before a character that is not white
//! ...a| b...     before a space that stands between two ASCII letters
//! ```
//!
//! No pattern that is scanned here has either pair of characters in one piece, none looks back, and what the look-ahead
//! `(?!\S)` sees is the same with and without the rest. Added tokens must not reach over: see [`Tokenizer::may_be_cut`].

use crate::tokenizer::Tokenizer;

/// True when `text` may be cut at `at`, where a character starts.
fn is_cut(text: &[u8], at: usize) -> bool {
    let is = |place: usize, passes: &dyn Fn(u8) -> bool| {
        text.get(place).is_some_and(|&byte| passes(byte))
    };
    let letter = |byte: u8| byte.is_ascii_alphabetic();
    // ASCII but white, or from U+4000 to U+9FFF.
    let dark = |byte: u8| byte.is_ascii_graphic() || (0xe4..=0xe9).contains(&byte);
    match text.get(at.wrapping_sub(1)) {
        Some(b'\n') => is(at, &dark),
        Some(&before) => letter(before) && text.get(at) == Some(&b' ') && is(at + 1, &letter),
        None => false,
    }
}

/// The first place behind `at` where `text` may be cut, no more than `search` bytes away.
pub(crate) fn next_cut(text: &[u8], at: usize, search: usize) -> Option<usize> {
    let window = &text[at.min(text.len())..text.len().min(at.saturating_add(search))];
    memchr::memchr2_iter(b'\n', b' ', window)
        .map(|place| at + place + usize::from(window[place] == b'\n'))
        .find(|&place| place > at && is_cut(text, place))
}

/// The last place where `text` may be cut.
pub(crate) fn last_cut(text: &[u8]) -> Option<usize> {
    memchr::memrchr2_iter(b'\n', b' ', text)
        .map(|place| place + usize::from(text[place] == b'\n'))
        .find(|&place| is_cut(text, place))
}

/// Takes a text in parts and gives ids as soon as they are certain: what is encoded ends where the text may be cut, the
/// rest waits.
///
/// What `push` and `finish` append, end to end, are the ids of the whole text.
#[derive(Debug, Default)]
pub struct EncodeStream {
    pending: String,
    parse_special: bool,
}

impl EncodeStream {
    /// A stream at its beginning.
    pub fn new(parse_special: bool) -> Self {
        Self {
            pending: String::new(),
            parse_special,
        }
    }

    /// Takes the next part and appends the ids that are now certain.
    ///
    /// # Errors
    /// As [`Tokenizer::encode`]; the part stays taken.
    pub fn push(
        &mut self,
        tokenizer: &Tokenizer,
        text: &str,
        out: &mut Vec<u32>,
    ) -> crate::Result<()> {
        // What waits has no cut but near its end, where the new part may complete one.
        let mut searched = self.pending.len().saturating_sub(2);
        while !self.pending.is_char_boundary(searched) {
            searched -= 1;
        }
        self.pending.push_str(text);
        if !tokenizer.may_be_cut {
            return Ok(());
        }
        let Some(cut) = last_cut(&self.pending.as_bytes()[searched..]) else {
            return Ok(());
        };
        let cut = searched + cut;
        tokenizer.encode(&self.pending[..cut], self.parse_special, &mut || false, out)?;
        self.pending.drain(..cut);
        Ok(())
    }

    /// Appends the ids of what still waited, and begins anew.
    ///
    /// # Errors
    /// As [`Tokenizer::encode`].
    pub fn finish(&mut self, tokenizer: &Tokenizer, out: &mut Vec<u32>) -> crate::Result<()> {
        let rest = std::mem::take(&mut self.pending);
        tokenizer.encode(&rest, self.parse_special, &mut || false, out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cuts_stand_where_no_piece_reaches_over() {
        let cuts = |text: &str| -> Vec<usize> {
            (0..=text.len())
                .filter(|&at| is_cut(text.as_bytes(), at))
                .collect()
        };
        assert_eq!(cuts("ab\n \nc"), [5]);
        assert!(cuts("ab\n\n").is_empty());
        assert_eq!(cuts("a\n\u{3000}b\n\u{4e2d}"), [7]);
        assert_eq!(cuts("a b c1 d e"), [1, 3, 8]);
        assert_eq!(cuts("\nx"), [1]);
    }

    #[test]
    fn the_next_and_the_last_are_found() {
        let text = b"one two\nthree  four five";
        assert_eq!(next_cut(text, 0, 100), Some(3));
        assert_eq!(next_cut(text, 3, 100), Some(8));
        assert_eq!(next_cut(text, 8, 5), None);
        assert_eq!(last_cut(text), Some(19));
    }
}
