//! The byte-level alphabet: the printable character that stands for each byte in a vocabulary file.

/// First of the characters that stand for bytes without a printable character of their own.
const STAND_INS: u32 = 0x100;

/// True when a byte is written as the character of the same number.
const fn is_printable(byte: u8) -> bool {
    matches!(byte, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff)
}

/// The bytes that need a stand-in, ascending: the n-th is written as U+0100 + n.
const fn unprintable() -> [u8; 68] {
    let mut list = [0; 68];
    let mut count = 0;
    let mut byte = 0;
    while byte < 256 {
        if !is_printable(byte as u8) {
            list[count] = byte as u8;
            count += 1;
        }
        byte += 1;
    }
    list
}

static UNPRINTABLE: [u8; 68] = unprintable();

/// The byte that a character of the alphabet stands for.
pub(crate) fn byte_of(character: char) -> Option<u8> {
    let point = character as u32;
    match u8::try_from(point) {
        Ok(byte) => is_printable(byte).then_some(byte),
        Err(_) => UNPRINTABLE.get((point - STAND_INS) as usize).copied(),
    }
}

/// The bytes that a token stands for; `None` when a character is not of the alphabet.
pub(crate) fn bytes_of(token: &str) -> Option<Vec<u8>> {
    token.chars().map(byte_of).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_byte_has_exactly_one_character() {
        let mut found: Vec<u8> = (0..=0x10_ffff)
            .filter_map(char::from_u32)
            .filter_map(byte_of)
            .collect();
        found.sort_unstable();
        assert_eq!(found, (0..=255).collect::<Vec<u8>>());
    }

    #[test]
    fn space_and_newline_have_their_known_characters() {
        assert_eq!(bytes_of("ĠaĊ"), Some(b" a\n".to_vec()));
        assert_eq!(bytes_of("a b"), None);
    }
}
