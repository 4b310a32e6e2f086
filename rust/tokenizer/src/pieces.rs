//! Strings by token id, and token ids by string.

use std::hash::{BuildHasher, RandomState};

use crate::simd::prefetch;

/// A free slot: its id is none that a token has.
const FREE: u64 = u64::MAX;

/// Byte strings by id, end to end in one allocation.
#[derive(Debug)]
pub(crate) struct Strings {
    data: Vec<u8>,
    /// Start and end in `data`; `(1, 0)` where there is no string.
    spans: Vec<(u32, u32)>,
}

impl Strings {
    /// Room for the ids below `count`, all absent, and for `bytes` bytes.
    pub(crate) fn with_ids(count: usize, bytes: usize) -> Self {
        Self {
            data: Vec::with_capacity(bytes),
            spans: vec![(1, 0); count],
        }
    }

    /// Room for the ids below `count`, those that are there kept.
    pub(crate) fn extend_ids(&mut self, count: usize) {
        if count > self.spans.len() {
            self.spans.resize(count, (1, 0));
        }
    }

    pub(crate) fn set(&mut self, id: u32, string: &[u8]) {
        let start = self.data.len() as u32;
        self.data.extend_from_slice(string);
        self.spans[id as usize] = (start, self.data.len() as u32);
    }

    #[inline]
    pub(crate) fn get(&self, id: u32) -> Option<&[u8]> {
        let &(start, end) = self.spans.get(id as usize)?;
        self.data.get(start as usize..end as usize)
    }

    /// Length of all strings together.
    pub(crate) fn bytes(&self) -> usize {
        self.data.len()
    }

    /// Number of ids, with a string or without.
    pub(crate) fn len(&self) -> usize {
        self.spans.len()
    }

    /// Number of strings present.
    pub(crate) fn count(&self) -> usize {
        self.spans
            .iter()
            .filter(|(start, end)| start <= end)
            .count()
    }
}

/// Ids by string: an open-addressing table, at most half full, whose strings lie in a `Strings`.
#[derive(Debug)]
pub(crate) struct Index {
    /// A part of the hash, and the id; `FREE` where there is none.
    slots: Vec<u64>,
    multiplier: u64,
    shift: u32,
}

impl Index {
    /// A table for `count` strings. The hash is drawn anew for each table, so that no file can make its strings
    /// collide.
    pub(crate) fn with_capacity(count: usize) -> Self {
        let bits = (count.max(1) * 2).next_power_of_two().trailing_zeros();
        Self {
            slots: vec![FREE; 1 << bits],
            multiplier: RandomState::new().hash_one(count) | 1,
            shift: 64 - bits,
        }
    }

    /// Asks for the memory that the string of this hash is looked up in.
    #[inline]
    pub(crate) fn prefetch(&self, hash: u64) {
        prefetch(&self.slots[(hash >> self.shift) as usize]);
    }

    #[inline]
    pub(crate) fn hash(&self, string: &[u8]) -> u64 {
        let mut hash = string.len() as u64;
        let (words, tail) = string.as_chunks::<8>();
        for word in words {
            hash = (hash ^ u64::from_le_bytes(*word))
                .wrapping_mul(self.multiplier)
                .rotate_left(29);
        }
        let mut last = [0; 8];
        last[..tail.len()].copy_from_slice(tail);
        hash = (hash ^ u64::from_le_bytes(last)).wrapping_mul(self.multiplier);
        (hash ^ (hash >> 32)).wrapping_mul(self.multiplier)
    }

    /// Adds the string that `strings` has for `id`.
    pub(crate) fn insert(&mut self, id: u32, strings: &Strings) {
        self.insert_hashed(self.hash(strings.get(id).unwrap_or_default()), id);
    }

    /// As `insert`, with the string's hash.
    #[inline]
    pub(crate) fn insert_hashed(&mut self, hash: u64, id: u32) {
        let mut slot = (hash >> self.shift) as usize;
        while self.slots[slot] != FREE {
            slot = (slot + 1) & (self.slots.len() - 1);
        }
        self.slots[slot] = hash << 32 | u64::from(id);
    }

    /// The id of a string.
    #[inline]
    pub(crate) fn get(&self, string: &[u8], strings: &Strings) -> Option<u32> {
        self.get_hashed(self.hash(string), string, strings)
    }

    /// As `get`, with the string's hash.
    #[inline]
    pub(crate) fn get_hashed(&self, hash: u64, string: &[u8], strings: &Strings) -> Option<u32> {
        let mut slot = (hash >> self.shift) as usize;
        loop {
            let found = self.slots[slot];
            if found == FREE {
                return None;
            }
            let id = found as u32;
            if found >> 32 == hash & u64::from(u32::MAX) && strings.get(id) == Some(string) {
                return Some(id);
            }
            slot = (slot + 1) & (self.slots.len() - 1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    proptest! {
        #[test]
        fn every_string_is_found_and_no_other(
            present in prop::collection::btree_set(prop::collection::vec(any::<u8>(), 0..20), 0..60),
            asked in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..3), 0..60),
        ) {
            let present: BTreeSet<Vec<u8>> = present;
            let mut strings = Strings::with_ids(present.len() + 1, 0);
            let mut pieces = Index::with_capacity(present.len());
            for (id, string) in present.iter().enumerate() {
                strings.set(id as u32, string);
                pieces.insert(id as u32, &strings);
            }
            prop_assert_eq!(strings.count(), present.len());
            for (id, string) in present.iter().enumerate() {
                prop_assert_eq!(pieces.get(string, &strings), Some(id as u32));
            }
            for string in asked.iter().filter(|string| !present.contains(*string)) {
                prop_assert_eq!(pieces.get(string, &strings), None);
            }
            prop_assert_eq!(strings.get(present.len() as u32), None);
        }
    }
}
