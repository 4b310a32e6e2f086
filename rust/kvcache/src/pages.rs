//! Pages with their holders and their content: the pool, the prefix tree, and the pages between the two that nobody
//! holds and that can still be matched.
//!
//! | holders | published | where the page is |
//! |---|---|---|
//! | some | no or yes | in the page lists of its holders |
//! | none | no | on the free stack, or never used |
//! | none | yes | reusable, in the order of their release |
//!
//! Invariant: the parent of a reusable page is held, or reusable and released after it. So giving up the page released
//! first never leaves a reusable page behind that cannot be reached.

use crate::Result;
use crate::hash::TokenHasher;
use crate::lru::Lru;
use crate::pool::{PageId, Pool};
use crate::prefix::{Parent, Prefix};
use crate::sequence::{Sequence, Sharing};

#[derive(Debug)]
pub(crate) struct Pages {
    pub(crate) pool: Pool,
    pub(crate) prefix: Prefix,
    pub(crate) reusable: Lru,
    pub(crate) evictions: u64,
}

impl Pages {
    pub(crate) fn new(num_pages: usize, page_size: usize, hasher: TokenHasher) -> Result<Self> {
        Ok(Self {
            pool: Pool::new(num_pages)?,
            prefix: Prefix::new(page_size, hasher),
            reusable: Lru::default(),
            evictions: 0,
        })
    }

    /// Pages that no sequence holds.
    pub(crate) fn num_free(&self) -> usize {
        self.pool.num_free() + self.reusable.len()
    }

    /// Appends pages without content for one holder, `count` of them if there are so many: free ones, ones never used,
    /// then the reusable ones released first.
    pub(crate) fn allocate(&mut self, count: usize, out: &mut Vec<PageId>) {
        let end = out.len() + count;
        out.reserve(count);
        self.pool.allocate(count, out);
        while out.len() < end
            && let Some(page) = self.reusable.front()
        {
            let page = PageId(page);
            self.reusable.remove(page.0);
            self.prefix.unpublish(page);
            self.evictions += 1;
            self.pool.share(page);
            out.push(page);
        }
    }

    /// One holder more of a published page.
    pub(crate) fn hold(&mut self, page: PageId) {
        if self.pool.is_unheld(page) {
            self.reusable.remove(page.0);
        }
        self.pool.share(page);
    }

    /// One holder fewer; without any, a published page becomes reusable and another one free.
    pub(crate) fn release(&mut self, page: PageId) {
        if self.pool.release(page) {
            if self.prefix.is_published(page) {
                self.reusable.push(page.0);
            } else {
                self.pool.free(page);
            }
        }
    }

    /// Restores the invariant after a closed sequence released its pages.
    ///
    /// Released last page first, a chain of its own pages is in order already. But its nodes may continue pages that
    /// it did not hold, where another sequence published the same tokens earlier: those become the latest too.
    pub(crate) fn settle(&mut self, sequence: &Sequence) {
        let mut next = (sequence.cursor.last, sequence.cursor.serial);
        if sequence.sharing != Sharing::Own {
            self.settle_path(next);
        }
        for &page in sequence.pages.iter().rev() {
            let Some(node) = self.prefix.node(page) else {
                continue;
            };
            let own = (Parent::Page(page), node.serial);
            if own != next {
                self.settle_path(own);
            }
            next = (node.parent, node.parent_serial);
        }
    }

    /// Makes the unheld nodes from `end` to the salt the latest, `end` first. If one on the way was given up, those
    /// after it cannot be reached any more, and the unheld ones become free instead.
    fn settle_path(&mut self, end: (Parent, u64)) {
        let whole = self.is_whole(end);
        let (mut at, mut serial) = end;
        while let Parent::Page(page) = at
            && self.prefix.is_serial_alive(at, serial)
        {
            let node = self.prefix.nodes[page.0 as usize];
            if self.pool.is_unheld(page) {
                self.reusable.remove(page.0);
                if whole {
                    self.reusable.push(page.0);
                } else {
                    self.prefix.unpublish(page);
                    self.pool.free(page);
                }
            }
            (at, serial) = (node.parent, node.parent_serial);
        }
    }

    /// Whether every node from `end` to the salt is still there.
    fn is_whole(&self, (mut at, mut serial): (Parent, u64)) -> bool {
        while self.prefix.is_serial_alive(at, serial) {
            let Parent::Page(page) = at else {
                return true;
            };
            let node = &self.prefix.nodes[page.0 as usize];
            (at, serial) = (node.parent, node.parent_serial);
        }
        false
    }

    /// Forgets all content: reusable pages become free, in the order in which they would have been given up.
    pub(crate) fn clear(&mut self) {
        while let Some(page) = self.reusable.front() {
            self.reusable.remove(page);
            self.pool.free(PageId(page));
        }
        self.prefix.clear();
    }
}
