//! Strings by token id, and token ids by string.

use std::hash::{BuildHasher, RandomState};

use crate::bpe::NONE;

/// Byte strings by id, end to end in one allocation.
#[derive(Debug)]
pub(crate) struct Strings {
    data: Vec<u8>,
    /// Start and end in `data`; `(1, 0)` where there is no string.
    spans: Vec<(u32, u32)>,
}

impl Strings {
    /// Room for the ids below `count`, all absent.
    pub(crate) fn with_ids(count: usize) -> Self {
        Self {
            data: Vec::new(),
            spans: vec![(1, 0); count],
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

    /// Number of strings present.
    pub(crate) fn count(&self) -> usize {
        self.spans
            .iter()
            .filter(|(start, end)| start <= end)
            .count()
    }
}

/// The tokens that their own bytes encode to, so that a piece equal to one of them needs no merging: an
/// open-addressing table, at most half full, whose strings lie in a `Strings`.
#[derive(Debug)]
pub(crate) struct Pieces {
    slots: Vec<u32>,
    multiplier: u64,
    shift: u32,
}

impl Pieces {
    /// A table for `count` strings. The hash is drawn anew for each table, so that no file can make its strings
    /// collide.
    pub(crate) fn with_capacity(count: usize) -> Self {
        let bits = (count.max(1) * 2).next_power_of_two().trailing_zeros();
        Self {
            slots: vec![NONE; 1 << bits],
            multiplier: RandomState::new().hash_one(count) | 1,
            shift: 64 - bits,
        }
    }

    #[inline]
    fn home(&self, string: &[u8]) -> usize {
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
        ((hash ^ (hash >> 32)).wrapping_mul(self.multiplier) >> self.shift) as usize
    }

    /// Adds the string that `strings` has for `id`.
    pub(crate) fn insert(&mut self, id: u32, strings: &Strings) {
        let mut slot = self.home(strings.get(id).unwrap_or_default());
        while self.slots[slot] != NONE {
            slot = (slot + 1) & (self.slots.len() - 1);
        }
        self.slots[slot] = id;
    }

    /// The id of a string.
    #[inline]
    pub(crate) fn get(&self, string: &[u8], strings: &Strings) -> Option<u32> {
        let mut slot = self.home(string);
        loop {
            let id = self.slots[slot];
            if id == NONE {
                return None;
            }
            if strings.get(id) == Some(string) {
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
            let mut strings = Strings::with_ids(present.len() + 1);
            let mut pieces = Pieces::with_capacity(present.len());
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
