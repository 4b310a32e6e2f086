//! The page cache: open, step, fork, close, clear.

use crate::events::{EventForm, Events};
use crate::hash::TokenHasher;
use crate::kept::CacheId;
use crate::pages::Pages;
use crate::pool::{PageCopy, PageId};
use crate::sequence::{Sequence, Sharing};
use crate::slots::{Handle, Slots};
use crate::{Error, Result};

/// Deals out the pages of one latent cache. See the crate's documentation.
#[derive(Debug)]
pub struct PageCache {
    pub(crate) id: CacheId,
    pub(crate) page_size: u64,
    pub(crate) reuse: bool,
    pub(crate) pages: Pages,
    pub(crate) slots: Slots,
    pub(crate) counters: Counters,
}

/// What was counted since the beginning.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) hits: u64,
    pub(crate) misses: u64,
}

/// What a cache does beyond dealing out pages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Options {
    /// Whether pages are ever shared between sequences, forks excepted; if not, what is published is ignored.
    pub reuse: bool,
    /// Whether events are kept for [`PageCache::take_events`].
    pub events: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            reuse: true,
            events: false,
        }
    }
}

/// How much of a new sequence may be answered from the cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// So many cached tokens at most. A model that needs the logits after a prompt must compute its last token.
    pub max_cached: u64,
    /// The number of cached tokens is a multiple of this (and of the page size).
    pub multiple_of: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_cached: u64::MAX,
            multiple_of: 1,
        }
    }
}

impl PageCache {
    /// A cache of `num_pages` free pages of `page_size` tokens.
    ///
    /// # Errors
    /// [`Error::NumPages`] and [`Error::PageSize`] when out of range.
    pub fn new(num_pages: usize, page_size: usize) -> Result<Self> {
        Self::with_options(num_pages, page_size, Options::default())
    }

    /// As [`PageCache::new`], with options.
    ///
    /// # Errors
    /// As [`PageCache::new`].
    pub fn with_options(num_pages: usize, page_size: usize, options: Options) -> Result<Self> {
        Self::with_hasher(num_pages, page_size, options, TokenHasher::new())
    }

    /// A cache whose hashes have only `bits` bits, so that they collide: for tests.
    ///
    /// # Errors
    /// As [`PageCache::new`].
    #[doc(hidden)]
    pub fn with_hash_bits(num_pages: usize, page_size: usize, bits: u32) -> Result<Self> {
        let hasher = TokenHasher::with_bits(bits);
        Self::with_hasher(num_pages, page_size, Options::default(), hasher)
    }

    fn with_hasher(
        num_pages: usize,
        page_size: usize,
        options: Options,
        hasher: TokenHasher,
    ) -> Result<Self> {
        if page_size == 0 || u32::try_from(page_size).is_err() {
            return Err(Error::PageSize { asked: page_size });
        }
        let mut pages = Pages::new(num_pages, page_size, hasher)?;
        pages.prefix.events = options.events.then(Events::default);
        Ok(Self {
            id: CacheId::new(),
            page_size: page_size as u64,
            reuse: options.reuse,
            pages,
            slots: Slots::default(),
            counters: Counters::default(),
        })
    }

    /// All events since the last call, as one batch in vLLM's wire form; none when nothing happened or events were not
    /// asked for.
    pub fn take_events(&mut self, form: &EventForm<'_>) -> Option<Vec<u8>> {
        self.pages
            .prefix
            .events
            .as_mut()?
            .take(form, self.page_size)
    }

    /// Opens a sequence that begins with `token_ids`; returns its handle and how many of its first tokens are cached.
    ///
    /// These are the longest run of whole pages, from the beginning, whose tokens were published under the same salt
    /// and which nothing has displaced since. The sequence holds them from now on; their tokens are reserved and
    /// computed.
    ///
    /// # Errors
    /// None.
    pub fn open(&mut self, token_ids: &[u32], salt: &[u8]) -> Result<(Handle, u64)> {
        self.open_within(token_ids, salt, Limits::default())
    }

