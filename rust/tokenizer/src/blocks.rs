//! The pieces of DeepSeek V3's pre-tokenizer in a block of ASCII text, all at once: where pieces start is computed from
//! one bit for each character, without a branch for each piece.
//!
//! A block begins where a piece does, so nothing before it matters. With `<` for "the character before is", `>` for "the
//! character behind is", and white space as newlines and blanks, a piece starts at
//!
//! ```text
//! a letter        < no letter, < no blank, < no mark that takes the letters after it (one that starts a piece)
//! a digit         < no digit, and each third of a run
//! a mark          < no mark, < no space
//! white space     < no white space, unless it is a newline < mark
//! a blank         < newline; or > neither white space nor digit: the last of a run goes with what follows, or alone
//! ```
//!
//! Three things are left to the scanner that goes character by character: controls, a blank run between newlines (which
//! belongs to the newlines), and pieces that reach to the end of the block.

use crate::simd::{BLOCK, Masks};

/// Blocks with fewer characters before the first that is not ASCII are not worth the work.
const LEAST: u32 = 24;

/// Where pieces start, one bit for each character of a block whose first starts one. What lies between two starts is a
/// piece; the last start is where to go on. At most one bit is set where nothing is certain.
#[inline(always)]
pub(crate) fn starts(masks: &Masks) -> u64 {
    let Masks {
        letters,
        digits,
        newlines,
        spaces,
        blanks,
        marks,
        ..
    } = *masks;
    let white = newlines | blanks;
    let known = letters | digits | white | marks;
    // From the first character of another kind on, nothing is seen.
    let length = (!known).trailing_zeros().min(BLOCK as u32 - 1);
    if length < LEAST {
        return 0;
    }
    let after = |mask: u64| mask << 1;
    let before = |mask: u64| mask >> 1;
    let mark_starts = marks & !after(marks) & !after(spaces);
    let takes_letters = mark_starts & before(letters);
    let letter_starts = letters & !after(letters | blanks | takes_letters);
    let mut digit_starts = digits & !after(digits);
    let inside = digits & after(digits) & (digits << 2);
    let mut thirds = digit_starts;
    loop {
        thirds = thirds << 3 & inside;
        if thirds == 0 {
            break;
        }
        digit_starts |= thirds;
    }
    let white_starts = white & !after(white) & !(newlines & after(marks));
    let behind_newline = blanks & after(newlines);
    let last_blank = blanks & before(!(white | digits));
    // Adding a run's first bit moves it behind the run: a newline there means that the run belongs to the newlines.
    let behind_runs = blanks.wrapping_add(behind_newline) & !blanks;
    if behind_runs & newlines != 0 {
        return 0;
    }
    let all =
        1 | letter_starts | digit_starts | mark_starts | white_starts | behind_newline | last_blank;
    // The character at `length` is seen as what follows at most; a white run that reaches it may go on, so only its
    // beginning is certain.
    let seen = (1_u64 << length) - 1;
    let reaching = (white | !seen).leading_ones();
    let certain = if reaching > BLOCK as u32 - length {
        (1_u64 << (BLOCK as u32 - reaching)) | ((1_u64 << (BLOCK as u32 - reaching)) - 1)
    } else {
        seen
    };
    all & certain
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::modern::{Modern, tests::split_with};
    use crate::simd::{classify, last_window};
    use proptest::prelude::*;

    /// Pieces by blocks, and by the scanner where a block gives none.
    fn by_blocks(text: &str) -> Vec<&str> {
        let modern = Modern::new();
        let bytes = text.as_bytes();
        let (mut at, mut pieces) = (0, Vec::new());
        while at < bytes.len() {
            let bits = bytes[at..]
                .first_chunk()
                .map_or(0, |block| starts(&classify(block)));
            let mut rest = bits & bits.wrapping_sub(1);
            if bits & 1 == 0 || rest == 0 {
                let end = modern.next(bytes, at, &last_window(bytes, at));
                pieces.push(&text[at..end]);
                at = end;
                continue;
            }
            let base = at;
            while rest != 0 {
                let end = base + rest.trailing_zeros() as usize;
                pieces.push(&text[at..end]);
                at = end;
                rest &= rest - 1;
            }
        }
        pieces
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(4000))]
        #[test]
        fn blocks_and_the_scanner_agree(
            text in "([a-zA-Z]{1,9}| {1,3}|[0-9]{1,8}|[!-/:-@]{1,3}|[\r\n]{1,2}|\t| |\n|a|b {1,70}|[\u{e9}\u{4e2d}\0\u{0b}]){0,120}",
        ) {
            let modern = Modern::new();
            let expected = split_with(&text, |text, at| modern.next(text, at, &last_window(text, at)));
            prop_assert_eq!(by_blocks(&text), expected);
        }

        #[test]
        fn every_short_combination_agrees(
            text in "[a1 \n\t(]{64,140}",
        ) {
            let modern = Modern::new();
            let expected = split_with(&text, |text, at| modern.next(text, at, &last_window(text, at)));
            prop_assert_eq!(by_blocks(&text), expected);
        }
    }
}
