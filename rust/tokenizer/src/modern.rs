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
//!
//! Most pieces are ASCII and end within sixteen bytes: [`Modern::next`] finds their end in the masks of one window, and
//! asks [`next_piece`], which follows the patterns character by character, for all others.

use std::sync::LazyLock;

use crate::simd::{self, Window};
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

/// What a piece may be, by its first byte. ASCII letters may follow those up to [`LAST_BEFORE_LETTERS`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Lead {
    /// ASCII letters.
    Letter,
    /// The space, which may lead letters or punctuation.
    Space,
    /// ASCII white space but the space and the newlines, which may lead letters.
    Blank,
    Punctuation,
    Newline,
    Digit,
    /// The first byte of most Han characters.
    Han,
    Other,
}

impl Lead {
    /// Neither punctuation nor a newline, which punctuation takes.
    fn stands_apart(self) -> bool {
        matches!(self, Self::Letter | Self::Space | Self::Blank | Self::Digit)
    }
}

const LAST_BEFORE_LETTERS: u8 = Lead::Punctuation as u8;

static LEADS: [Lead; 256] = {
    let mut leads = [Lead::Other; 256];
    let mut byte = 0;
    while byte < 256 {
        leads[byte] = match byte as u8 {
            b'A'..=b'Z' | b'a'..=b'z' => Lead::Letter,
            b' ' => Lead::Space,
            b'\t' | 0x0b | 0x0c => Lead::Blank,
            b'\r' | b'\n' => Lead::Newline,
            b'0'..=b'9' => Lead::Digit,
            0x21..=0x7e => Lead::Punctuation,
            0xe4..=0xe9 => Lead::Han,
            _ => Lead::Other,
        };
        byte += 1;
    }
    leads
};

/// Bits set from the lowest on.
#[inline(always)]
fn ones(mask: u32) -> usize {
    (!mask).trailing_zeros() as usize
}

/// The scanner.
#[derive(Debug)]
pub(crate) struct Modern {
    table: &'static Table,
}

impl Modern {
    pub(crate) fn new() -> Self {
        Self { table: &TABLE }
    }

    /// The end of the piece that starts at `at`; `window` holds the bytes from there on, zeros behind the end.
    #[inline(always)]
    pub(crate) fn next(&self, text: &[u8], at: usize, window: &Window) -> usize {
        let kinds = simd::letters(window);
        let lead = LEADS[window[0] as usize];
        // Most pieces are ASCII letters, often with a character before them: they share one way, without a branch that
        // depends on that character.
        let skip = u32::from(lead != Lead::Letter);
        let letters = ones(kinds.letters >> skip);
        let count = letters + skip as usize;
        if lead as u8 <= LAST_BEFORE_LETTERS && letters > 0 {
            if count < 16 && (kinds.wide >> count & 1 == 0 || lead == Lead::Punctuation) {
                return at + count;
            }
            return self.long_letters(text, at + count, lead);
        }
        self.without_letters(text, at, window, kinds.wide, lead)
    }

    /// The end of letters that reach `at`.
    #[inline(never)]
    fn long_letters(&self, text: &[u8], at: usize, lead: Lead) -> usize {
        if lead == Lead::Punctuation {
            let more = text[at..]
                .iter()
                .take_while(|byte| byte.is_ascii_alphabetic());
            return at + more.count();
        }
        self.cursor(text, 0).letters(at)
    }

    /// As `next`, for a piece that no ASCII letter starts or follows the first character of.
    #[inline(always)]
    fn without_letters(
        &self,
        text: &[u8],
        at: usize,
        window: &Window,
        wide: u32,
        lead: Lead,
    ) -> usize {
        match lead {
            Lead::Punctuation => self.punctuation(text, at, window, wide, 0),
            Lead::Space | Lead::Blank if wide >> 1 & 1 == 0 => {
                if lead == Lead::Space && LEADS[window[1] as usize] == Lead::Punctuation {
                    self.punctuation(text, at, window, wide, 1)
                } else {
                    self.white_space(text, at, window, wide)
                }
            }
            Lead::Newline => self.white_space(text, at, window, wide),
            Lead::Digit => {
                let count = ones(simd::digits(window)).min(MAX_NUMBER_LENGTH);
                if count < MAX_NUMBER_LENGTH && wide >> count & 1 != 0 {
                    return next_piece(self.table, text, at);
                }
                at + count
            }
            Lead::Han => self.han(text, at, window),
            _ => self.other(text, at),
        }
    }

    /// A piece that starts with a character outside ASCII, or with one of no class. Punctuation is common among them,
    /// and mostly stands alone.
    #[inline]
    fn other(&self, text: &[u8], at: usize) -> usize {
        let (value, length) = self.table.at(text, at);
        if is_punctuation(value) && !text[at].is_ascii() {
            let end = at + length;
            let alone = match text[end..] {
                // Nothing from U+4E00 to U+9FFF is punctuation.
                [] | [0xe4, 0xb8..=0xff, ..] | [0xe5..=0xe9, ..] => true,
                [byte, ..] => byte.is_ascii() && LEADS[byte as usize].stands_apart(),
            };
            if alone {
                return end;
            }
        }
        next_piece(self.table, text, at)
    }