    /// As [`PageCache::open`], with no more cached tokens than `limits` allow.
    ///
    /// # Errors
    /// [`Error::MultipleOf`] for a multiple of 0.
    pub fn open_within(
        &mut self,
        token_ids: &[u32],
        salt: &[u8],
        limits: Limits,
    ) -> Result<(Handle, u64)> {
        if limits.multiple_of == 0 {
            return Err(Error::MultipleOf);
        }
        let prefix = &mut self.pages.prefix;
        let salt = prefix.hold_salt(salt);
        let root = prefix.root(salt);
        let mut sequence = Sequence::new(salt, root);
        if self.reuse {
            let limit = (token_ids.len() as u64).min(limits.max_cached) / self.page_size;
            let mut matched = prefix.longest(root, token_ids, limit as usize);
            let stride = limits.multiple_of / gcd(limits.multiple_of, self.page_size);
            matched.truncate(matched.len() - (matched.len() as u64 % stride) as usize);
            if let Some(&last) = matched.last() {
                sequence.cursor = prefix.cursor_at(last, matched.len());
            }
            self.counters.hits += matched.len() as u64;
            self.counters.misses += limit - matched.len() as u64;
            let cached = matched.len() as u64 * self.page_size;
            sequence.known = token_ids[cached as usize..].to_vec();
            sequence.first_known = cached;
            sequence.reserved = cached;
            sequence.computed = cached;
            sequence.published = cached;
            for &page in &matched {
                self.pages.hold(page);
            }
            sequence.pages = matched;
        } else {
            sequence.sharing = Sharing::Never;
            sequence.first_known = token_ids.len() as u64;
        }
        let cached = sequence.computed;
        Ok((self.slots.insert(sequence), cached))
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
        self.step_rows(handles, counts, tables, width, None)
    }

    /// As [`PageCache::step`], for rows that are kept from step to step: of row `i` the first `written[i]` entries are
    /// those of an earlier step of the same sequence; only new entries are written, and `written[i]` becomes the
    /// number of its pages. Work is proportional to what is new.
    ///
    /// # Errors
    /// As [`PageCache::step`], and [`Error::Written`] for a count below 0 or above the sequence's pages.
    pub fn step_kept(
        &mut self,
        handles: &[Handle],
        counts: &[u64],
        tables: &mut [i32],
        width: usize,
        written: &mut [i32],
    ) -> Result<Vec<PageCopy>> {
        self.step_rows(handles, counts, tables, width, Some(written))
    }

    fn step_rows(
        &mut self,
        handles: &[Handle],
        counts: &[u64],
        tables: &mut [i32],
        width: usize,
        mut written: Option<&mut [i32]>,
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
        self.slots.check_distinct(handles)?;
        if let Some(written) = written.as_deref() {
            check_length("written", handles.len(), written.len())?;
            for (&handle, &given) in handles.iter().zip(written) {
                let pages = self.slots.get(handle)?.pages.len();
                if usize::try_from(given).is_ok_and(|given| given <= pages) {
                    continue;
                }
                return Err(Error::Written { given, pages });
            }
        }
        let mut copied = Vec::new();
        if let Err(error) = self.plan(handles, counts, width, &mut copied) {
            // Nothing but the counts of pages to be copied has changed.
            for &(_, page) in &copied {
                self.pages.pool.share(page);
            }
            return Err(error);
        }
        let mut copies = Vec::with_capacity(copied.len());
        let mut next_copy = copied.into_iter().peekable();
        for (row, (&handle, &count)) in handles.iter().zip(counts).enumerate() {
            let sequence = self.slots.get_mut(handle)?;
            let mut start = match &mut written {
                None => 0,
                Some(written) => written[row] as usize,
            };
            if let Some((_, from)) = next_copy.next_if(|&(owner, _)| owner == row) {
                // The page to be copied makes way for a new last page.
                sequence.pages.pop();
                sequence.replaced += 1;
                start = start.min(sequence.pages.len());
                self.pages.allocate(1, &mut sequence.pages);
                copies.extend(sequence.pages.last().map(|&to| PageCopy { from, to }));
            }
            sequence.reserved += count;
            let room = sequence.pages.len() as u64 * self.page_size;
            if sequence.reserved > room {
                let more = (sequence.reserved - room).div_ceil(self.page_size);
                self.pages.allocate(more as usize, &mut sequence.pages);
            }
            let new = &sequence.pages[start..];
            for (entry, page) in tables[row * width + start..].iter_mut().zip(new) {
                *entry = page.0 as i32;
            }
            if let Some(written) = &mut written {
                written[row] = sequence.pages.len() as i32;
            }
        }
        Ok(copies)
    }

