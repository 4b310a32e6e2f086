//! An open-addressing table from hashes to pages.
//!
//! Linear probing in a power of two of places, at most half full, without tombstones: a removal shifts back what
//! probed past it. An entry is 8 bytes, so that a probe reads one cache line; half of the hash rides along and spares
//! most visits to pages that are not the one looked for.

/// `tag << 32 | page + 1`; 0 is an empty place. The tag is the upper half of the hash, the home place its lower bits.
#[derive(Debug, Default)]
pub(crate) struct Index {
    places: Vec<u64>,
    len: usize,
}

const SMALLEST: usize = 16;

fn entry(hash: u64, page: u32) -> u64 {
    (hash & !u64::from(u32::MAX)) | (u64::from(page) + 1)
}

fn page_of(entry: u64) -> u32 {
    (entry as u32).wrapping_sub(1)
}

impl Index {
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// The first page under `hash` that `is_it` confirms.
    pub(crate) fn find(&self, hash: u64, mut is_it: impl FnMut(u32) -> bool) -> Option<u32> {
        let mask = self.places.len().checked_sub(1)?;
        let mut at = hash as usize & mask;
        loop {
            let found = self.places[at];
            if found == 0 {
                return None;
            }
            if (found ^ hash) >> 32 == 0 && is_it(page_of(found)) {
                return Some(page_of(found));
            }
            at = (at + 1) & mask;
        }
    }

    /// Adds a page that is not in the table; `hash_of` tells the hash of those that are.
    pub(crate) fn insert(&mut self, hash: u64, page: u32, hash_of: impl Fn(u32) -> u64) {
        if 2 * (self.len + 1) > self.places.len() {
            let size = (2 * self.places.len()).max(SMALLEST);
            let old = core::mem::replace(&mut self.places, vec![0; size]);
            for place in old.into_iter().filter(|&place| place != 0) {
                self.place(hash_of(page_of(place)), page_of(place));
            }
        }
        self.place(hash, page);
        self.len += 1;
    }

    fn place(&mut self, hash: u64, page: u32) {
        let mask = self.places.len() - 1;
        let mut at = hash as usize & mask;
        while self.places[at] != 0 {
            at = (at + 1) & mask;
        }
        self.places[at] = entry(hash, page);
    }

    /// Takes a page out; false when it is not there.
    pub(crate) fn remove(&mut self, hash: u64, page: u32, hash_of: impl Fn(u32) -> u64) -> bool {
        let Some(mask) = self.places.len().checked_sub(1) else {
            return false;
        };
        let wanted = entry(hash, page);
        let mut at = hash as usize & mask;
        while self.places[at] != wanted {
            if self.places[at] == 0 {
                return false;
            }
            at = (at + 1) & mask;
        }
        // Whatever follows without a gap moves back, unless its home lies behind the hole.
        let mut hole = at;
        loop {
            at = (at + 1) & mask;
            let next = self.places[at];
            if next == 0 {
                break;
            }
            let home = hash_of(page_of(next)) as usize & mask;
            if at.wrapping_sub(home) & mask >= at.wrapping_sub(hole) & mask {
                self.places[hole] = next;
                hole = at;
            }
        }
        self.places[hole] = 0;
        self.len -= 1;
        true
    }

    pub(crate) fn clear(&mut self) {
        self.places.fill(0);
        self.len = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::Index;
    use std::collections::HashSet;

    /// Against the standard map, with few homes so that runs wrap around and removals shift.
    #[test]
    fn random_insertions_and_removals_find_what_is_there() {
        for homes in [1, 3, 7, u64::MAX] {
            let hash_of = |page: u32| u64::from(page).wrapping_mul(0x9e37_79b9_7f4a_7c15) % homes;
            let (mut index, mut there) = (Index::default(), HashSet::new());
            let mut state = 7_u64;
            for _ in 0..4000 {
                state = state
                    .wrapping_mul(6_364_136_223_846_793_005)
                    .wrapping_add(1);
                let page = (state >> 33) as u32 % 60;
                if there.remove(&page) {
                    assert!(index.remove(hash_of(page), page, hash_of));
                } else {
                    assert!(!index.remove(hash_of(page), page, hash_of));
                    index.insert(hash_of(page), page, hash_of);
                    there.insert(page);
                }
                assert_eq!(index.len(), there.len());
                for page in 0..60 {
                    let found = index.find(hash_of(page), |other| other == page);
                    assert_eq!(found, there.contains(&page).then_some(page));
                }
            }
            index.clear();
            assert_eq!((index.len(), index.find(hash_of(1), |_| true)), (0, None));
        }
    }
}
