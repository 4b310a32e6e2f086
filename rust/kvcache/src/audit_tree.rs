//! Checks the prefix tree: nodes, index, the order of reusable pages, salts, and the sequences' places in it.

use crate::audit::{expect, expect_at_most};
use crate::pool::PageId;
use crate::prefix::Parent;
use crate::sequence::{Sequence, Sharing};
use crate::{PageCache, Result};

impl PageCache {
    /// The part of `audit` that looks at published content. Reference counts are known to be right.
    pub(crate) fn audit_tree(&self) -> Result<()> {
        let nodes = &self.pages.prefix.nodes;
        expect_at_most(
            "nodes",
            0,
            self.pages.pool.refcounts.len() as u64,
            nodes.len() as u64,
        )?;
        let mut published: Vec<u32> = (0..nodes.len() as u32)
            .filter(|&page| nodes[page as usize].serial != 0)
            .collect();
        let in_index = self.pages.prefix.index.len() as u64;
        expect("pages in the index", 0, published.len() as u64, in_index)?;
        // A parent's serial is lower than its children's.
        published.sort_unstable_by_key(|&page| nodes[page as usize].serial);
        let mut whole = vec![false; nodes.len()];
        for &page in &published {
            whole[page as usize] = self.audit_node(PageId(page), &whole)?;
        }
        self.audit_reusable(&published, &whole)?;
        self.audit_salts(&published)?;
        for (at, slot) in self.slots.entries.iter().enumerate() {
            if let Some(sequence) = &slot.sequence {
                self.audit_chain(at, sequence)?;
            }
        }
        Ok(())
    }

    /// Checks a node against its parent; returns whether its chain leads to a salt.
    fn audit_node(&self, page: PageId, whole: &[bool]) -> Result<bool> {
        let prefix = &self.pages.prefix;
        let at = page.0 as usize;
        let node = &prefix.nodes[at];
        let found = prefix.find(node.hash, node.parent_serial, prefix.tokens_of(page));
        let found = found.map_or(u64::MAX, |found| found.0.into());
        expect("lookup of the node of page", at, at as u64, found)?;
        if !prefix.is_serial_alive(node.parent, node.parent_serial) {
            return Ok(false);
        }
        expect_at_most(
            "serial of the parent of page",
            at,
            node.serial - 1,
            node.parent_serial,
        )?;
        let parent_hash = prefix.hash_of(node.parent);
        let hash = prefix.chained(parent_hash, prefix.tokens_of(page));
        expect("hash of page", at, hash, node.hash)?;
        Ok(match node.parent {
            Parent::Salt(_) => true,
            Parent::Page(parent) => whole[parent.0 as usize],
        })
    }

    /// Reusable are exactly the published pages that nobody holds, and each can be reached through pages that are held
    /// or will be given up later.
    fn audit_reusable(&self, published: &[u32], whole: &[bool]) -> Result<()> {
        let reusable = &self.pages.reusable;
        let consistent = u64::from(reusable.is_consistent());
        expect("links of the reusable pages", 0, 1, consistent)?;
        // 0 for pages that are not in the list, else the place from 1.
        let mut places = vec![0_u64; whole.len()];
        for (at, page) in reusable.iter().enumerate() {
            let Some(place) = places.get_mut(page as usize) else {
                return expect_at_most(
                    "reusable page at",
                    at,
                    (whole.len() as u64).saturating_sub(1),
                    page.into(),
                );
            };
            expect(
                "earlier places in the reusable list of page",
                page as usize,
                0,
                *place,
            )?;
            *place = at as u64 + 1;
        }
        let unheld = |page: u32| self.pages.pool.refcounts[page as usize] == 0;
        let expected = published.iter().filter(|&&page| unheld(page)).count();
        expect("reusable pages", 0, expected as u64, reusable.len() as u64)?;
        for page in reusable.iter() {
            let at = page as usize;
            expect("unheld published page", at, 1, u64::from(unheld(page)))?;
            expect("whole chain of reusable page", at, 1, u64::from(whole[at]))?;
            if let Parent::Page(parent) = self.pages.prefix.nodes[at].parent
                && unheld(parent.0)
            {
                let least = places[at] + 1;
                let place = places[parent.0 as usize].min(least);
                expect("place of the parent of reusable page", at, least, place)?;
            }
        }
        Ok(())
    }

    /// Every salt is used by as many sequences and first pages as it counts.
    fn audit_salts(&self, published: &[u32]) -> Result<()> {
        let prefix = &self.pages.prefix;
        for (at, (id, salt)) in prefix.salts.iter().enumerate() {
            let sequences = self
                .slots
                .iter()
                .filter(|sequence| sequence.salt == id)
                .count();
            let first = |page: &&u32| prefix.nodes[**page as usize].parent == Parent::Salt(id);
            let users = sequences + published.iter().filter(first).count();
            expect("users of salt", at, users as u64, salt.users)?;
            let same = prefix
                .salts
                .iter()
                .filter(|(_, other)| other.bytes() == salt.bytes());
            expect(
                "salts with the same bytes as salt",
                at,
                1,
                same.count() as u64,
            )?;
        }
        Ok(())
    }

    /// A published page in a sequence's list is full of computed tokens, and the sequence's place in the tree is right.
    fn audit_chain(&self, at: usize, sequence: &Sequence) -> Result<()> {
        let prefix = &self.pages.prefix;
        for (place, &page) in sequence.pages.iter().enumerate() {
            if prefix.is_published(page) {
                let end = (place as u64 + 1) * self.page_size;
                expect_at_most(
                    "end of a published page in slot",
                    at,
                    sequence.computed,
                    end,
                )?;
            }
        }
        let linked = sequence.cursor.pages as u64 * self.page_size;
        expect_at_most("linked tokens in slot", at, sequence.published, linked)?;
        if !sequence.may_publish() {
            return expect("known ids in slot", at, 0, sequence.known.len() as u64);
        }
        expect_at_most("first known id in slot", at, linked, sequence.first_known)?;
        let ready = sequence.published.min(sequence.end_known());
        let most = ready.saturating_sub(ready % self.page_size);
        expect("linked pages' tokens in slot", at, most, linked)?;
        if sequence.sharing == Sharing::Own {
            let mut end = prefix.root(sequence.salt);
            for (place, &page) in sequence
                .pages
                .iter()
                .take(sequence.cursor.pages)
                .enumerate()
            {
                let serial = prefix
                    .nodes
                    .get(page.0 as usize)
                    .map_or(0, |node| node.parent_serial);
                expect("parent of the linked page in slot", at, end.serial, serial)?;
                end = prefix.cursor_at(page, place + 1);
            }
            expect(
                "last linked page in slot",
                at,
                end.serial,
                sequence.cursor.serial,
            )?;
        }
        Ok(())
    }
}
