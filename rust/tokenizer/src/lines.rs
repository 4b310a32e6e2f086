//! Lines of memory: eight words each, where the processor's own lines begin.

use crate::simd;

/// Words of a line.
pub(crate) const LINE: usize = 8;
/// Tables of this size and more are laid out for the system's large pages.
const LARGE_PAGE: usize = 2 << 20;

/// A power of two of lines, zero at first.
#[derive(Debug)]
pub(crate) struct Lines {
    /// All lines that there may ever be, with room to begin at a multiple of the alignment: memory given back while
    /// others ask for some is memory that an allocator keeps. What is not used is never touched, and so takes none.
    words: Vec<u64>,
    start: usize,
    mask: usize,
}

impl Lines {
    /// `count` lines and room for `most`, both powers of two.
    pub(crate) fn new(count: usize, most: usize) -> Self {
        debug_assert!(count.is_power_of_two() && most.is_power_of_two() && count <= most);
        let bytes = most * LINE * 8;
        let align = if bytes >= LARGE_PAGE {
            LARGE_PAGE
        } else {
            LINE * 8
        };
        // Zeroed memory comes from the system as it is: nothing is written here.
        let words = vec![0_u64; most * LINE + align / 8];
        let start = (words.as_ptr() as usize).wrapping_neg() % align / 8;
        let mut lines = Self {
            words,
            start,
            mask: count - 1,
        };
        lines.advise(0);
        lines
    }

    /// As many lines again, all zero. There has to be room.
    pub(crate) fn double(&mut self) {
        let before = self.len();
        self.mask = 2 * before - 1;
        debug_assert!(self.place(self.mask) + LINE <= self.words.len());
        self.advise(before);
    }

    /// Large pages for the lines from `first` on.
    fn advise(&mut self, first: usize) {
        let (first, end) = (self.place(first), self.place(self.mask) + LINE);
        if self.len() * LINE * 8 >= LARGE_PAGE {
            simd::advise_large_pages(&mut self.words[first..end]);
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
            let mut lines = Lines::new(count, 2 * count);
            assert_eq!(lines.len(), count);
            for at in 0..count {
                assert_eq!(std::ptr::from_ref(lines.get(at)) as usize % 64, 0);
                assert_eq!(*lines.get(at), [0; LINE]);
                lines.set(at, [at as u64; LINE]);
            }
            for at in 0..count {
                assert_eq!(*lines.get(at + count), [at as u64; LINE]);
            }
            lines.double();
            assert_eq!(lines.len(), 2 * count);
            for at in 0..count {
                assert_eq!(*lines.get(at), [at as u64; LINE]);
                assert_eq!(*lines.get(at + count), [0; LINE]);
            }
        }
    }
}
