//! In which order the pages of a new result are touched.

/// The size of a large page. Where the system has none of it, touching costs nothing.
const PAGE: usize = 1 << 21;

/// Touches large pages at their last bytes first.
///
/// Linux clears a new page towards the place that is touched. On a Zen 4, memory that is cleared upwards came at 28 GB/s,
/// downwards, as when a result is written from its start, at 10. Pages are opened shortly before they are written.
#[derive(Debug, Default)]
pub(crate) struct Pages {
    /// Elements before this one lie in pages that are open.
    opened: usize,
}

impl Pages {
    /// Opens the pages of the elements before `end`. What they hold is to be overwritten.
    #[inline(always)]
    pub(crate) fn open<T: Copy + Default>(&mut self, out: &mut [T], end: usize) {
        while self.opened < end {
            let address = out[self.opened..].as_ptr().addr();
            let rest = (address | (PAGE - 1)) - address;
            let last = (self.opened + rest / size_of::<T>()).min(out.len() - 1);
            out[last] = T::default();
            self.opened = last + 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_last_element_of_each_page_is_touched() {
        let mut out = vec![1_u32; 3 * PAGE / 4 + 5];
        let mut pages = Pages::default();
        for end in (0..out.len()).step_by(7000).chain([out.len()]) {
            pages.open(&mut out, end);
            assert!(pages.opened >= end);
        }
        let touched: Vec<usize> = (0..out.len()).filter(|&at| out[at] == 0).collect();
        let ends: Vec<usize> = (0..out.len())
            .filter(|&at| {
                let next = (&raw const out[at]).addr() + size_of::<u32>();
                at == out.len() - 1 || next.is_multiple_of(PAGE)
            })
            .collect();
        assert_eq!(touched, ends);
        assert!(touched.len() >= 3);
    }

    #[test]
    fn nothing_is_touched_in_an_empty_result() {
        Pages::default().open::<u32>(&mut [], 0);
    }
}
