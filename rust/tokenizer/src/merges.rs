//! The list of merges as tables: by pair of tokens, and by the token that a merge makes.

use std::hash::{BuildHasher, RandomState};

use crate::bpe::SCAN_LIMIT;
use crate::lines::Lines;
use crate::simd::prefetch;

/// No token, no rank, no neighbor.
pub(crate) const NONE: u32 = u32::MAX;
/// A pair of tokens, a rank and the free slot's mark fit in 64 bits while ids stay below 2^22 and ranks below this.
pub(crate) const MAX_MERGES: usize = (1 << RANK_BITS) - 1;
pub(crate) const RANK_BITS: u32 = 20;
const ID_BITS: u32 = 22;
/// A free slot. A taken one holds its pair and rank with all bits turned over, and no merge has the rank of all ones.
const FREE: u64 = 0;

/// How a token comes about: its last merge.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Origin {
    /// Place in the list of merges; lower goes first. `NONE` for a token that no merge makes.
    pub(crate) rank: u32,
    pub(crate) left: u32,
    pub(crate) right: u32,
}

const NO_ORIGIN: Origin = Origin {
    rank: NONE,
    left: NONE,
    right: NONE,
};

/// All merges: a table, at most half full, of one word for each pair.
///
/// A pair's word is in the line that its hash names or, when that is full, in one after it. A line is filled from its
/// beginning. All its words are compared without a branch: most pairs that are asked for have no merge, and where the
/// search for them would end is what a processor cannot guess.
#[derive(Debug)]
pub(crate) struct Merges {
    lines: Lines,
    /// A bit for each of many hashes, set where a pair has it: it answers for most pairs without a merge, from memory
    /// that a processor keeps near.
    filter: Vec<u64>,
    multiplier: u64,
    shift: u32,
    filter_shift: u32,
    /// The token that the merge of each rank makes.
    made: Vec<u32>,
    /// What to add to a rank to get its token, where that holds for all: then `made` need not be read.
    offset: Option<u32>,
    /// The origin of each token.
    origins: Vec<Origin>,
    /// No token has two origins, and each is made of tokens made before it.
    unique: bool,
}

impl Merges {
    /// A table for `count` merges of the tokens below `ids`. The hash is drawn anew for each table, so that no file
    /// can make its pairs collide.
    pub(crate) fn with_capacity(count: usize, ids: usize) -> Self {
        let filter_bits = (count.max(8) * 8).next_power_of_two().trailing_zeros();
        let bits = (count.max(1) * 2)
            .div_ceil(8)
            .next_power_of_two()
            .max(2)
            .trailing_zeros();
        Self {
            lines: Lines::new(1 << bits, 1 << bits),
            filter: vec![0; 1 << (filter_bits - 6)],
            filter_shift: 64 - filter_bits,
            multiplier: RandomState::new().hash_one(count) | 1,
            shift: 64 - bits,
            made: Vec::with_capacity(count),
            offset: None,
            origins: vec![NO_ORIGIN; ids],
            unique: true,
        }
    }

    #[inline]
    fn key(left: u32, right: u32) -> u64 {
        u64::from(left) << ID_BITS | u64::from(right)
    }

    #[inline]
    fn hash(&self, key: u64) -> u64 {
        key.wrapping_mul(self.multiplier)
    }

    /// Asks for the memory that `push` and `rank` will use.
    #[inline]
    pub(crate) fn prefetch(&self, left: u32, right: u32) {
        let hash = self.hash(Self::key(left, right));
        prefetch(self.lines.get((hash >> self.shift) as usize));
    }

    /// Adds the merge of the next rank; a later one of the same pair replaces the earlier.
    pub(crate) fn push(&mut self, left: u32, right: u32, token: u32) {
        let rank = self.made.len() as u32;
        self.made.push(token);
        let origin = &mut self.origins[token as usize];
        let again = (origin.left, origin.right) == (left, right);
        self.unique &= origin.rank == NONE || again;
        *origin = Origin { rank, left, right };
        let key = Self::key(left, right);
        let hash = self.hash(key);
        let (word, bit) = self.filter_place(hash);
        self.filter[word] |= 1 << bit;
        let mut at = (hash >> self.shift) as usize;
        loop {
            let mut line = *self.lines.get(at);
            let mut words = line.iter_mut();
            if let Some(word) = words.find(|word| **word == FREE || !**word >> RANK_BITS == key) {
                *word = !(key << RANK_BITS | u64::from(rank));
                self.lines.set(at, line);
                return;
            }
            at += 1;
        }
    }

    /// The rank of a pair's merge; `NONE` when there is none.
    #[inline]
    pub(crate) fn rank(&self, left: u32, right: u32) -> u32 {
        let key = Self::key(left, right);
        let hash = self.hash(key);
        if self.filtered(hash) == 0 {
            return NONE;
        }
        self.find(key, hash)
    }

