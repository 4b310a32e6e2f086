//! The pre-tokenizer of Moonlight and Kimi:
//!
//! ```text
//! H = \p{Han}                                              C = (?i:'s|'t|'re|'ve|'m|'ll|'d)
//! A = [\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]          B = [\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]
//! P = [^\r\n\p{L}\p{N}]
//!
//! H+|P?A*B+C?|P?A+B*C?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+
//! ```
//!
//! The alternatives are tried in this order, each with P before without. `A*B+` gives back what `A*` took too much: if
//! no character of B follows the longest run of A, it ends after the last character of that run that is in B too.

use std::sync::LazyLock;

use crate::classic::{
    contraction, is_mark, mark_piece, marks, number, ones, white_piece, white_space,
};
use crate::simd::{self, Window};
use crate::unicode::{CODE_POINTS, LETTER, NEWLINE, NUMBER, SPACE, Table, flat_classes};
use crate::unicode_cases::CASES;

const CLASS: u8 = 7;
const UPPER: u8 = 1 << 3;
const LOWER: u8 = 2 << 3;
const HAN: u8 = 4 << 3;
const DIGITS: usize = 3;

static TABLE: LazyLock<[Table; 2]> = LazyLock::new(|| {
    let classes = flat_classes();
    let mut flat = classes.clone();
    for (index, &(start, sets)) in CASES.iter().enumerate() {
        let end = CASES
            .get(index + 1)
            .map_or(CODE_POINTS, |next| next.0 as usize);
        for value in &mut flat[start as usize..end] {
            *value |= sets << 3;
        }
    }
    [Table::compress(&flat), Table::compress(&classes)]
});

/// The scanner.
#[derive(Debug)]
pub(crate) struct Cased {
    /// Classes and sets.
    table: &'static Table,
    /// Classes alone.
    classes: &'static Table,
}

impl Cased {
    pub(crate) fn new() -> Self {
        let [table, classes] = &*TABLE;
        Self { table, classes }
    }

    /// The end of the piece that starts at `at`; `window` holds the bytes from there on, zeros behind the end.
    #[inline(always)]
    pub(crate) fn next(&self, text: &[u8], at: usize, window: &Window) -> usize {
        let first = window[0];
        let kinds = simd::letters(window);
        let skip = usize::from(kinds.letters & 1 == 0);
        match first {
            0x80.. => return self.next_slow(text, at),
            b'0'..=b'9' => {
                let count = ones(simd::digits(window)).min(DIGITS);
                if count < DIGITS && kinds.wide >> count & 1 != 0 {
                    return number(self.classes, text, at + 1, DIGITS);
                }
                return at + count;
            }
            b'\r' | b'\n' => return white_piece(self.classes, text, at, window),
            _ => {}
        }
        let count = skip + ones(kinds.letters >> skip);
        if count > skip {
            let upper = simd::upper(window) >> skip;
            let capitals = ones(upper);
            let small = ones((kinds.letters >> skip & !upper) >> capitals);
            let end = skip + capitals + small;
            // What follows settles the piece when it is ASCII and no apostrophe.
            if end < 16 && kinds.wide >> end & 1 == 0 && window[end] != b'\'' {
                return at + end;
            }
            return self.next_slow(text, at);
        }
        if kinds.wide & 2 != 0 {
            return self.next_slow(text, at);
        }
        let white = simd::white(window);
        if white & 1 == 0 {
            return mark_piece(self.classes, text, at, window, 0);
        }
        let following = window[1];
        let mark_follows = white & 2 == 0 && !following.is_ascii_digit() && at + 1 < text.len();
        if first == b' ' && mark_follows {
            return mark_piece(self.classes, text, at, window, 1);
        }
        white_piece(self.classes, text, at, window)
    }

    #[inline]
    fn sets(&self, text: &[u8], at: usize) -> (u8, usize) {
        if at < text.len() {
            self.table.at(text, at)
        } else {
            (0, 0)
        }
    }

