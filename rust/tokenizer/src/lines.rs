//! Lines of memory: eight words each, where the processor's own lines begin.

use crate::simd;

/// Words of a line.
pub(crate) const LINE: usize = 8;
/// Tables of this size and more are laid out for the system's large pages.
const LARGE_PAGE: usize = 2 << 20;

/// A power of two of lines, zero at first.
#[derive(Debug)]
pub(crate) struct Lines {
    /// With room to begin at a multiple of the alignment. What is not used is never touched, and so takes no memory.
    words: Vec<u64>,
    start: usize,
    mask: usize,
}

impl Lines {
    /// `count` lines, a power of two.
    pub(crate) fn new(count: usize) -> Self {
        debug_assert!(count.is_power_of_two());
        let bytes = count * LINE * 8;
        let align = if bytes >= LARGE_PAGE {
            LARGE_PAGE
        } else {
            LINE * 8
        };
        // Zeroed memory comes from the system as it is: nothing is written here.
        let mut words = vec![0_u64; count * LINE + align / 8];
        let start = (words.as_ptr() as usize).wrapping_neg() % align / 8;
        if bytes >= LARGE_PAGE {
            simd::advise_large_pages(&mut words[start..start + count * LINE]);
        }
        Self {
            words,
            start,
            mask: count - 1,
        }
    }

    /// Number of lines.
    pub(crate) fn len(&self) -> usize {
        self.mask + 1
    }

    /// All lines; the low bits of a number say which one is its.
    #[inline(always)]
    pub(crate) fn all(&self) -> &[[u64; LINE]] {
        let (lines, _) = self.words[self.start..].as_chunks();
        &lines[..=self.mask]
    }

    #[inline(always)]
    fn place(&self, at: usize) -> usize {
        self.start + (at & self.mask) * LINE
    }

    /// The line of a number, of which the low bits count.
    #[inline(always)]
    pub(crate) fn get(&self, at: usize) -> &[u64; LINE] {
        const ZERO: [u64; LINE] = [0; LINE];
        self.words[self.place(at)..].first_chunk().unwrap_or(&ZERO)
    }

    /// Writes the line of a number.
    #[inline(always)]
    pub(crate) fn set(&mut self, at: usize, line: [u64; LINE]) {
        let place = self.place(at);
        if let Some(words) = self.words[place..].first_chunk_mut() {
            *words = line;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_begin_where_the_processors_do_and_keep_what_is_written() {
        for count in [1, 4, 1 << 15] {
            let mut lines = Lines::new(count);
            assert_eq!(lines.len(), count);
            for at in 0..count {
                assert_eq!(std::ptr::from_ref(lines.get(at)) as usize % 64, 0);
                assert_eq!(*lines.get(at), [0; LINE]);
                lines.set(at, [at as u64; LINE]);
            }
            for at in 0..count {
                assert_eq!(*lines.get(at + count), [at as u64; LINE]);
            }
        }
    }
}
