//! The page cache: open, step, commit, fork, close.

use crate::pool::{PageCopy, PageId, Pool};
use crate::slots::{Handle, Sequence, Slots};
use crate::{Error, Result};

/// Deals out the pages of one latent cache. See the crate's documentation.
#[derive(Debug)]
pub struct PageCache {
    pub(crate) page_size: u64,
    pub(crate) pool: Pool,
    pub(crate) slots: Slots,
}

/// Counts of one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stats {
    /// Pages in all.
    pub num_pages: usize,
    /// Tokens in a page.
    pub page_size: u64,
    /// Pages that no sequence holds.
    pub free_pages: usize,
    /// Pages that at least one sequence holds.
    pub used_pages: usize,
    /// Pages that more than one sequence holds.
    pub shared_pages: usize,
    /// Open sequences.
    pub sequences: usize,
    /// Tokens with room, a shared one counted once per sequence.
    pub reserved_tokens: u64,
    /// Computed tokens, a shared one counted once per sequence.
    pub computed_tokens: u64,
}

impl PageCache {
    /// A cache of `num_pages` free pages of `page_size` tokens.
    ///
    /// # Errors
    /// [`Error::NumPages`] and [`Error::PageSize`] when out of range.
    pub fn new(num_pages: usize, page_size: usize) -> Result<Self> {
        if page_size == 0 || u32::try_from(page_size).is_err() {
            return Err(Error::PageSize { asked: page_size });
        }
        Ok(Self {
            page_size: page_size as u64,
            pool: Pool::new(num_pages)?,
            slots: Slots::default(),
        })
    }

    /// Opens a sequence that begins with `token_ids`; returns its handle and how many of its first tokens are cached.
    ///
    /// Sequences with different `salt` never share pages. Nothing is matched yet, so 0 tokens are cached.
    ///
    /// # Errors
    /// None at present; a prefix tree will refuse what it cannot hold.
    pub fn open(&mut self, token_ids: &[u32], salt: &[u8]) -> Result<(Handle, u64)> {
        let _ = (token_ids, salt);
        Ok((self.slots.insert(Sequence::default()), 0))
    }

    /// Reserves room for `counts[i]` more tokens of sequence `handles[i]` and writes row `i` of the block table.
    ///
    /// Row `i` is `tables[i * width..][..width]`; its first entries become the sequence's pages in order, the rest is
    /// left as it was. The returned copies must be made before anything is written to a page; none of them reads what
    /// another one writes.
    ///
    /// # Errors
    /// [`Error::OutOfPages`], [`Error::TableWidth`], [`Error::Lengths`], [`Error::StaleHandle`] or
    /// [`Error::RepeatedHandle`]; then nothing has changed, in the cache or in the table.
    pub fn step(
        &mut self,
        handles: &[Handle],
        counts: &[u64],
        tables: &mut [i32],
        width: usize,
    ) -> Result<Vec<PageCopy>> {
        check_length("counts", handles.len(), counts.len())?;
        let room = tables.len().checked_div(width).unwrap_or(usize::MAX);
        if room < handles.len() {
            return Err(Error::Lengths {
                what: "block_tables_out",
                expected: handles.len(),
                actual: room,
            });
        }
        let indices = self.slots.distinct(handles)?;
        let mut copied = Vec::new();
        if let Err(error) = self.plan(&indices, counts, width, &mut copied) {
            // Nothing but the counts of pages to be copied has changed.
            for &(_, page) in &copied {
                self.pool.share(page);
            }
            return Err(error);
        }
        let mut copies = Vec::with_capacity(copied.len());
        let mut next_copy = copied.into_iter().peekable();
        for (row, (&index, &count)) in indices.iter().zip(counts).enumerate() {
            let Some(sequence) = self.slots.entries[index].sequence.as_mut() else {
                continue;
            };
            if let Some((_, from)) = next_copy.next_if(|&(owner, _)| owner == row)
                && let (Some(last), Some(to)) = (sequence.pages.last_mut(), self.pool.allocate())
            {
                *last = to;
                copies.push(PageCopy { from, to });
            }
            sequence.reserved += count;
            let pages = sequence.reserved.div_ceil(self.page_size) as usize;
            while sequence.pages.len() < pages {
                let Some(page) = self.pool.allocate() else {
                    break;
                };
                sequence.pages.push(page);
            }
            for (entry, page) in tables[row * width..].iter_mut().zip(&sequence.pages) {
                *entry = page.0 as i32;
            }
        }
        Ok(copies)
    }