    /// The end of the run of characters from `at` that are in a set.
    fn run(&self, text: &[u8], mut at: usize, set: u8) -> usize {
        loop {
            let (sets, length) = self.sets(text, at);
            if sets & set == 0 {
                return at;
            }
            at += length;
        }
    }

    /// `A*B+`
    fn capitals_then_small(&self, text: &[u8], start: usize) -> Option<usize> {
        let mut at = start;
        let mut last_of_both = None;
        loop {
            let (sets, length) = self.sets(text, at);
            if sets & UPPER == 0 {
                break;
            }
            at += length;
            if sets & LOWER != 0 {
                last_of_both = Some(at);
            }
        }
        let end = self.run(text, at, LOWER);
        if end > at { Some(end) } else { last_of_both }
    }

    /// `A+B*`
    fn capitals(&self, text: &[u8], start: usize) -> Option<usize> {
        let at = self.run(text, start, UPPER);
        (at > start).then(|| self.run(text, at, LOWER))
    }

    /// As `next`, character by character.
    #[inline(never)]
    fn next_slow(&self, text: &[u8], start: usize) -> usize {
        let (value, length) = self.table.at(text, start);
        if value & HAN != 0 {
            return self.run(text, start, HAN);
        }
        let class = value & CLASS;
        let at = start + length;
        let may_lead = !matches!(class, LETTER | NUMBER | NEWLINE);
        let behind = may_lead.then_some(at);
        let word = behind
            .and_then(|at| self.capitals_then_small(text, at))
            .or_else(|| self.capitals_then_small(text, start))
            .or_else(|| behind.and_then(|at| self.capitals(text, at)))
            .or_else(|| self.capitals(text, start));
        if let Some(end) = word {
            return contraction(text, end);
        }
        match class {
            NUMBER => number(self.classes, text, at, DIGITS),
            SPACE if text[start] == b' ' && at < text.len() => {
                let (following, _) = self.classes.at(text, at);
                if is_mark(following) {
                    marks(self.classes, text, at)
                } else {
                    white_space(self.classes, text, start)
                }
            }
            SPACE | NEWLINE => white_space(self.classes, text, start),
            _ => marks(self.classes, text, start),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::modern::tests::split_with;
    use proptest::prelude::*;

    fn split(text: &str) -> Vec<&str> {
        let cased = Cased::new();
        let fast = split_with(text, |text, at| {
            cased.next(text, at, &simd::last_window(text, at))
        });
        assert_eq!(fast, split_with(text, |text, at| cased.next_slow(text, at)));
        fast
    }

    #[test]
    fn a_piece_ends_where_capitals_begin_again() {
        assert_eq!(
            split("camelCaseHTTPServer"),
            ["camel", "Case", "HTTPServer"]
        );
        assert_eq!(split("IT'S it's (Ab"), ["IT'S", " it's", " (", "Ab"]);
    }

    #[test]
    fn han_stands_alone() {
        assert_eq!(split("a\u{4e2d}\u{6587}b"), ["a", "\u{4e2d}\u{6587}", "b"]);
        assert_eq!(split(" \u{4e2d}\u{3042}"), [" ", "\u{4e2d}", "\u{3042}"]);
    }

    #[test]
    fn modifiers_are_given_back() {
        assert_eq!(split("\u{2b0}AB"), ["\u{2b0}", "AB"]);
        assert_eq!(split("A\u{2b0}b"), ["A\u{2b0}b"]);
    }

    proptest! {
        #[test]
        fn windows_and_characters_agree(
            text in "([a-zA-Z]{1,20}| {1,18}|[0-9]{1,4}|[!-/:-@]{1,17}|[\r\n]{1,17}|'[a-zA-Z]|[\u{e9}\u{c9}\u{2b0}\u{1c5}\u{660}\u{3000}\u{4e2d}\u{309b}\u{300}\u{85}\u{ff01}\0\t])*",
        ) {
            prop_assert_eq!(split(&text).concat(), text);
        }
    }
}
