//! The pre-tokenizers of the older families: splits applied one inside the other, each with a scanner of its own.
//!
//! DeepSeek LLM, V2 and V2-Lite: newlines; letters; punctuation; white space at the end; Han and Hangul; digits.
//! DeepSeek Coder: newlines; letters; punctuation; Han and Hangul; digits.
//!
//! The sets overlap (the punctuation of V2 holds the ASCII letters, so "café" becomes "caf" and "é"), which is why the
//! stages stay stages: the result of one is what the next splits.

use crate::unicode::{
    CODE_POINTS, LETTER, NEWLINE, NUMBER, PUNCTUATION, SPACE, Table, flat_classes,
};

/// `\s`
const WHITE: u8 = 1;
/// `[\r\n]`
const LINE_END: u8 = 2;
/// The set of the first run: letters.
const FIRST: u8 = 4;
/// The set of the second run: punctuation.
const SECOND: u8 = 8;
/// The set of the third run: Han, Hangul and all that lies between.
const THIRD: u8 = 16;
/// What the digit stage isolates.
const DIGIT: u8 = 32;

/// Digits of scripts younger than the pattern engine's Unicode version: the digit stage has its own, newer table.
const YOUNG_DIGITS: [std::ops::RangeInclusive<usize>; 2] =
    [0x1_1de0..=0x1_1de9, 0x1_6ff4..=0x1_6ff6];

/// A set of characters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Set {
    /// `\p{L}`
    Letters,
    /// `\p{P}`
    Punctuation,
    /// `[a-zµ...]`: inclusive ranges of code points.
    Ranges(Vec<(u32, u32)>),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// `\s?[set]+`
    SpacedRun(u8),
    /// `\s+$`
    TrailingSpace,
    /// `[set]+`
    Run(u8),
    /// One digit at a time.
    Digits,
}

/// The scanner of one tokenizer file.
#[derive(Debug)]
pub(crate) struct Staged {
    table: Table,
    stages: Vec<Stage>,
}

impl Staged {
    /// A scanner for `[\r\n]`, `\s?letters+`, `\s?punctuation+`, `\s+$` if `trailing_space`, `han+`, digits.
    pub(crate) fn new(letters: &Set, punctuation: &Set, trailing_space: bool, han: &Set) -> Self {
        let classes = flat_classes();
        let mut flat: Vec<u8> = classes
            .iter()
            .map(|&class| match class {
                SPACE => WHITE,
                NEWLINE => WHITE | LINE_END,
                NUMBER => DIGIT,
                _ => 0,
            })
            .collect();
        for range in YOUNG_DIGITS {
            for value in &mut flat[range] {
                *value |= DIGIT;
            }
        }
        for (set, flag) in [(letters, FIRST), (punctuation, SECOND), (han, THIRD)] {
            let mut add = |wanted: u8| {
                for (value, &class) in flat.iter_mut().zip(&classes) {
                    *value |= if class == wanted { flag } else { 0 };
                }
            };
            match set {
                Set::Letters => add(LETTER),
                Set::Punctuation => add(PUNCTUATION),
                Set::Ranges(ranges) => {
                    for &(first, last) in ranges {
                        for value in
                            &mut flat[first as usize..=(last as usize).min(CODE_POINTS - 1)]
                        {
                            *value |= flag;
                        }
                    }
                }
            }
        }
        let mut stages = vec![Stage::SpacedRun(FIRST), Stage::SpacedRun(SECOND)];
        if trailing_space {
            stages.push(Stage::TrailingSpace);
        }
        stages.extend([Stage::Run(THIRD), Stage::Digits]);
        Self {
            table: Table::compress(&flat),
            stages,
        }
    }

