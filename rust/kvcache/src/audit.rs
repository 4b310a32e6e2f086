//! Checks every invariant of the cache from scratch.

use crate::{Error, PageCache, PageId, Result};

impl PageCache {
    /// Recounts everything and compares: reference counts with the page lists, the free stack and the reusable pages
    /// with the reference counts, page lists with the tokens reserved, the free slots, and every rule of the prefix
    /// tree. Work proportional to the whole cache.
    ///
    /// # Errors
    /// [`Error::Corrupt`] names the first rule that does not hold.
    pub fn audit(&self) -> Result<()> {
        let pool = &self.pages.pool;
        let mut holders = vec![0_u32; pool.refcounts.len()];
        let used = holders.len() as u64;
        expect_at_most("used pages", 0, pool.num_pages() as u64, used)?;
        for (at, slot) in self.slots.entries.iter().enumerate() {
            let Some(sequence) = &slot.sequence else {
                continue;
            };
            let pages = sequence.reserved.div_ceil(self.page_size);
            let listed = sequence.pages.len() as u64;
            expect("pages of the sequence in slot", at, pages, listed)?;
            let (reserved, computed) = (sequence.reserved, sequence.computed);
            expect_at_most("computed tokens in slot", at, reserved, computed)?;
            let published = sequence.published;
            expect_at_most("published tokens in slot", at, computed, published)?;
            for &page in &sequence.pages {
                let last = used.saturating_sub(1);
                expect_at_most("page id in slot", at, last, u64::from(page.0))?;
                let Some(count) = holders.get_mut(page.0 as usize) else {
                    continue;
                };
                *count += 1;
            }
        }
        for (page, (&held, &counted)) in holders.iter().zip(&pool.refcounts).enumerate() {
            expect("reference count of page", page, held.into(), counted.into())?;
        }
        let mut stacked = vec![0_u64; holders.len()];
        for (at, &page) in pool.free.iter().enumerate() {
            let last = used.saturating_sub(1);
            expect_at_most("free page", at, last, page.into())?;
            if let Some(count) = stacked.get_mut(page as usize) {
                *count += 1;
            }
        }
        for (page, (&held, &found)) in holders.iter().zip(&stacked).enumerate() {
            let published = self.pages.prefix.is_published(PageId(page as u32));
            let free = u64::from(held == 0 && !published);
            expect("entries in the free stack of page", page, free, found)?;
        }
        self.audit_slots()?;
        self.audit_tree()
    }

    fn audit_slots(&self) -> Result<()> {
        let mut listed = vec![0_u64; self.slots.entries.len()];
        for (at, &slot) in self.slots.free.iter().enumerate() {
            expect_at_most(
                "free slot",
                at,
                (listed.len() as u64).saturating_sub(1),
                slot.into(),
            )?;
            if let Some(count) = listed.get_mut(slot as usize) {
                *count += 1;
            }
        }
        for (at, (slot, &found)) in self.slots.entries.iter().zip(&listed).enumerate() {
            // A retired slot is neither open nor free.
            let most = u64::from(slot.sequence.is_none());
            expect_at_most("entries in the free list of slot", at, most, found)?;
        }
        Ok(())
    }
}

pub(crate) fn expect(rule: &'static str, at: usize, expected: u64, actual: u64) -> Result<()> {
    if expected == actual {
        Ok(())
    } else {
        Err(Error::Corrupt {
            rule,
            at,
            expected,
            actual,
        })
    }
}

pub(crate) fn expect_at_most(rule: &'static str, at: usize, most: u64, actual: u64) -> Result<()> {
    if actual <= most {
        Ok(())
    } else {
        Err(Error::Corrupt {
            rule,
            at,
            expected: most,
            actual,
        })
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::panic, reason = "how tests fail")]
mod tests {
    use crate::{Error, PageCache, PageId};

    fn cache_with_one_sequence() -> PageCache {
        let mut cache = PageCache::new(4, 2).unwrap();
        let (handle, _) = cache.open(&[1, 2, 3], b"").unwrap();
        cache.step(&[handle], &[3], &mut [0; 4], 4).unwrap();
        cache.audit().unwrap();
        cache
    }

    fn rule_broken_by(damage: impl FnOnce(&mut PageCache)) -> &'static str {
        let mut cache = cache_with_one_sequence();
        damage(&mut cache);
        match cache.audit() {
            Err(Error::Corrupt { rule, .. }) => rule,
            other => panic!("audit returned {other:?}"),
        }
    }

    #[test]
    fn audit_notices_every_kind_of_damage() {
        assert_eq!(
            rule_broken_by(|c| c.pages.pool.refcounts[0] += 1),
            "reference count of page"
        );
        assert_eq!(
            rule_broken_by(|c| c.pages.pool.refcounts.push(1)),
            "reference count of page"
        );
        assert_eq!(
            rule_broken_by(|c| c.pages.pool.refcounts = vec![0; 5]),
            "used pages"
        );
        assert_eq!(
            rule_broken_by(|c| c.pages.pool.refcounts.push(0)),
            "entries in the free stack of page"
        );
        assert_eq!(
            rule_broken_by(|c| c.pages.pool.free.push(0)),
            "entries in the free stack of page"
        );
        assert_eq!(rule_broken_by(|c| c.pages.pool.free.push(9)), "free page");
        assert_eq!(
            rule_broken_by(|c| c.slots.free.push(0)),
            "entries in the free list of slot"
        );
        assert_eq!(rule_broken_by(|c| c.slots.free.push(7)), "free slot");
        let sequence = |cache: &mut PageCache, damage: fn(&mut crate::sequence::Sequence)| {
            damage(cache.slots.entries[0].sequence.as_mut().unwrap());
        };
        assert_eq!(
            rule_broken_by(|c| sequence(c, |s| s.reserved = 9)),
            "pages of the sequence in slot"
        );
        assert_eq!(
            rule_broken_by(|c| sequence(c, |s| s.computed = 4)),
            "computed tokens in slot"
        );
        assert_eq!(
            rule_broken_by(|c| sequence(c, |s| s.published = 1)),
            "published tokens in slot"
        );
        assert_eq!(
            rule_broken_by(|c| sequence(c, |s| s.pages[0] = PageId(2))),
            "page id in slot"
        );
    }
}