    #[inline(always)]
    fn cursor<'a>(&self, text: &'a [u8], region: u8) -> Cursor<'a> {
        Cursor {
            table: self.table,
            text,
            region,
        }
    }

    /// ` ?[\p{P}\p{S}]+[\r\n]*` with `skip` spaces.
    #[inline(always)]
    fn punctuation(
        &self,
        text: &[u8],
        at: usize,
        window: &Window,
        wide: u32,
        skip: usize,
    ) -> usize {
        let marks = simd::visible(window) & !simd::letters(window).letters & !simd::digits(window);
        let end = skip + ones(marks >> skip);
        if end >= 16 || wide >> end & 1 != 0 {
            return self.cursor(text, 0).punctuation(at + end);
        }
        if LEADS[window[end] as usize] != Lead::Newline {
            return at + end;
        }
        let end = end + ones(simd::newlines(window) >> end);
        if end >= 16 {
            return self.cursor(text, 0).run(at + end, |class| class == NEWLINE);
        }
        at + end
    }

    /// `\s*[\r\n]+|\s+(?!\S)|\s+`
    #[inline(always)]
    fn white_space(&self, text: &[u8], at: usize, window: &Window, wide: u32) -> usize {
        let count = ones(simd::white(window));
        if count >= 16 || wide >> count & 1 != 0 {
            return self.cursor(text, 0).white_space(at);
        }
        let newlines = simd::newlines(window) & ((1 << count) - 1);
        if newlines != 0 {
            return at + (u32::BITS - newlines.leading_zeros()) as usize;
        }
        let ends = LEADS[window[count] as usize] == Lead::Digit || at + count >= text.len();
        if ends || count == 1 {
            at + count
        } else {
            at + count - 1
        }
    }

    /// A piece that starts with a character from U+4000 to U+9FFF.
    #[inline(always)]
    fn han(&self, text: &[u8], start: usize, window: &Window) -> usize {
        let mut at = start + han_bytes(window);
        if at == start {
            return next_piece(self.table, text, start);
        }
        if at == start + HAN_BYTES {
            at = long_han(text, at);
        }
        // Up to U+303F and from U+A000 on no character is of this region.
        match text[at..] {
            [] | [0..=0xe2 | 0xea..=0xff, ..] | [0xe3, 0x80, ..] => at,
            _ => self.cursor(text, KANA_OR_HAN).letters(at),
        }
    }
}

/// Most bytes of Han characters that a window holds.
const HAN_BYTES: usize = 15;

/// How many bytes at the beginning of a window are letters of the Han, all of one region.
#[inline(always)]
fn han_bytes(window: &Window) -> usize {
    const FIRST_BYTES: u32 = 0o11111;
    let others = FIRST_BYTES & !simd::han(window);
    (others | 1 << HAN_BYTES).trailing_zeros() as usize
}

/// The end of the Han letters from `at` on, or nearly.
#[inline(never)]
fn long_han(text: &[u8], mut at: usize) -> usize {
    while let Some(window) = text.get(at..).and_then(|rest| rest.first_chunk()) {
        let bytes = han_bytes(window);
        at += bytes;
        if bytes < HAN_BYTES {
            break;
        }
    }
    at
}

/// The end of the piece that starts at `start`; `text` is UTF-8 and `start`, before its end, starts a piece.
#[inline(never)]
fn next_piece(table: &Table, text: &[u8], start: usize) -> usize {
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
pub(crate) mod tests {
    use super::*;
    use proptest::prelude::*;

    pub(crate) fn split_with(text: &str, next: impl Fn(&[u8], usize) -> usize) -> Vec<&str> {
        let mut pieces = Vec::new();
        let mut start = 0;
        while start < text.len() {
            let end = next(text.as_bytes(), start);
            pieces.push(&text[start..end]);
            start = end;
        }
        pieces
    }

    /// With windows, and character by character: the two have to agree.
    fn split(text: &str) -> Vec<&str> {
        let modern = Modern::new();
        let fast = split_with(text, |text, at| {
            modern.next(text, at, &simd::last_window(text, at))
        });
        let slow = split_with(text, |text, at| next_piece(&TABLE, text, at));
        assert_eq!(fast, slow);
        fast
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
        fn pieces_cover_the_text_on_character_boundaries(
            text in "\\PC*|[\\s\\p{L}\\p{N}\\p{P}\\p{C}]*|([a-zA-Z]{1,20}| {1,18}|[0-9]{1,4}|[!-/:-@]{1,17}|[\r\n]{1,17}|[\u{e9}\u{660}\u{3000}\u{4e2d}\u{3042}\u{309b}\u{300}\u{85}\u{ff01}\0\t])*",
        ) {
            prop_assert_eq!(split(&text).concat(), text);
        }
    }
}
