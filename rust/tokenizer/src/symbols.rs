//! The symbols that merging starts with: a token for each byte, or for a whole character where that is safe.
//!
//! Starting with the token of a character skips the merges inside it. That gives the same result when nothing can
//! merge across the character's ends before those merges are through, which is proved once for each character, from
//! the list of merges alone.

use crate::bpe;
use crate::merges::{Merges, NONE};
use crate::pieces::Strings;
use crate::unicode::decode_multibyte;

/// Characters above these are spelled in bytes.
const POINTS: usize = 0x1_0000;

/// Tokens of bytes and characters.
#[derive(Debug)]
pub(crate) struct Symbols {
    /// Token of each single byte, or `NONE`.
    bytes: [u32; 256],
    /// Token of each character of more than one byte below U+10000 that may be started with, or `NONE`.
    characters: Vec<u32>,
    /// Ranks of the pairs of ASCII characters' tokens.
    ascii_ranks: Vec<u32>,
}

/// For a token that is a part of a character: the lowest ranks at which it merges with what lies outside.
#[derive(Debug, Clone, Copy)]
struct Leaving {
    /// As the left part, over the end of its character.
    right: u32,
    /// As the right part, over the beginning of its character.
    left: u32,
}

fn is_continuation(byte: u8) -> bool {
    byte & 0xc0 == 0x80
}

impl Symbols {
    /// `bytes` holds the token of each single byte; `strings` the bytes of each token.
    pub(crate) fn new(bytes: &[u32; 256], merges: &Merges, strings: &Strings) -> Self {
        let mut symbols = Self {
            bytes: *bytes,
            characters: vec![NONE; POINTS],
            ascii_ranks: (0..1 << 14)
                .map(|pair: usize| {
                    let (left, right) = (bytes[pair >> 7], bytes[pair & 127]);
                    if left == NONE || right == NONE {
                        NONE
                    } else {
                        merges.rank(left, right)
                    }
                })
                .collect(),
        };
        if !merges.are_unique() {
            return symbols;
        }
        let count = strings.len();
        let mut leaving = vec![
            Leaving {
                right: NONE,
                left: NONE
            };
            count
        ];
        for id in 0..count as u32 {
            let origin = merges.origin(id);
            if origin.rank == NONE {
                continue;
            }
            let Some(right) = strings.get(origin.right) else {
                continue;
            };
            // What begins with a continuation byte goes on inside a character.
            if right.first().is_some_and(|&byte| is_continuation(byte)) {
                continue;
            }
            let of_left = &mut leaving[origin.left as usize].right;
            *of_left = origin.rank.min(*of_left);
            let of_right = &mut leaving[origin.right as usize].left;
            *of_right = origin.rank.min(*of_right);
        }
        for id in 0..count as u32 {
            let Some(text) = strings
                .get(id)
                .filter(|bytes| (2..=3).contains(&bytes.len()))
            else {
                continue;
            };
            let Ok(text) = str::from_utf8(text) else {
                continue;
            };
            let mut characters = text.chars();
            if let (Some(character), None) = (characters.next(), characters.next())
                && symbols.is_safe(merges, &leaving, id, text.as_bytes())
            {
                symbols.characters[character as usize] = id;
            }
        }
        symbols
    }

    /// Whether merging always gets as far as `id` wherever its bytes, one character, occur.
    fn is_safe(&self, merges: &Merges, leaving: &[Leaving], id: u32, text: &[u8]) -> bool {
        // The token is what its own bytes become, merge by merge.
        let mut alone: Vec<u32> = text.iter().map(|&b| self.bytes[b as usize]).collect();
        if alone.contains(&NONE) {
            return false;
        }
        bpe::apply(
            merges,
            &mut alone,
            text.len(),
            bpe::NOT_AT_HAND,
            &mut || false,
        );
        if alone != [id] {
            return false;
        }
        // Each part on its left or right edge is merged on before it can merge with what lies outside.
        let mut part = id;
        loop {
            let origin = merges.origin(part);
            if origin.rank == NONE {
                break;
            }
            if leaving[origin.left as usize].left <= origin.rank {
                return false;
            }
            part = origin.left;
        }
        let mut part = id;
        loop {
            let origin = merges.origin(part);
            if origin.rank == NONE {
                return true;
            }
            if leaving[origin.right as usize].right <= origin.rank {
                return false;
            }
            part = origin.right;
        }
    }

    /// Token of a byte, or `NONE`.
    #[inline]
    pub(crate) fn byte(&self, byte: u8) -> u32 {
        self.bytes[byte as usize]
    }

    /// The rank of the characters at `at` and behind it, of text that is all ASCII.
    #[inline]
    pub(crate) fn ascii_rank(&self, text: &[u8], at: usize) -> u32 {
        let pair = usize::from(text[at] & 127) << 7 | usize::from(text[at + 1] & 127);
        self.ascii_ranks[pair]
    }

    /// Replaces `out` by the symbols of `piece`, which is UTF-8; the first byte without a token is an error.
    #[inline]
    pub(crate) fn start(&self, piece: &[u8], out: &mut Vec<u32>) -> Result<(), u8> {
        out.clear();
        let mut at = 0;
        while at < piece.len() {
            let first = piece[at];
            if first >= 0xc0 {
                let (point, length) = decode_multibyte(piece, at);
                let token = self.characters.get(point as usize).map_or(NONE, |&id| id);
                if token != NONE {
                    out.push(token);
                    at += length;
                    continue;
                }
            }
            let token = self.bytes[first as usize];
            if token == NONE {
                return Err(first);
            }
            out.push(token);
            at += 1;
        }
        Ok(())
    }
}
