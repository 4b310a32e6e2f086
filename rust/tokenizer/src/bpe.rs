//! Merging: the pair of lowest rank first, the leftmost of equals, until no pair has a rank.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::hash::{BuildHasher, RandomState};

/// No token, no rank, no neighbor.
pub(crate) const NONE: u32 = u32::MAX;
/// Pieces with more symbols than this go through a heap: the scan's cost grows with the square.
const SCAN_LIMIT: usize = 96;
/// How many merges of a long piece pass between two looks at the caller's wish to stop.
const POLL_INTERVAL: usize = 1 << 16;

/// What a pair of tokens merges into.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Merge {
    /// Place in the list of merges; lower goes first.
    pub(crate) rank: u32,
    /// The token that the pair becomes.
    pub(crate) token: u32,
}

/// Rank of a pair and place of its left symbol.
type Candidate = Reverse<(u32, u32)>;

const NO_MERGE: Merge = Merge {
    rank: NONE,
    token: NONE,
};

/// All merges, by pair: an open-addressing table at most half full.
#[derive(Debug)]
pub(crate) struct Merges {
    slots: Vec<(u64, Merge)>,
    multiplier: u64,
    shift: u32,
}

/// Marks a free slot: no pair of tokens, for a token is never `NONE`.
const FREE: u64 = u64::MAX;

impl Merges {
    /// A table for `count` merges. The hash is drawn anew for each table, so that no file can make its pairs collide.
    pub(crate) fn with_capacity(count: usize) -> Self {
        let bits = (count.max(1) * 2).next_power_of_two().trailing_zeros();
        Self {
            slots: vec![(FREE, NO_MERGE); 1 << bits],
            multiplier: RandomState::new().hash_one(count) | 1,
            shift: 64 - bits,
        }
    }

    fn home(&self, key: u64) -> usize {
        // Folding first lets the left token reach the product's high bits as the right one does.
        ((key ^ (key >> 29)).wrapping_mul(self.multiplier) >> self.shift) as usize
    }

    /// Adds a merge; a later one of the same pair replaces the earlier.
    pub(crate) fn insert(&mut self, left: u32, right: u32, merge: Merge) {
        let key = u64::from(left) << 32 | u64::from(right);
        let mut slot = self.home(key);
        while self.slots[slot].0 != FREE && self.slots[slot].0 != key {
            slot = (slot + 1) & (self.slots.len() - 1);
        }
        self.slots[slot] = (key, merge);
    }

    /// The merge of a pair; rank `NONE` when there is none.
    #[inline]
    pub(crate) fn get(&self, left: u32, right: u32) -> Merge {
        let key = u64::from(left) << 32 | u64::from(right);
        let mut slot = self.home(key);
        loop {
            let (found, merge) = self.slots[slot];
            if found == key {
                return merge;
            }
            if found == FREE {
                return NO_MERGE;
            }
            slot = (slot + 1) & (self.slots.len() - 1);
        }
    }

    /// Merges `symbols` in place as far as the list of merges allows; false when `stop` asked to give up.
    pub(crate) fn apply(&self, symbols: &mut Vec<u32>, stop: &mut dyn FnMut() -> bool) -> bool {
        if symbols.len() <= SCAN_LIMIT {
            self.apply_by_scan(symbols);
            true
        } else {
            self.apply_by_heap(symbols, stop)
        }
    }

    fn apply_by_scan(&self, symbols: &mut Vec<u32>) {
        if symbols.len() < 2 {
            return;
        }
        let mut pairs = [NO_MERGE; SCAN_LIMIT];
        let mut count = symbols.len() - 1;
        for index in 0..count {
            pairs[index] = self.get(symbols[index], symbols[index + 1]);
        }
        while count > 0 {
            let mut best = 0;
            for index in 1..count {
                if pairs[index].rank < pairs[best].rank {
                    best = index;
                }
            }
            if pairs[best].rank == NONE {
                return;
            }
            symbols[best] = pairs[best].token;
            symbols.remove(best + 1);
            pairs.copy_within(best + 1..count, best);
            count -= 1;
            if best > 0 {
                pairs[best - 1] = self.get(symbols[best - 1], symbols[best]);
            }
            if best < count {
                pairs[best] = self.get(symbols[best], symbols[best + 1]);
            }
        }
    }

