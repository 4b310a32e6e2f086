//! Block tables that are kept from step to step: what each row holds already.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::pool::PageCopy;
use crate::slots::Handle;
use crate::{PageCache, Result};

/// Distinguishes the caches of a process, whose handles are the same numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct CacheId(u64);

impl CacheId {
    pub(crate) fn new() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        Self(NEXT.fetch_add(1, Ordering::Relaxed))
    }
}

/// What one row holds: the first pages of a sequence.
#[derive(Debug, Clone, Copy)]
struct Row {
    handle: Handle,
    pages: i32,
    /// How often a page of the sequence had been replaced: the one way in which pages change that it has already.
    replaced: u64,
}

/// What the rows of one block table hold, so that a step writes only what is new to them.
///
/// It is right as long as nothing but [`PageCache::step_table`] writes to the table; after anything else,
/// [`KeptRows::forget`] has every row written anew.
#[derive(Debug, Default)]
pub struct KeptRows {
    cache: Option<CacheId>,
    rows: Vec<Option<Row>>,
}

impl KeptRows {
    /// Forgets what the rows hold.
    pub fn forget(&mut self) {
        self.rows.clear();
    }
}

impl PageCache {
    /// As [`PageCache::step`], for a table whose rows are kept from step to step, in whatever order the sequences come:
    /// a row that held the same sequence before gets its new entries, another one is written whole. The work is
    /// proportional to what is new.
    ///
    /// # Errors
    /// As [`PageCache::step`].
    pub fn step_table(
        &mut self,
        handles: &[Handle],
        counts: &[u64],
        tables: &mut [i32],
        width: usize,
        kept: &mut KeptRows,
    ) -> Result<Vec<PageCopy>> {
        if kept.cache != Some(self.id) {
            kept.forget();
            kept.cache = Some(self.id);
        }
        let rows = kept.rows.iter().copied().chain(std::iter::repeat(None));
        let mut written: Vec<i32> = handles
            .iter()
            .zip(rows)
            .map(|(&handle, row)| match (row, self.slots.get(handle)) {
                (Some(row), Ok(sequence))
                    if row.handle == handle && row.replaced == sequence.replaced =>
                {
                    row.pages
                }
                _ => 0,
            })
            .collect();
        let copies = self.step_kept(handles, counts, tables, width, &mut written)?;
        kept.rows.resize(kept.rows.len().max(handles.len()), None);
        for ((row, &handle), &pages) in kept.rows.iter_mut().zip(handles).zip(&written) {
            *row = Some(Row {
                handle,
                pages,
                replaced: self.slots.get(handle)?.replaced,
            });
        }
        Ok(copies)
    }
}