    /// The filter's bit of a hash, 0 or 1.
    #[inline]
    fn filtered(&self, hash: u64) -> u64 {
        let (word, bit) = self.filter_place(hash);
        self.filter[word] >> bit & 1
    }

    /// The word and the bit of it that stand for a hash in the filter.
    #[inline]
    fn filter_place(&self, hash: u64) -> (usize, u64) {
        let bit = hash >> self.filter_shift;
        ((bit / 64) as usize, bit % 64)
    }

    /// A bit for each pair of neighbors, at most [`SCAN_LIMIT`], set where they may have a rank, which
    /// [`Merges::rank_of_likely`] then tells. The memory for that is asked for.
    #[inline]
    pub(crate) fn likely(&self, symbols: &[u32]) -> u64 {
        let mut likely = 0;
        for (place, pair) in symbols.windows(2).take(SCAN_LIMIT).enumerate() {
            likely |= self.filtered(self.hash(Self::key(pair[0], pair[1]))) << place;
        }
        let mut asked = likely;
        while asked != 0 {
            let place = asked.trailing_zeros() as usize;
            asked &= asked - 1;
            self.prefetch(symbols[place], symbols[place + 1]);
        }
        likely
    }

    /// As `rank`, for a pair that may have one.
    #[inline]
    pub(crate) fn rank_of_likely(&self, left: u32, right: u32) -> u32 {
        let key = Self::key(left, right);
        self.find(key, self.hash(key))
    }

    #[inline]
    fn find(&self, key: u64, hash: u64) -> u32 {
        let mut at = (hash >> self.shift) as usize;
        loop {
            let line = self.lines.get(at);
            let mut found = FREE;
            for &word in line {
                found = if !word >> RANK_BITS == key {
                    word
                } else {
                    found
                };
            }
            if found != FREE {
                return (!found & ((1 << RANK_BITS) - 1)) as u32;
            }
            if line[7] == FREE {
                return NONE;
            }
            at += 1;
        }
    }

    /// Number of ranks.
    pub(crate) fn count(&self) -> usize {
        self.made.len()
    }

    /// The token that the merge of a rank makes.
    #[inline]
    pub(crate) fn made(&self, rank: u32) -> u32 {
        match self.offset {
            Some(offset) => rank + offset,
            None => self.made[rank as usize],
        }
    }

    /// The last merge that makes a token.
    #[inline]
    pub(crate) fn origin(&self, token: u32) -> Origin {
        self.origins
            .get(token as usize)
            .copied()
            .unwrap_or(NO_ORIGIN)
    }

    /// Looks whether the whole list can be undone in thought; to be called after the last `push`.
    pub(crate) fn finish(&mut self) {
        let ascending = self.origins.iter().all(|origin| {
            let before = |part: u32| self.origin(part).rank.wrapping_add(1) <= origin.rank;
            origin.rank == NONE || (before(origin.left) && before(origin.right))
        });
        self.unique &= ascending;
        let first = self.made.first().copied().unwrap_or(0);
        let consecutive = (first..).zip(&self.made).all(|(id, &made)| id == made);
        self.offset = consecutive.then_some(first);
    }

    /// Whether each token has one origin, of tokens made before it, so that what merging did can be undone.
    pub(crate) fn are_unique(&self) -> bool {
        self.unique
    }

    /// Whether merging the bytes of `left` and `right` end to end, with the merges of ranks below `limit`, gives
    /// `left` and `right` again.
    ///
    /// Both have to be what merging makes of their own bytes, and origins unique. Undoing the merges of both sides
    /// from the last to the first shows each pair of tokens that ever faced each other across the border; merging
    /// crosses it exactly when one of those pairs has a merge that goes before the next change on either side. Of
    /// equal ranks (one pair, overlapping itself) the left goes first.
    pub(crate) fn stay_apart(&self, left: u32, right: u32, limit: u32) -> bool {
        self.rank(left, right) >= limit && self.parts_stay_apart(left, right, limit)
    }

    /// As `stay_apart`, for two whose own merge is known to have no rank below `limit`.
    pub(crate) fn parts_stay_apart(&self, mut left: u32, mut right: u32, mut limit: u32) -> bool {
        loop {
            let (before, after) = (self.origin(left), self.origin(right));
            let rank = |origin: Origin| origin.rank.wrapping_add(1);
            if rank(before) == 0 && rank(after) == 0 {
                return true;
            }
            // An origin of rank NONE counts as 0 here: such a token was there from the start.
            if rank(before) > rank(after) {
                limit = limit.min(before.rank);
                left = before.right;
            } else {
                limit = limit.min(after.rank + 1);
                right = after.left;
            }
            if self.rank(left, right) < limit {
                return false;
            }
        }
    }
}
