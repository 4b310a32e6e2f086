//! The part of msgpack that events need, each value in its shortest form.
//!
//! Source: the MessagePack specification, github.com/msgpack/msgpack/blob/master/spec.md.

/// Appends values to a byte string.
#[derive(Debug, Default)]
pub(crate) struct Writer {
    pub(crate) bytes: Vec<u8>,
}

impl Writer {
    pub(crate) fn nil(&mut self) {
        self.bytes.push(0xc0);
    }

    pub(crate) fn float(&mut self, value: f64) {
        self.bytes.push(0xcb);
        self.bytes.extend(value.to_be_bytes());
    }

    pub(crate) fn number(&mut self, value: u64) {
        if value < 0x80 {
            self.bytes.push(value as u8);
        } else {
            self.head(value, [0xcc, 0xcd, 0xce, 0xcf]);
        }
    }

    pub(crate) fn text(&mut self, text: &str) {
        if text.len() < 32 {
            self.bytes.push(0xa0 | text.len() as u8);
        } else {
            self.head(text.len() as u64, [0xd9, 0xda, 0xdb, 0xdb]);
        }
        self.bytes.extend(text.as_bytes());
    }

    pub(crate) fn binary(&mut self, bytes: &[u8]) {
        self.head(bytes.len() as u64, [0xc4, 0xc5, 0xc6, 0xc6]);
        self.bytes.extend(bytes);
    }

    /// Begins an array; its values follow.
    pub(crate) fn array(&mut self, len: usize) {
        if len < 16 {
            self.bytes.push(0x90 | len as u8);
        } else if let Ok(len) = u16::try_from(len) {
            // Arrays have no form with a length of one byte.
            self.bytes.push(0xdc);
            self.bytes.extend(len.to_be_bytes());
        } else {
            self.bytes.push(0xdd);
            self.bytes.extend((len as u32).to_be_bytes());
        }
    }

    /// Begins a map of at most 15 entries; they follow.
    pub(crate) fn map(&mut self, len: u8) {
        debug_assert!(len < 16, "a map of {len} entries");
        self.bytes.push(0x80 | len);
    }

    /// The key of a map's entry; its value follows.
    pub(crate) fn entry(&mut self, key: &str) -> &mut Self {
        self.text(key);
        self
    }

    /// A code for the narrowest of 1, 2, 4 and 8 bytes, and the value in so many.
    fn head(&mut self, value: u64, codes: [u8; 4]) {
        let bytes = value.to_be_bytes();
        let (code, width) = match value {
            0..0x100 => (codes[0], 1),
            0x100..0x1_0000 => (codes[1], 2),
            0x1_0000..0x1_0000_0000 => (codes[2], 4),
            _ => (codes[3], 8),
        };
        self.bytes.push(code);
        self.bytes.extend(&bytes[8 - width..]);
    }
}

#[cfg(test)]
mod tests {
    use super::Writer;

    fn written(write: impl FnOnce(&mut Writer)) -> Vec<u8> {
        let mut writer = Writer::default();
        write(&mut writer);
        writer.bytes
    }

    #[test]
    fn every_value_takes_its_shortest_form() {
        for (number, bytes) in [
            (0, vec![0]),
            (127, vec![127]),
            (128, vec![0xcc, 128]),
            (255, vec![0xcc, 255]),
            (256, vec![0xcd, 1, 0]),
            (65535, vec![0xcd, 255, 255]),
            (65536, vec![0xce, 0, 1, 0, 0]),
            (u32::MAX.into(), vec![0xce, 255, 255, 255, 255]),
            (1 << 32, vec![0xcf, 0, 0, 0, 1, 0, 0, 0, 0]),
        ] {
            assert_eq!(written(|out| out.number(number)), bytes);
        }
        assert_eq!(written(|out| out.array(15)), [0x9f]);
        assert_eq!(written(|out| out.array(16)), [0xdc, 0, 16]);
        assert_eq!(written(|out| out.array(65535)), [0xdc, 255, 255]);
        assert_eq!(written(|out| out.array(65536)), [0xdd, 0, 1, 0, 0]);
        assert_eq!(written(|out| out.text(&"a".repeat(31)))[0], 0xbf);
        assert_eq!(written(|out| out.text(&"a".repeat(32)))[..2], [0xd9, 32]);
        assert_eq!(written(|out| out.text(&"a".repeat(256)))[..3], [0xda, 1, 0]);
        assert_eq!(written(|out| out.binary(&[7; 2])), [0xc4, 2, 7, 7]);
        assert_eq!(written(|out| out.float(1.0))[..3], [0xcb, 0x3f, 0xf0]);
    }
}
