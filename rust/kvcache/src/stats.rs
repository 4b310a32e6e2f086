//! Counts of pages, sequences, tokens and of what the prefix tree did.

use crate::PageCache;

/// Counts of one moment, and since the beginning.
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
    /// Pages that are published.
    pub published_pages: usize,
    /// Published pages that no sequence holds.
    pub reusable_pages: usize,
    /// Open sequences.
    pub sequences: usize,
    /// Tokens with room, a shared one counted once per sequence.
    pub reserved_tokens: u64,
    /// Computed tokens, a shared one counted once per sequence.
    pub computed_tokens: u64,
    /// Pages that `open` found, since the beginning.
    pub hits: u64,
    /// Whole pages that `open` looked for in vain, since the beginning.
    pub misses: u64,
    /// Tokens of the pages that `open` found, since the beginning.
    pub cached_tokens: u64,
    /// Reusable pages given up for new content, since the beginning.
    pub evictions: u64,
}

impl PageCache {
    /// Counts of this moment. Looks at every page: not for every token.
    pub fn stats(&self) -> Stats {
        let pages = &self.pages;
        Stats {
            num_pages: self.num_pages(),
            page_size: self.page_size,
            free_pages: pages.num_free(),
            used_pages: self.num_pages() - pages.num_free(),
            shared_pages: pages
                .pool
                .refcounts
                .iter()
                .filter(|&&count| count > 1)
                .count(),
            published_pages: pages.prefix.index.len(),
            reusable_pages: pages.reusable.len(),
            sequences: self.slots.iter().count(),
            reserved_tokens: self.slots.iter().map(|sequence| sequence.reserved).sum(),
            computed_tokens: self.slots.iter().map(|sequence| sequence.computed).sum(),
            hits: self.counters.hits,
            misses: self.counters.misses,
            cached_tokens: self.counters.hits * self.page_size,
            evictions: pages.evictions,
        }
    }
}
