//! The pre-tokenizer of DeepSeek V3, R1, V3.1, V3.2 and V4, in one pass from left to right.
//!
//! The files describe three splits, one inside the other:
//!
//! 1. `\p{N}{1,3}`
//! 2. `[一-龥぀-ゟ゠-ヿ]+`
//! 3. `[ASCII punctuation][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+`
//!
//! The first two cut the text into regions that the third never looks across, so one cursor does: the region of a
//! piece is that of its first character, and the first character of another region counts as the end of the text.

use std::sync::LazyLock;

use crate::unicode::{
    LETTER, MARK, NEWLINE, NUMBER, OTHER, PUNCTUATION, SPACE, SYMBOL, Table, flat_classes,
};

/// Set beside the class for the characters of the second split.
const KANA_OR_HAN: u8 = 8;
const CLASS: u8 = 7;
/// The class that stands for the end of a region.
const END: u8 = 0xff;
const MAX_NUMBER_LENGTH: usize = 3;

static TABLE: LazyLock<Table> = LazyLock::new(|| {
    let mut flat = flat_classes();
    for range in [0x4e00..=0x9fa5, 0x3040..=0x309f, 0x30a0..=0x30ff] {
        for value in &mut flat[range] {
            *value |= KANA_OR_HAN;
        }
    }
    Table::compress(&flat)
});

/// A text and the region that the current piece started in.
struct Cursor<'a> {
    table: &'a Table,
    text: &'a [u8],
    region: u8,
}

impl Cursor<'_> {
    /// The class and length of the character at `at`; `END` where the region ends.
    #[inline]
    fn peek(&self, at: usize) -> (u8, usize) {
        if at >= self.text.len() {
            return (END, 0);
        }
        let (value, length) = self.table.at(self.text, at);
        let class = value & CLASS;
        if value & KANA_OR_HAN == self.region && class != NUMBER {
            (class, length)
        } else {
            (END, 0)
        }
    }

    /// The end of the run of characters from `at` whose class passes.
    #[inline]
    fn run(&self, mut at: usize, passes: impl Fn(u8) -> bool) -> usize {
        loop {
            let (class, length) = self.peek(at);
            if !passes(class) {
                return at;
            }
            at += length;
        }
    }

    fn letters(&self, at: usize) -> usize {
        self.run(at, is_letter)
    }

    /// ` ?[\p{P}\p{S}]+[\r\n]*`, after its first punctuation or symbol.
    fn punctuation(&self, at: usize) -> usize {
        let end = self.run(at, is_punctuation);
        self.run(end, |class| class == NEWLINE)
    }

    /// `\s*[\r\n]+|\s+(?!\S)|\s+`: through the last newline of the run; else all of it at the end of the region;
    /// else all but the last character, which the next piece may want.
    fn white_space(&self, start: usize) -> usize {
        let mut at = start;
        let mut last_newline = start;
        let mut last = start;
        loop {
            let (class, length) = self.peek(at);
            match class {
                NEWLINE => last_newline = at + length,
                SPACE => {}
                _ if last_newline > start => return last_newline,
                END => return at,
                _ => return if last > start { last } else { at },
            }
            last = at;
            at += length;
        }
    }
}

#[inline]
fn is_letter(class: u8) -> bool {
    matches!(class, LETTER | MARK)
}

#[inline]
fn is_punctuation(class: u8) -> bool {
    matches!(class, PUNCTUATION | SYMBOL)
}

