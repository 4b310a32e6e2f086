//! Character classes in constant time: code point to one byte, through a table of 256-entry blocks.

use std::collections::HashMap;
use std::sync::LazyLock;

use crate::unicode_ranges::RUNS;

/// In none of the classes below: controls, format characters, unassigned code points.
pub(crate) const OTHER: u8 = 0;
/// `\p{L}`
pub(crate) const LETTER: u8 = 1;
/// `\p{M}`
pub(crate) const MARK: u8 = 2;
/// `\p{N}`
pub(crate) const NUMBER: u8 = 3;
/// `\p{P}`
pub(crate) const PUNCTUATION: u8 = 4;
/// `\p{S}`
pub(crate) const SYMBOL: u8 = 5;
/// `\s` without `\r` and `\n`
pub(crate) const SPACE: u8 = 6;
/// `[\r\n]`
pub(crate) const NEWLINE: u8 = 7;

/// Code points that are looked up directly.
const LOW: usize = 0x1_0000;
/// Number of code points, surrogates included.
pub(crate) const CODE_POINTS: usize = 0x11_0000;

/// One byte for each code point.
#[derive(Debug)]
pub(crate) struct Table {
    ascii: [u8; 128],
    /// Below U+10000, where most text is, one read is enough.
    low: Vec<u8>,
    block_of: Vec<u16>,
    blocks: Vec<[u8; 256]>,
}

impl Table {
    /// Compresses `flat`, which holds one byte for each code point, by sharing equal blocks.
    pub(crate) fn compress(flat: &[u8]) -> Self {
        debug_assert_eq!(flat.len(), CODE_POINTS);
        let mut seen: HashMap<[u8; 256], u16> = HashMap::new();
        let mut blocks = Vec::new();
        let (chunks, _) = flat.as_chunks::<256>();
        let block_of = chunks
            .iter()
            .map(|chunk| {
                *seen.entry(*chunk).or_insert_with(|| {
                    blocks.push(*chunk);
                    (blocks.len() - 1) as u16
                })
            })
            .collect();
        let mut ascii = [0; 128];
        ascii.copy_from_slice(&flat[..128]);
        Self {
            ascii,
            low: flat[..LOW].to_vec(),
            block_of,
            blocks,
        }
    }

    /// The byte of a code point.
    #[inline]
    pub(crate) fn get(&self, point: u32) -> u8 {
        match self.low.get(point as usize) {
            Some(&value) => value,
            None => {
                self.blocks[self.block_of[(point >> 8) as usize] as usize][(point & 255) as usize]
            }
        }
    }

    /// The byte of the character that starts at `at`, and its length in UTF-8; `at` has to start a character.
    #[inline]
    pub(crate) fn at(&self, text: &[u8], at: usize) -> (u8, usize) {
        let first = text[at];
        if first < 0x80 {
            return (self.ascii[first as usize], 1);
        }
        let (point, length) = decode_multibyte(text, at);
        (self.get(point), length)
    }
}

/// The code point at `at` and its length; the text is UTF-8 and the character is not ASCII.
#[inline]
pub(crate) fn decode_multibyte(text: &[u8], at: usize) -> (u32, usize) {
    let tail = |offset: usize| u32::from(text[at + offset] & 0x3f);
    let first = u32::from(text[at]);
    if first < 0xe0 {
        ((first & 0x1f) << 6 | tail(1), 2)
    } else if first < 0xf0 {
        ((first & 0x0f) << 12 | tail(1) << 6 | tail(2), 3)
    } else {
        (
            (first & 0x07) << 18 | tail(1) << 12 | tail(2) << 6 | tail(3),
            4,
        )
    }
}

/// The class of every code point, one byte each.
pub(crate) fn flat_classes() -> Vec<u8> {
    let mut flat = vec![OTHER; CODE_POINTS];
    for (index, &(start, class)) in RUNS.iter().enumerate() {
        let end = RUNS
            .get(index + 1)
            .map_or(CODE_POINTS, |next| next.0 as usize);
        flat[start as usize..end].fill(class);
    }
    flat
}

/// True for `\s`.
pub(crate) fn is_space(character: char) -> bool {
    static CLASSES: LazyLock<Table> = LazyLock::new(|| Table::compress(&flat_classes()));
    matches!(CLASSES.get(character as u32), SPACE | NEWLINE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn compressing_keeps_every_code_point() {
        let flat = flat_classes();
        let table = Table::compress(&flat);
        for (point, &value) in flat.iter().enumerate() {
            assert_eq!(table.get(point as u32), value, "U+{point:04X}");
        }
    }

    #[test]
    fn characters_are_read_at_their_utf8_length() {
        let flat: Vec<u8> = (0..CODE_POINTS).map(|point| (point % 251) as u8).collect();
        let table = Table::compress(&flat);
        for point in (0..CODE_POINTS as u32).filter_map(char::from_u32) {
            let mut buffer = [0; 4];
            let text = point.encode_utf8(&mut buffer).as_bytes();
            assert_eq!(table.at(text, 0), ((point as u32 % 251) as u8, text.len()));
        }
    }

    #[test]
    fn white_space_is_what_the_standard_library_says() {
        for character in (0..CODE_POINTS as u32).filter_map(char::from_u32) {
            assert_eq!(
                is_space(character),
                character.is_whitespace(),
                "{character:?}"
            );
        }
    }
}
