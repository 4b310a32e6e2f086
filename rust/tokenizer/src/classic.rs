//! The pre-tokenizer that GPT-4 introduced, as Llama 3, GLM and Qwen2 have it:
//!
//! ```text
//! (?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+
//! ```
//!
//! Qwen2's numbers have one digit. One pass from left to right; what sixteen bytes of ASCII settle is found in masks, all
//! else character by character.

use std::sync::LazyLock;

use crate::simd::{self, Window};
use crate::unicode::{LETTER, NEWLINE, NUMBER, SPACE, Table, flat_classes};

/// The class that stands for the end of the text.
const END: u8 = 0xff;

static TABLE: LazyLock<Table> = LazyLock::new(|| Table::compress(&flat_classes()));

/// The class and length of the character at `at`; `END` at the end.
#[inline]
fn peek(table: &Table, text: &[u8], at: usize) -> (u8, usize) {
    if at < text.len() {
        table.at(text, at)
    } else {
        (END, 0)
    }
}

/// The end of the run of characters from `at` whose class passes.
#[inline]
pub(crate) fn run(table: &Table, text: &[u8], mut at: usize, passes: impl Fn(u8) -> bool) -> usize {
    loop {
        let (class, length) = peek(table, text, at);
        if class == END || !passes(class) {
            return at;
        }
        at += length;
    }
}

/// `(?i:'s|'t|'re|'ve|'m|'ll|'d)`: the end of one at `at`, or `at`.
///
/// The long s folds to s.
pub(crate) fn contraction(text: &[u8], at: usize) -> usize {
    let letter = |place: usize| text.get(at + place).map_or(0, u8::to_ascii_lowercase);
    if text.get(at) != Some(&b'\'') {
        return at;
    }
    match (letter(1), letter(2)) {
        (b's' | b't' | b'm' | b'd', _) => at + 2,
        (b'r' | b'v', b'e') | (b'l', b'l') | (0xc5, 0xbf) => at + 3,
        _ => at,
    }
}

/// `\p{N}{1,most}` after its first character.
pub(crate) fn number(table: &Table, text: &[u8], mut at: usize, most: usize) -> usize {
    for _ in 1..most {
        let (class, length) = peek(table, text, at);
        if class != NUMBER {
            break;
        }
        at += length;
    }
    at
}

/// `[^\s\p{L}\p{N}]`
#[inline]
pub(crate) fn is_mark(class: u8) -> bool {
    !matches!(class, LETTER | NUMBER | SPACE | NEWLINE)
}

/// `[^\s\p{L}\p{N}]*[\r\n]*`
pub(crate) fn marks(table: &Table, text: &[u8], at: usize) -> usize {
    let end = run(table, text, at, is_mark);
    run(table, text, end, |class| class == NEWLINE)
}