    /// Checks that the whole step fits. Lists `(row, page)` for every shared last page that must be copied and takes
    /// the row's hold off that page at once, so that of `n` holders that step together only `n - 1` copy.
    fn plan(
        &mut self,
        handles: &[Handle],
        counts: &[u64],
        width: usize,
        copied: &mut Vec<(usize, PageId)>,
    ) -> Result<()> {
        let mut asked = 0_u64;
        for (row, (&handle, &count)) in handles.iter().zip(counts).enumerate() {
            let sequence = self.slots.get(handle)?;
            let held = sequence.pages.len() as u64;
            let room = held * self.page_size - sequence.reserved;
            let mut pages = held;
            if count > room {
                // Saturation is harmless: no pool holds so many pages.
                let reserved = sequence.reserved.saturating_add(count);
                pages = reserved.div_ceil(self.page_size);
                asked = asked.saturating_add(pages - held);
            }
            if count > 0
                && room > 0
                && let Some(&last) = sequence.pages.last()
                && self.pages.pool.is_shared(last)
            {
                self.pages.pool.release(last);
                copied.push((row, last));
                asked = asked.saturating_add(1);
            }
            if pages > width as u64 && pages <= self.num_pages() as u64 {
                return Err(Error::TableWidth {
                    pages: pages as usize,
                    width,
                });
            }
        }
        let free = self.pages.num_free() as u64;
        if asked > free {
            return Err(Error::OutOfPages { asked, free });
        }
        Ok(())
    }

    /// Opens a second sequence with the same tokens, which shares every page until one of the two writes into it.
    ///
    /// # Errors
    /// [`Error::ForkUncomputed`] while reserved tokens are not computed (both would write them), or
    /// [`Error::StaleHandle`].
    pub fn fork(&mut self, handle: Handle) -> Result<Handle> {
        let sequence = self.slots.get(handle)?;
        let (computed, reserved) = (sequence.computed, sequence.reserved);
        if computed != reserved {
            return Err(Error::ForkUncomputed { computed, reserved });
        }
        let copy = sequence.clone();
        for &page in &copy.pages {
            self.pages.pool.share(page);
        }
        self.pages.prefix.salts.share(copy.salt);
        Ok(self.slots.insert(copy))
    }

    /// Closes a sequence; of its pages that nobody else holds, the published ones can still be matched until they are
    /// needed, and the others become free.
    ///
    /// # Errors
    /// [`Error::StaleHandle`].
    pub fn close(&mut self, handle: Handle) -> Result<()> {
        let sequence = self.slots.remove(handle)?;
        // Last page first: the next sequence takes the pages in their old order, and a page is given up before the
        // one it continues.
        for &page in sequence.pages.iter().rev() {
            self.pages.release(page);
        }
        self.pages.settle(&sequence);
        self.pages.prefix.salts.release(sequence.salt);
        Ok(())
    }

    /// Forgets all published content, as after a change of the model's weights. Open sequences keep their pages and
    /// publish nothing any more.
    pub fn clear(&mut self) {
        self.pages.clear();
        for sequence in self.slots.iter_mut() {
            sequence.end_sharing(Sharing::Never);
        }
    }

    /// Pages in all.
    pub fn num_pages(&self) -> usize {
        self.pages.pool.num_pages()
    }

    /// Tokens in a page.
    pub fn page_size(&self) -> u64 {
        self.page_size
    }

    /// Pages that no sequence holds, those that can still be matched included.
    pub fn free_pages(&self) -> usize {
        self.pages.num_free()
    }
}

fn gcd(mut left: u64, mut right: u64) -> u64 {
    while right != 0 {
        (left, right) = (right, left % right);
    }
    left
}

pub(crate) fn check_length(what: &'static str, expected: usize, actual: usize) -> Result<()> {
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