/// The end of the piece that starts at `start`; `text` is UTF-8 and `start`, before its end, starts a piece.
pub(crate) fn next_piece(text: &[u8], start: usize) -> usize {
    let table = &*TABLE;
    let (value, length) = table.at(text, start);
    let class = value & CLASS;
    let mut at = start + length;
    if class == NUMBER {
        for _ in 1..MAX_NUMBER_LENGTH {
            if at >= text.len() {
                break;
            }
            let (value, length) = table.at(text, at);
            if value & CLASS != NUMBER {
                break;
            }
            at += length;
        }
        return at;
    }
    let cursor = Cursor {
        table,
        text,
        region: value & KANA_OR_HAN,
    };
    match class {
        LETTER | MARK => cursor.letters(at),
        PUNCTUATION | SYMBOL => {
            let letters = text[at..]
                .iter()
                .take_while(|byte| byte.is_ascii_alphabetic())
                .count();
            if text[start].is_ascii() && letters > 0 {
                at + letters
            } else {
                cursor.punctuation(at)
            }
        }
        NEWLINE => cursor.white_space(start),
        SPACE => {
            let (following, length) = cursor.peek(at);
            if is_letter(following) {
                cursor.letters(at + length)
            } else if text[start] == b' ' && is_punctuation(following) {
                cursor.punctuation(at + length)
            } else {
                cursor.white_space(start)
            }
        }
        // No alternative takes these but as the one character before a letter, so what lies between two matches,
        // or up to the end of the region, is one piece.
        _ => loop {
            let (following, length) = cursor.peek(at);
            if is_letter(following) {
                // The last of these characters belongs to the letters; alone, it starts their piece.
                let own = text[..at]
                    .iter()
                    .rposition(|&byte| byte & 0xc0 != 0x80)
                    .unwrap_or(start);
                return if own > start {
                    own
                } else {
                    cursor.letters(at + length)
                };
            }
            if following != OTHER {
                return at;
            }
            at += length;
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn split(text: &str) -> Vec<&str> {
        let mut pieces = Vec::new();
        let mut start = 0;
        while start < text.len() {
            let end = next_piece(text.as_bytes(), start);
            pieces.push(&text[start..end]);
            start = end;
        }
        pieces
    }

    #[test]
    fn numbers_come_in_threes_and_end_white_space() {
        assert_eq!(split("a  1234567"), ["a", "  ", "123", "456", "7"]);
        assert_eq!(split("  x"), [" ", " x"]);
        assert_eq!(split("x  "), ["x", "  "]);
    }

    #[test]
    fn ascii_punctuation_takes_the_ascii_letters_after_it() {
        assert_eq!(split("(foo) _bar"), ["(foo", ")", " _", "bar"]);
        assert_eq!(split("(caf\u{e9}"), ["(caf", "\u{e9}"]);
        assert_eq!(split("?!\n\n x"), ["?!\n\n", " x"]);
    }

    #[test]
    fn white_space_ends_at_its_last_newline() {
        assert_eq!(split(" \n \n  x"), [" \n \n", " ", " x"]);
        assert_eq!(split("a \r\n"), ["a", " \r\n"]);
    }

    #[test]
    fn kana_and_han_are_cut_from_their_neighbors_and_split_inside() {
        assert_eq!(
            split("ab\u{4e2d}\u{6587}cd"),
            ["ab", "\u{4e2d}\u{6587}", "cd"]
        );
        assert_eq!(
            split("\u{3042}\u{309b}\u{3044}"),
            ["\u{3042}", "\u{309b}", "\u{3044}"]
        );
        assert_eq!(
            split("\u{3042}\u{3040}\u{3044}"),
            ["\u{3042}", "\u{3040}\u{3044}"]
        );
        assert_eq!(split(" \u{4e2d}"), [" ", "\u{4e2d}"]);
    }

    #[test]
    fn characters_of_no_class_form_gaps_or_lead_letters() {
        assert_eq!(split("\0\0a"), ["\0", "\0a"]);
        assert_eq!(split("\0\0 a"), ["\0\0", " a"]);
        assert_eq!(split("\u{200b}\u{200b}1"), ["\u{200b}\u{200b}", "1"]);
    }

    proptest! {
        #[test]
        fn pieces_cover_the_text_on_character_boundaries(text in "\\PC*|[\\s\\p{L}\\p{N}\\p{P}\\p{C}]*") {
            prop_assert_eq!(split(&text).concat(), text);
        }
    }
}
