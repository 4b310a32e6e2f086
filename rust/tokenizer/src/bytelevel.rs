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

/// How a file spells bytes.
pub(crate) fn name_of(bytes: &[u8]) -> String {
    let character = |&byte: &u8| {
        if is_printable(byte) {
            char::from(byte)
        } else {
            let place = UNPRINTABLE.partition_point(|&other| other < byte) as u32;
            char::from_u32(STAND_INS + place).unwrap_or(char::REPLACEMENT_CHARACTER)
        }
    };
    bytes.iter().map(character).collect()
}

/// No byte.
const NOTHING: u16 = u16::MAX;

/// The byte of each character up to the last of the alphabet.
static BYTES: [u16; STAND_INS as usize + 68] = {
    let mut bytes = [NOTHING; STAND_INS as usize + 68];
    let mut byte = 0;
    while byte < 256 {
        if is_printable(byte as u8) {
            bytes[byte] = byte as u16;
        }
        byte += 1;
    }
    let mut place = 0;
    while place < 68 {
        bytes[STAND_INS as usize + place] = unprintable()[place] as u16;
        place += 1;
    }
    bytes
};

/// Replaces `out` by the bytes that a token's name, which is UTF-8, stands for; false when a character is not of the
/// alphabet.
pub(crate) fn spell(name: &[u8], out: &mut Vec<u8>) -> bool {
    out.clear();
    let mut rest = name.iter();
    while let Some(&first) = rest.next() {
        let point = match first {
            0..0x80 => first as usize,
            // All of the alphabet beyond ASCII has two bytes.
            0xc2..=0xc5 => match rest.next() {
                Some(&second) => (first as usize & 0x1f) << 6 | second as usize & 0x3f,
                None => return false,
            },
            _ => return false,
        };
        match BYTES.get(point) {
            Some(&byte) if byte != NOTHING => out.push(byte as u8),
            _ => return false,
        }
    }
    true
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
    fn spelling_says_what_the_characters_say() {
        let mut out = Vec::new();
        for character in (0..=0x10_ffff).filter_map(char::from_u32) {
            let name = format!("a{character}");
            let expected = bytes_of(&name);
            let spelled = spell(name.as_bytes(), &mut out);
            assert_eq!(spelled.then(|| out.clone()), expected, "{character:?}");
        }
    }

    #[test]
    fn names_spell_their_bytes() {
        let all: Vec<u8> = (0..=255).collect();
        assert_eq!(bytes_of(&name_of(&all)), Some(all));
    }

    #[test]
    fn space_and_newline_have_their_known_characters() {
        assert_eq!(bytes_of("ĠaĊ"), Some(b" a\n".to_vec()));
        assert_eq!(bytes_of("a b"), None);
    }
}