    fn apply_by_heap(&self, symbols: &mut Vec<u32>, stop: &mut dyn FnMut() -> bool) -> bool {
        let length = symbols.len();
        let mut links = Links::new(length);
        let mut candidates = Vec::with_capacity(length);
        for index in 0..length - 1 {
            if index % POLL_INTERVAL == POLL_INTERVAL - 1 && stop() {
                return false;
            }
            candidates.extend(self.candidate(symbols, index, index + 1));
        }
        let mut queue = BinaryHeap::from(candidates);
        let mut popped = 0_usize;
        while let Some(Reverse((rank, index))) = queue.pop() {
            popped += 1;
            if popped.is_multiple_of(POLL_INTERVAL) && stop() {
                return false;
            }
            let (left, right) = (index as usize, links.next[index as usize] as usize);
            if symbols[left] == NONE || right >= length {
                continue;
            }
            // A rank belongs to one pair, so an entry is stale exactly when another rank stands there by now.
            let merge = self.get(symbols[left], symbols[right]);
            if merge.rank != rank {
                continue;
            }
            symbols[left] = merge.token;
            symbols[right] = NONE;
            links.remove(right);
            let (before, after) = (links.previous[left] as usize, links.next[left] as usize);
            if after < length {
                queue.extend(self.candidate(symbols, left, after));
            }
            if before < length {
                queue.extend(self.candidate(symbols, before, left));
            }
        }
        symbols.retain(|&symbol| symbol != NONE);
        true
    }

    fn candidate(&self, symbols: &[u32], left: usize, right: usize) -> Option<Candidate> {
        let rank = self.get(symbols[left], symbols[right]).rank;
        (rank != NONE).then_some(Reverse((rank, left as u32)))
    }
}

/// A doubly linked list over the places of a piece; a place outside it ends the list.
struct Links {
    next: Vec<u32>,
    previous: Vec<u32>,
}

impl Links {
    fn new(length: usize) -> Self {
        let next = (1..=length as u32).collect();
        let previous = (0..length as u32)
            .map(|index| index.wrapping_sub(1))
            .collect();
        Self { next, previous }
    }

    fn remove(&mut self, index: usize) {
        let (before, after) = (self.previous[index], self.next[index]);
        if let Some(link) = self.next.get_mut(before as usize) {
            *link = after;
        }
        if let Some(link) = self.previous.get_mut(after as usize) {
            *link = before;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashMap;

    /// The definition: look at all pairs, merge the best, start over.
    fn naive(merges: &HashMap<(u32, u32), Merge>, symbols: &[u32]) -> Vec<u32> {
        let mut symbols = symbols.to_vec();
        loop {
            let best = symbols
                .windows(2)
                .enumerate()
                .filter_map(|(index, pair)| {
                    merges
                        .get(&(pair[0], pair[1]))
                        .map(|m| (m.rank, index, m.token))
                })
                .min();
            let Some((_, index, token)) = best else {
                return symbols;
            };
            symbols.splice(index..index + 2, [token]);
        }
    }

    proptest! {
        #[test]
        fn scan_and_heap_equal_the_definition(
            pairs in prop::collection::vec((0u32..24, 0u32..24), 0..80),
            symbols in prop::collection::vec(0u32..6, 0..200),
        ) {
            let mut table = Merges::with_capacity(pairs.len());
            let mut map = HashMap::new();
            for (rank, &(left, right)) in pairs.iter().enumerate() {
                let merge = Merge { rank: rank as u32, token: 6 + rank as u32 % 18 };
                table.insert(left, right, merge);
                map.insert((left, right), merge);
            }
            let expected = naive(&map, &symbols);
            let mut by_heap = symbols.clone();
            if !by_heap.is_empty() {
                prop_assert!(table.apply_by_heap(&mut by_heap, &mut || false));
            }
            prop_assert_eq!(&by_heap, &expected);
            if symbols.len() <= SCAN_LIMIT {
                let mut by_scan = symbols;
                table.apply_by_scan(&mut by_scan);
                prop_assert_eq!(&by_scan, &expected);
            }
        }
    }

    #[test]
    fn a_long_piece_stops_when_asked() {
        let mut table = Merges::with_capacity(1);
        table.insert(0, 0, Merge { rank: 0, token: 1 });
        assert!(!table.apply(&mut vec![0; 4 * POLL_INTERVAL], &mut || true));
    }
}