    /// Emits the pieces of the line that starts at `start` (a newline character is a line of its own) and returns
    /// its end. `text` is UTF-8; `start`, before its end, starts a line.
    pub(crate) fn next_line(
        &self,
        text: &[u8],
        start: usize,
        emit: &mut impl FnMut(usize, usize),
    ) -> usize {
        let is_line_end = |byte: u8| byte == b'\r' || byte == b'\n';
        let end = if is_line_end(text[start]) {
            start + 1
        } else {
            let rest = &text[start..];
            start
                + rest
                    .iter()
                    .position(|&byte| is_line_end(byte))
                    .unwrap_or(rest.len())
        };
        self.split(&self.stages, &text[..end], start, emit);
        end
    }

    /// Splits `text[start..]`.
    fn split(
        &self,
        stages: &[Stage],
        text: &[u8],
        start: usize,
        emit: &mut impl FnMut(usize, usize),
    ) {
        let Some((&stage, inner)) = stages.split_first() else {
            emit(start, text.len());
            return;
        };
        let mut gap = start;
        let mut at = start;
        while at < text.len() {
            let (flags, length) = self.table.at(text, at);
            let end = match stage {
                Stage::SpacedRun(set) => self.spaced_run(text, at, set),
                Stage::Run(set) => self.run(text, at, set),
                Stage::Digits => at + if flags & DIGIT == 0 { 0 } else { length },
                // Cheap to ask at each character, for the run is skipped when it ends too early.
                Stage::TrailingSpace => {
                    let end = self.run(text, at, WHITE);
                    if end > at && end < text.len() {
                        at = end;
                        continue;
                    }
                    end
                }
            };
            if end == at {
                at += length;
                continue;
            }
            if gap < at {
                self.split(inner, &text[..at], gap, emit);
            }
            self.split(inner, &text[..end], at, emit);
            gap = end;
            at = end;
        }
        if gap < text.len() {
            self.split(inner, text, gap, emit);
        }
    }

    fn run(&self, text: &[u8], mut at: usize, set: u8) -> usize {
        while at < text.len() {
            let (flags, length) = self.table.at(text, at);
            if flags & set == 0 {
                break;
            }
            at += length;
        }
        at
    }

    fn spaced_run(&self, text: &[u8], at: usize, set: u8) -> usize {
        let (flags, length) = self.table.at(text, at);
        if flags & WHITE != 0 {
            let end = self.run(text, at + length, set);
            if end > at + length {
                return end;
            }
        }
        self.run(text, at, set)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn split(staged: &Staged, text: &str) -> Vec<String> {
        let mut pieces = Vec::new();
        let mut start = 0;
        while start < text.len() {
            start = staged.next_line(text.as_bytes(), start, &mut |from, to| {
                pieces.push(text[from..to].to_owned());
            });
        }
        pieces
    }

    fn coder() -> Staged {
        Staged::new(
            &Set::Letters,
            &Set::Punctuation,
            false,
            &Set::Ranges(vec![(0x4e00, 0x9fa5)]),
        )
    }

    #[test]
    fn newlines_and_digits_stand_alone() {
        assert_eq!(
            split(&coder(), "a\r\n12 b"),
            ["a", "\r", "\n", "1", "2", " b"]
        );
    }

    #[test]
    fn one_space_goes_with_letters_and_punctuation() {
        assert_eq!(split(&coder(), "x  y ("), ["x", " ", " y", " ("]);
        assert_eq!(split(&coder(), " \u{4e2d}"), [" ", "\u{4e2d}"]);
    }

    #[test]
    fn overlapping_sets_split_again() {
        let letters = Set::Ranges(vec![(0x61, 0x7a), (0xe9, 0xe9)]);
        let punctuation = Set::Ranges(vec![(0x3a, 0x7e)]);
        let staged = Staged::new(&letters, &punctuation, true, &Set::Ranges(vec![]));
        assert_eq!(split(&staged, " caf\u{e9}  "), [" caf", "\u{e9}", "  "]);
        assert_eq!(split(&staged, "a  1"), ["a", "  ", "1"]);
    }
}
