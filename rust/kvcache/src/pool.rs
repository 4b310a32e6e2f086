//! Pages: a reference count each, and a stack of the free ones.

use crate::{Error, Result};

/// The number of a page, 0 to `num_pages - 1`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PageId(pub u32);

/// Copy the rows of one page to another before the step writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PageCopy {
    /// The page to read, still held by another sequence.
    pub from: PageId,
    /// The page to write, held by the stepping sequence alone.
    pub to: PageId,
}

/// Pages are dealt out from 0 upwards, a freed one before one that was never used: memory touched lazily stays small,
/// and so do these arrays, whatever `num_pages` is.
///
/// Invariants: `refcounts` covers the pages used so far; of these a page is on the free stack, once, exactly when its
/// reference count is 0 and it is not published.
#[derive(Debug)]
pub(crate) struct Pool {
    num_pages: usize,
    pub(crate) refcounts: Vec<u32>,
    pub(crate) free: Vec<u32>,
}

impl Pool {
    pub(crate) fn new(num_pages: usize) -> Result<Self> {
        if num_pages == 0 || i32::try_from(num_pages).is_err() {
            return Err(Error::NumPages { asked: num_pages });
        }
        Ok(Self {
            num_pages,
            refcounts: Vec::new(),
            free: Vec::new(),
        })
    }

    pub(crate) fn num_pages(&self) -> usize {
        self.num_pages
    }

    /// Pages without holders and without content.
    pub(crate) fn num_free(&self) -> usize {
        self.num_pages - self.refcounts.len() + self.free.len()
    }

    /// Appends pages for one holder, `count` of them or as many as are neither held nor published.
    pub(crate) fn allocate(&mut self, count: usize, out: &mut Vec<PageId>) {
        let freed = count.min(self.free.len());
        let refcounts = &mut self.refcounts;
        out.extend(
            self.free
                .drain(self.free.len() - freed..)
                .rev()
                .map(|page| {
                    refcounts[page as usize] = 1;
                    PageId(page)
                }),
        );
        let used = self.refcounts.len();
        let end = self.num_pages.min(used + count - freed);
        self.refcounts.resize(end, 1);
        out.extend((used..end).map(|page| PageId(page as u32)));
    }

    pub(crate) fn share(&mut self, page: PageId) {
        self.refcounts[page.0 as usize] += 1;
    }

    /// One holder fewer; whether it was the last one.
    pub(crate) fn release(&mut self, page: PageId) -> bool {
        let count = &mut self.refcounts[page.0 as usize];
        debug_assert!(*count > 0, "page {} released once too often", page.0);
        *count -= 1;
        *count == 0
    }

    /// Puts a page without holders on the free stack.
    pub(crate) fn free(&mut self, page: PageId) {
        self.free.push(page.0);
    }

    pub(crate) fn is_unheld(&self, page: PageId) -> bool {
        self.refcounts[page.0 as usize] == 0
    }

    pub(crate) fn is_shared(&self, page: PageId) -> bool {
        self.refcounts[page.0 as usize] > 1
    }
}
