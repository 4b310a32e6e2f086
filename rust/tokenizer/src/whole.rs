//! Tokens of up to 15 bytes by their bytes: those that merging makes of a piece which is spelled like them.
//!
//! A vocabulary may hold tokens that merging never reaches, so each is proved first, in the order of the merges: a
//! token is reached when both of its parts are, and no merge of a lower rank crosses the border between them.
//!
//! Some files say that a piece which is spelled like a token is that token, reached or not (`ignore_merges`). Then all
//! are here, and [`LongWhole`] has those of more bytes.

use crate::cache::{Key, SHORT};
use crate::lines::Lines;
use crate::merges::{Merges, NONE};
use crate::pieces::{Index, Strings};
use crate::simd::{last_window, prefetch};

/// Keys of a line; their tokens follow.
const KEYS: usize = 3;
/// Tokens that wait for memory at once.
const WAITING: usize = 16;

/// The table: at most two thirds full.
#[derive(Debug)]
pub(crate) struct Whole {
    lines: Lines,
}

impl Whole {
    /// All tokens that merging reaches, of those that `strings` has the bytes of; none when that cannot be proved.
    pub(crate) fn new(merges: &Merges, strings: &Strings) -> Self {
        let count = if merges.are_unique() {
            merges.count()
        } else {
            0
        };
        let lines = (count / 2).next_power_of_two().max(2);
        let mut whole = Self {
            lines: Lines::new(lines, lines),
        };
        let mut reached = vec![false; strings.len()];
        // Each waits until its line has come from memory.
        let mut waiting = [None; WAITING];
        let mut next = 0;
        for rank in 0..count as u32 {
            let token = merges.made(rank);
            let origin = merges.origin(token);
            let part = |id: u32| reached[id as usize] || merges.origin(id).rank == NONE;
            // A rank whose merge was replaced by a later one of the same pair made nothing.
            if origin.rank != rank || !part(origin.left) || !part(origin.right) {
                continue;
            }
            if !merges.parts_stay_apart(origin.left, origin.right, rank) {
                continue;
            }
            reached[token as usize] = true;
            if let Some(bytes) = strings.get(token).filter(|bytes| bytes.len() <= SHORT) {
                let key = Key::new(&last_window(bytes, 0), bytes.len());
                whole.prefetch(key.hash());
                if let Some((key, token)) = waiting[next].replace((key, token)) {
                    whole.insert(key, token);
                }
                next = (next + 1) % WAITING;
            }
        }
        for (key, token) in waiting.into_iter().flatten() {
            whole.insert(key, token);
        }
        whole
    }

    /// All tokens that `strings` has the bytes of.
    pub(crate) fn all(strings: &Strings) -> Self {
        let count = strings.len();
        let lines = (count / 2).next_power_of_two().max(2);
        let mut whole = Self {
            lines: Lines::new(lines, lines),
        };
        for id in 0..count as u32 {
            if let Some(bytes) = strings
                .get(id)
                .filter(|bytes| (1..=SHORT).contains(&bytes.len()))
            {
                whole.insert(Key::new(&last_window(bytes, 0), bytes.len()), id);
            }
        }
        whole
    }

    fn insert(&mut self, key: Key, token: u32) {
        let [low, high] = key.words();
        let mut at = key.hash() as usize;
        loop {
            let mut line = *self.lines.get(at);
            if let Some(place) = (0..KEYS).find(|place| line[2 * place + 1] == 0) {
                line[2 * place] = low;
                line[2 * place + 1] = high;
                line[6 + place / 2] |= u64::from(token) << (32 * (place % 2));
                self.lines.set(at, line);
                return;
            }
            at = at.wrapping_add(1);
        }
    }

    /// Asks for the memory that `get` will read.
    #[inline(always)]
    pub(crate) fn prefetch(&self, hash: u64) {
        prefetch(self.lines.get(hash as usize));
    }

    /// The token of a piece that is one token.
    pub(crate) fn get(&self, key: Key) -> Option<u32> {
        let [low, high] = key.words();
        let mut at = key.hash() as usize;
        loop {
            let line = self.lines.get(at);
            for place in 0..KEYS {
                if (line[2 * place] ^ low) | (line[2 * place + 1] ^ high) == 0 {
                    return Some((line[6 + place / 2] >> (32 * (place % 2))) as u32);
                }
            }
            if line[2 * KEYS - 1] == 0 {
                return None;
            }
            at = at.wrapping_add(1);
        }
    }
}

/// Tokens of more than 15 bytes by their bytes.
#[derive(Debug)]
pub(crate) struct LongWhole {
    index: Index,
    longest: usize,
}

impl LongWhole {
    /// All tokens that `strings` has the bytes of.
    pub(crate) fn all(strings: &Strings) -> Self {
        let long = |id: &u32| strings.get(*id).is_some_and(|bytes| bytes.len() > SHORT);
        let ids: Vec<u32> = (0..strings.len() as u32).filter(long).collect();
        let mut index = Index::with_capacity(ids.len());
        let mut longest = 0;
        for id in ids {
            longest = longest.max(strings.get(id).map_or(0, <[u8]>::len));
            index.insert(id, strings);
        }
        Self { index, longest }
    }

    pub(crate) fn get(&self, piece: &[u8], strings: &Strings) -> Option<u32> {
        let fits = (SHORT + 1..=self.longest).contains(&piece.len());
        fits.then(|| self.index.get(piece, strings)).flatten()
    }
}