/// `\s*[\r\n]+|\s+(?!\S)|\s+` from a white character on.
pub(crate) fn white_space(table: &Table, text: &[u8], start: usize) -> usize {
    let mut at = start;
    let mut last_newline = start;
    let mut last = start;
    loop {
        let (class, length) = peek(table, text, at);
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

/// Bits set from the lowest on.
#[inline(always)]
pub(crate) fn ones(mask: u32) -> usize {
    (!mask).trailing_zeros() as usize
}

/// What of a window of ASCII characters is not white, no letter and no digit.
#[inline(always)]
fn mark_mask(window: &Window) -> u32 {
    !(simd::white(window) | simd::letters(window).letters | simd::digits(window)) & 0xffff
}

/// ` ?[^\s\p{L}\p{N}]+[\r\n]*` with `skip` spaces, whose first mark is ASCII.
#[inline(always)]
pub(crate) fn mark_piece(
    table: &Table,
    text: &[u8],
    at: usize,
    window: &Window,
    skip: usize,
) -> usize {
    let wide = simd::letters(window).wide;
    let marks_end = skip + ones((mark_mask(window) & !wide) >> skip);
    if marks_end >= 16 || at + 16 > text.len() || wide >> marks_end & 1 != 0 {
        return marks(table, text, at + skip);
    }
    let end = marks_end + ones(simd::newlines(window) >> marks_end);
    if end >= 16 {
        return run(table, text, at + end, |class| class == NEWLINE);
    }
    at + end
}

/// As [`white_space`], from an ASCII character on.
#[inline(always)]
pub(crate) fn white_piece(table: &Table, text: &[u8], at: usize, window: &Window) -> usize {
    let count = ones(simd::white(window));
    if count >= 16 || simd::letters(window).wide >> count & 1 != 0 {
        return white_space(table, text, at);
    }
    let newlines = simd::newlines(window) & ((1 << count) - 1);
    if newlines != 0 {
        return at + (u32::BITS - newlines.leading_zeros()) as usize;
    }
    if count == 1 || at + count >= text.len() {
        at + count
    } else {
        at + count - 1
    }
}

/// The scanner.
#[derive(Debug)]
pub(crate) struct Classic {
    table: &'static Table,
    /// Most digits of a number.
    digits: usize,
}

impl Classic {
    pub(crate) fn new(digits: usize) -> Self {
        Self {
            table: &TABLE,
            digits,
        }
    }

    /// The end of the piece that starts at `at`; `window` holds the bytes from there on, zeros behind the end.
    #[inline(always)]
    pub(crate) fn next(&self, text: &[u8], at: usize, window: &Window) -> usize {
        let first = window[0];
        let kinds = simd::letters(window);
        if kinds.letters & 1 != 0 {
            return self.letters(text, at, ones(kinds.letters), kinds.wide);
        }
        if first >= 0x80 || first == b'\'' {
            return self.next_slow(text, at);
        }
        match first {
            b'0'..=b'9' => {
                let count = ones(simd::digits(window)).min(self.digits);
                if count < self.digits && kinds.wide >> count & 1 != 0 {
                    return number(self.table, text, at + 1, self.digits);
                }
                at + count
            }
            b'\r' | b'\n' => white_piece(self.table, text, at, window),
            _ => {
                let count = ones(kinds.letters >> 1) + 1;
                if count > 1 {
                    return self.letters(text, at, count, kinds.wide);
                }
                if kinds.wide & 2 != 0 {
                    return self.next_slow(text, at);
                }
                self.without_letters(text, at, window, first)
            }
        }
    }

    #[inline(always)]
    fn letters(&self, text: &[u8], at: usize, count: usize, wide: u32) -> usize {
        if count < 16 && wide >> count & 1 == 0 {
            return at + count;
        }
        run(self.table, text, at + count, |class| class == LETTER)
    }

    #[inline(always)]
    fn without_letters(&self, text: &[u8], at: usize, window: &Window, first: u8) -> usize {
        let white = simd::white(window);
        if white & 1 == 0 {
            return mark_piece(self.table, text, at, window, 0);
        }
        let mark_follows = mark_mask(window) & 2 != 0 && at + 1 < text.len();
        if first == b' ' && mark_follows {
            return mark_piece(self.table, text, at, window, 1);
        }
        white_piece(self.table, text, at, window)
    }

    /// As `next`, character by character.
    #[inline(never)]
    fn next_slow(&self, text: &[u8], start: usize) -> usize {
        let table = self.table;
        let contracted = contraction(text, start);
        if contracted > start {
            return contracted;
        }
        let letters = |at: usize| run(table, text, at, |class| class == LETTER);
        let (class, length) = table.at(text, start);
        let at = start + length;
        match class {
            LETTER => letters(at),
            NUMBER => number(table, text, at, self.digits),
            NEWLINE => white_space(table, text, start),
            _ => {
                let (following, _) = peek(table, text, at);
                if following == LETTER {
                    letters(at)
                } else if class != SPACE {
                    marks(table, text, start)
                } else if text[start] == b' ' && following != END && is_mark(following) {
                    marks(table, text, at)
                } else {
                    white_space(table, text, start)
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::modern::tests::split_with;
    use proptest::prelude::*;

    fn split(text: &str) -> Vec<&str> {
        let classic = Classic::new(3);
        let fast = split_with(text, |text, at| {
            classic.next(text, at, &simd::last_window(text, at))
        });
        assert_eq!(
            fast,
            split_with(text, |text, at| classic.next_slow(text, at))
        );
        fast
    }

    #[test]
    fn contractions_go_first_and_only_at_the_start_of_a_piece() {
        assert_eq!(split("I'LL'd"), ["I", "'LL", "'d"]);
        assert_eq!(split("'sure"), ["'s", "ure"]);
        assert_eq!(split("\u{3042}'\u{17f}"), ["\u{3042}", "'\u{17f}"]);
    }

    #[test]
    fn numbers_do_not_end_white_space() {
        assert_eq!(split("a  1234"), ["a", " ", " ", "123", "4"]);
        assert_eq!(split(" \n\n  x!\n"), [" \n\n", " ", " x", "!\n"]);
    }

    proptest! {
        #[test]
        fn windows_and_characters_agree(
            text in "([a-zA-Z]{1,20}| {1,18}|[0-9]{1,4}|[!-/:-@]{1,17}|[\r\n]{1,17}|'[a-zA-Z]|[\u{e9}\u{660}\u{3000}\u{4e2d}\u{309b}\u{300}\u{85}\u{ff01}\0\t])*",
        ) {
            prop_assert_eq!(split(&text).concat(), text);
        }
    }
}