    /// Checks that the whole step fits. Lists `(row, page)` for every shared last page that must be copied and takes
    /// the row's hold off that page at once, so that of `n` holders that step together only `n - 1` copy.
    fn plan(
        &mut self,
        indices: &[usize],
        counts: &[u64],
        width: usize,
        copied: &mut Vec<(usize, PageId)>,
    ) -> Result<()> {
        let mut asked = 0_u64;
        for (row, (&index, &count)) in indices.iter().zip(counts).enumerate() {
            let Some(sequence) = &self.slots.entries[index].sequence else {
                continue;
            };
            // Saturation is harmless: no pool holds so many pages.
            let reserved = sequence.reserved.saturating_add(count);
            let pages = reserved.div_ceil(self.page_size);
            asked = asked.saturating_add(pages - sequence.pages.len() as u64);
            if count > 0
                && !sequence.reserved.is_multiple_of(self.page_size)
                && let Some(&last) = sequence.pages.last()
                && self.pool.is_shared(last)
            {
                self.pool.release(last);
                copied.push((row, last));
                asked = asked.saturating_add(1);
            }
            if pages > width as u64 && pages <= self.pool.num_pages() as u64 {
                return Err(Error::TableWidth {
                    pages: pages as usize,
                    width,
                });
            }
        }
        let free = self.pool.num_free() as u64;
        if asked > free {
            return Err(Error::OutOfPages { asked, free });
        }
        Ok(())
    }

    /// Says that the first `computed[i]` tokens of sequence `handles[i]` are computed, and with `publish[i]` that they
    /// may be shared with later requests.
    ///
    /// # Errors
    /// [`Error::Computed`], [`Error::Lengths`], [`Error::StaleHandle`] or [`Error::RepeatedHandle`]; then nothing has
    /// changed.
    pub fn commit(&mut self, handles: &[Handle], computed: &[u64], publish: &[bool]) -> Result<()> {
        check_length("computed", handles.len(), computed.len())?;
        check_length("publish", handles.len(), publish.len())?;
        let indices = self.slots.distinct(handles)?;
        for (&index, &given) in indices.iter().zip(computed) {
            if let Some(sequence) = &self.slots.entries[index].sequence {
                let (computed, reserved) = (sequence.computed, sequence.reserved);
                if !(computed..=reserved).contains(&given) {
                    return Err(Error::Computed {
                        given,
                        computed,
                        reserved,
                    });
                }
            }
        }
        for ((&index, &given), &publish) in indices.iter().zip(computed).zip(publish) {
            if let Some(sequence) = self.slots.entries[index].sequence.as_mut() {
                sequence.computed = given;
                if publish {
                    sequence.published = given;
                }
            }
        }
        Ok(())
    }

    /// Opens a second sequence with the same tokens, which shares every page until one of the two writes into it.
    ///
    /// # Errors
    /// [`Error::ForkUncomputed`] while reserved tokens are not computed (both would write them), or
    /// [`Error::StaleHandle`].
    pub fn fork(&mut self, handle: Handle) -> Result<Handle> {
        let index = self.slots.index(handle)?;
        let Some(sequence) = &self.slots.entries[index].sequence else {
            return Err(Error::StaleHandle { handle: handle.0 });
        };
        let (computed, reserved) = (sequence.computed, sequence.reserved);
        if computed != reserved {
            return Err(Error::ForkUncomputed { computed, reserved });
        }
        let copy = sequence.clone();
        for &page in &copy.pages {
            self.pool.share(page);
        }
        Ok(self.slots.insert(copy))
    }

    /// Closes a sequence; pages that nobody else holds become free.
    ///
    /// # Errors
    /// [`Error::StaleHandle`].
    pub fn close(&mut self, handle: Handle) -> Result<()> {
        let sequence = self.slots.remove(handle)?;
        // Last page first: the next sequence takes the pages in their old order.
        for &page in sequence.pages.iter().rev() {
            self.pool.release(page);
        }
        Ok(())
    }

    /// Pages in all.
    pub fn num_pages(&self) -> usize {
        self.pool.num_pages()
    }

    /// Tokens in a page.
    pub fn page_size(&self) -> u64 {
        self.page_size
    }

    /// Pages that no sequence holds.
    pub fn free_pages(&self) -> usize {
        self.pool.num_free()
    }

    /// Counts of this moment. Looks at every page: not for every token.
    pub fn stats(&self) -> Stats {
        let num_pages = self.pool.num_pages();
        Stats {
            num_pages,
            page_size: self.page_size,
            free_pages: self.pool.num_free(),
            used_pages: num_pages - self.pool.num_free(),
            shared_pages: self
                .pool
                .refcounts
                .iter()
                .filter(|&&count| count > 1)
                .count(),
            sequences: self.slots.iter().count(),
            reserved_tokens: self.slots.iter().map(|sequence| sequence.reserved).sum(),
            computed_tokens: self.slots.iter().map(|sequence| sequence.computed).sum(),
        }
    }
}

fn check_length(what: &'static str, expected: usize, actual: usize) -> Result<()> {
    if expected == actual {
        Ok(())
    } else {
        Err(Error::Lengths {
            what,
            expected,
            actual,
        })
    }
}
