//! A bounded memory of pieces and their tokens. It is exact: a key holds all of a piece.
//!
//! ```text
//! up to 15 bytes   one u128 (the bytes, then 4 bits of token count and 4 of length), up to 4 tokens beside it;
//!                  two of these fill a line of memory, found by one multiplication; a line that is
//!                  full may use the one beside it
//! up to 255 bytes  a slot that points at the bytes and at the tokens; when they are full all is forgotten
//! ```
//!
//! Nothing here is shared: [`Pool`] lends whole caches, one to a call.

use std::sync::{Mutex, MutexGuard, TryLockError};

use crate::lines::{LINE, Lines};
use crate::simd::{self, Window};

/// Longest piece of the first part.
pub(crate) const SHORT: usize = 15;
/// Most tokens of the first part.
pub(crate) const INLINE: usize = 4;
/// Longest piece of the second part.
pub(crate) const LONG: usize = 255;
/// Bytes of text that a line is expected to be enough for, until it proves otherwise.
const LINE_PER_BYTES: usize = 64;
/// Most lines to begin with: two megabytes.
const MOST_FIRST_LINES: usize = 1 << 15;
/// Slots to begin with.
const FIRST_SLOTS: usize = 1 << 10;
/// How many slots a long piece may be away from its own.
const REACH: usize = 4;
const LENGTH_SHIFT: u32 = 56;
const COUNT_SHIFT: u32 = 60;

/// Most memory of all caches of one tokenizer.
pub const CACHE_BYTES: usize = 64 << 20;
/// Sizes of the caches that a tokenizer lends, in order; one is allocated when a call first needs it.
const SIZES: [(usize, usize); 2] = [(4, 12 << 20), (16, 1 << 20)];
const _: () = assert!(SIZES[0].0 * SIZES[0].1 + SIZES[1].0 * SIZES[1].1 <= CACHE_BYTES);

/// The key of a short piece: its bytes and its length.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Key {
    low: u64,
    high: u64,
}

/// For each length: which bytes of a window are kept, and the length where a key has it.
static MASKS: [[u64; 3]; SHORT + 1] = {
    let mut masks = [[0; 3]; SHORT + 1];
    let mut length = 0;
    while length <= SHORT {
        let kept = (1_u128 << (8 * length)) - 1;
        masks[length] = [
            kept as u64,
            (kept >> 64) as u64,
            (length as u64) << LENGTH_SHIFT,
        ];
        length += 1;
    }
    masks
};

/// Mixes two words into one.
#[inline(always)]
fn fold(low: u64, high: u64) -> u64 {
    let product =
        u128::from(low ^ 0x9e37_79b9_7f4a_7c15) * u128::from(high ^ 0xc2b2_ae3d_27d4_eb4f);
    (product >> 64) as u64 ^ product as u64
}

impl Key {
    /// The key of the first `length` bytes of `window`, 1 to 15 of them.
    #[inline(always)]
    pub(crate) fn new(window: &Window, length: usize) -> Self {
        debug_assert!((1..=SHORT).contains(&length));
        let word = u128::from_le_bytes(*window);
        let [low, high, mark] = MASKS[length & SHORT];
        Self {
            low: word as u64 & low,
            high: (word >> 64) as u64 & high | mark,
        }
    }

    pub(crate) fn words(self) -> [u64; 2] {
        [self.low, self.high]
    }

    #[inline(always)]
    pub(crate) fn hash(self) -> u64 {
        fold(self.low, self.high)
    }
}

/// Whether an entry of a line is that of `key`.
#[inline(always)]
fn holds(line: &[u64; LINE], way: usize, key: Key) -> bool {
    differs(line, way, key) == 0
}

/// As `holds`: zero if it is.
#[inline(always)]
fn differs(line: &[u64; LINE], way: usize, key: Key) -> u64 {
    let keep = (1 << COUNT_SHIFT) - 1;
    (line[2 * way] ^ key.low) | ((line[2 * way + 1] ^ key.high) & keep)
}

/// A line with its two entries exchanged.
#[inline(always)]
fn turned([a, b, c, d, e, f, g, h]: [u64; LINE]) -> [u64; LINE] {
    [c, d, a, b, g, h, e, f]
}

/// Up to four tokens, two in each word, the first lowest.
pub(crate) type Few = [u64; 2];

/// A cache that is only read: most pieces are found where their hash says, and need no more.
#[derive(Debug, Clone, Copy)]
pub(crate) struct View<'a> {
    lines: &'a [[u64; LINE]],
    slots: &'a [[u32; 4]],
}

impl View<'_> {
    #[inline(always)]
    fn line(&self, hash: u64) -> &[u64; LINE] {
        &self.lines[hash as usize & (self.lines.len() - 1)]
    }

    /// Asks for the memory that `short` will read.
    #[inline(always)]
    pub(crate) fn prefetch_short(&self, hash: u64) {
        simd::prefetch(self.line(hash));
    }

    /// Asks for the memory that `Cache::long` will read first.
    #[inline(always)]
    pub(crate) fn prefetch_long(&self, hash: u64) {
        simd::prefetch(&self.slots[hash as usize & (self.slots.len() - 1)]);
    }

    /// The tokens of a short piece that stands in its own line, and how many there are.
    #[inline(always)]
    pub(crate) fn short(&self, key: Key, hash: u64) -> Option<(Few, usize)> {
        let line = self.line(hash);
        let (first, second) = (differs(line, 0, key), differs(line, 1, key));
        if first.min(second) != 0 {
            return None;
        }
        let second = second == 0;
        // Which of the two it is cannot be guessed, so that is no branch.
        let way = std::hint::select_unpredictable(second, 2, 0);
        let high = std::hint::select_unpredictable(second, line[3], line[1]);
        let tokens = [line[4 + way], line[5 + way]];
        Some((tokens, (high >> COUNT_SHIFT) as usize))
    }
}

/// The tokens of many pieces.
#[derive(Debug)]
pub(crate) struct Cache {
    /// Two keys, then the tokens of each.
    lines: Lines,
    most_lines: usize,
    /// How many short pieces were forgotten since there are so many lines.
    forgotten: usize,
    /// Hash, places of the bytes and of the tokens, length and count; a length of 0 is a free slot. All slots that there
    /// may ever be: those beyond `slot_mask` are never touched, and so take no memory.
    slots: Vec<[u32; 4]>,
    slot_mask: usize,
    /// Slots taken since there are so many.
    taken: usize,
    /// Room for all from the first long piece on, which takes memory as it is filled.
    bytes: Vec<u8>,
    tokens: Vec<u32>,
    most_bytes: usize,
    /// Bytes of both that were in use when all was forgotten.
    used: usize,
}

impl Cache {
    /// A cache of at most `size` bytes, a third for short pieces, a sixth for slots, a quarter each for bytes and tokens;
    /// at first as much as a text of `expected` bytes is likely to need.
    fn new(size: usize, expected: usize) -> Self {
        let power = |count: usize| 1_usize << (usize::BITS - 1 - count.max(1).leading_zeros());
        let most_lines = power(size / 3 / (8 * LINE)).max(2);
        let lines = power(expected / LINE_PER_BYTES).clamp(2, most_lines.min(MOST_FIRST_LINES));
        let most_slots = power(size / 6 / 16);
        Self {
            lines: Lines::new(lines, most_lines),
            most_lines,
            forgotten: 0,
            slots: vec![[0; 4]; most_slots],
            slot_mask: most_slots.min(FIRST_SLOTS) - 1,
            taken: 0,
            bytes: Vec::new(),
            tokens: Vec::new(),
            most_bytes: size / 4,
            used: 0,
        }
    }

    /// A cache for one call.
    pub(crate) fn small() -> Self {
        Self::new(1 << 14, 1 << 14)
    }

    /// What is read most, for reading alone.
    #[inline(always)]
    pub(crate) fn view(&self) -> View<'_> {
        View {
            lines: self.lines.all(),
            slots: &self.slots[..=self.slot_mask],
        }
    }

    /// The tokens of a short piece and how many there are.
    pub(crate) fn short(&mut self, key: Key, hash: u64) -> Option<(Few, usize)> {
        self.view()
            .short(key, hash)
            .or_else(|| self.short_beside(key, hash))
    }

    /// As `short`, for an entry that had to leave its own line for the one beside it; it comes back.
    fn short_beside(&mut self, key: Key, hash: u64) -> Option<(Few, usize)> {
        let at = hash as usize;
        let (mut own, mut beside) = (*self.lines.get(at), *self.lines.get(at ^ 1));
        if !holds(&beside, 0, key) {
            if !holds(&beside, 1, key) {
                return None;
            }
            beside = turned(beside);
        }
        own = turned(own);
        for word in [0, 1, 4, 5] {
            std::mem::swap(&mut own[word], &mut beside[word]);
        }
        self.lines.set(at, own);
        self.lines.set(at ^ 1, turned(beside));
        Some(([own[4], own[5]], (own[1] >> COUNT_SHIFT) as usize))
    }

    /// Remembers the tokens of a short piece, up to 4 of them; none says that they are remembered as a long piece's.
    pub(crate) fn learn_short(&mut self, key: Key, tokens: &[u32]) {
        debug_assert!(tokens.len() <= INLINE);
        if self.forgotten > self.lines.len() / 16 && self.lines.len() < self.most_lines {
            self.double();
        }
        let token = |place: usize| u64::from(tokens.get(place).copied().unwrap_or(0));
        let high = key.high | (tokens.len() as u64) << COUNT_SHIFT;
        let values = [token(0) | token(1) << 32, token(2) | token(3) << 32];
        self.put(key, high, values);
    }

    /// Writes an entry at the beginning of its line. What stood last there goes to the line beside it, whose last entry
    /// is forgotten.
    fn put(&mut self, key: Key, high: u64, values: [u64; 2]) {
        let at = key.hash() as usize;
        let [a, b, low_out, high_out, c, d, first_out, second_out] = *self.lines.get(at);
        let [first, second] = values;
        self.lines
            .set(at, [key.low, high, a, b, first, second, c, d]);
        if high_out == 0 {
            return;
        }
        let mut beside = *self.lines.get(at ^ 1);
        let place = usize::from(beside[1] != 0);
        self.forgotten += usize::from(beside[2 * place + 1] != 0);
        (beside[2 * place], beside[2 * place + 1]) = (low_out, high_out);
        (beside[4 + 2 * place], beside[5 + 2 * place]) = (first_out, second_out);
        self.lines.set(at ^ 1, beside);
    }

    /// Twice as many lines, with the entries that there are.
    #[cold]
    fn double(&mut self) {
        let before = self.lines.len();
        self.lines.double();
        // What stands in two lines side by side goes to these, or to the two as far on as there were lines.
        for at in (0..before).step_by(2) {
            let pair = [*self.lines.get(at), *self.lines.get(at + 1)];
            self.lines.set(at, [0; LINE]);
            self.lines.set(at + 1, [0; LINE]);
            for line in pair {
                for way in [1, 0] {
                    let high = line[2 * way + 1];
                    if high != 0 {
                        let key = Key {
                            low: line[2 * way],
                            high: high & ((1 << COUNT_SHIFT) - 1),
                        };
                        self.put(key, high, [line[4 + 2 * way], line[5 + 2 * way]]);
                    }
                }
            }
        }
        self.forgotten = 0;
    }

    /// The hash of a piece that is not remembered by a key.
    #[inline]
    pub(crate) fn hash_of(piece: &[u8]) -> u64 {
        let (words, _) = piece.as_chunks::<16>();
        let half = |word: &[u8]| {
            word.first_chunk()
                .map_or(0, |half| u64::from_le_bytes(*half))
        };
        let mut hash = piece.len() as u64;
        for word in words {
            hash = fold(hash ^ half(&word[..8]), half(&word[8..]));
        }
        // The last sixteen bytes, which may overlap those before.
        let last = &piece[piece.len().saturating_sub(16)..];
        fold(hash ^ half(last), half(last.get(8..).unwrap_or_default()))
    }

    /// The tokens of a piece that is not remembered by a key.
    #[inline]
    pub(crate) fn long(&self, hash: u64, piece: &[u8]) -> Option<&[u32]> {
        for step in 0..REACH {
            let [tag, bytes, tokens, sizes] =
                self.slots[(hash as usize).wrapping_add(step) & self.slot_mask];
            // Behind a free slot another may still be taken: the number of slots has doubled.
            if tag == (hash >> 32) as u32 && (sizes & 0xffff) as usize == piece.len() {
                let start = bytes as usize;
                if self.bytes.get(start..start + piece.len()) == Some(piece) {
                    let start = tokens as usize;
                    return self.tokens.get(start..start + (sizes >> 16) as usize);
                }
            }
        }
        None
    }

    /// Remembers the tokens of a piece of up to 255 bytes.
    pub(crate) fn learn_long(&mut self, hash: u64, piece: &[u8], tokens: &[u32]) {
        if piece.len() > LONG || tokens.len() > LONG {
            return;
        }
        let full = self.bytes.len() + piece.len() > self.most_bytes
            || (self.tokens.len() + tokens.len()) * 4 > self.most_bytes;
        if full {
            self.used = self.long_bytes();
            self.slots[..=self.slot_mask].fill([0; 4]);
            self.taken = 0;
            self.bytes.clear();
            self.tokens.clear();
        }
        if self.bytes.capacity() == 0 {
            self.bytes.reserve_exact(self.most_bytes);
            self.tokens.reserve_exact(self.most_bytes / 4);
        }
        let slot = [
            (hash >> 32) as u32,
            self.bytes.len() as u32,
            self.tokens.len() as u32,
            piece.len() as u32 | (tokens.len() as u32) << 16,
        ];
        self.bytes.extend_from_slice(piece);
        self.tokens.extend_from_slice(tokens);
        if self.taken > self.slot_mask / 2 && self.slot_mask + 1 < self.slots.len() {
            self.double_slots();
        }
        self.take_slot(hash, slot);
    }

    /// Writes a slot where its hash wants it, over another when all places are taken.
    fn take_slot(&mut self, hash: u64, slot: [u32; 4]) {
        let at = |step: usize| (hash as usize).wrapping_add(step) & self.slot_mask;
        let free = (0..REACH).map(at).find(|&at| self.slots[at][3] == 0);
        self.taken += usize::from(free.is_some());
        let at = free.unwrap_or_else(|| at(slot[1] as usize % REACH));
        self.slots[at] = slot;
    }

    /// Twice as many slots, with what they point at.
    #[cold]
    fn double_slots(&mut self) {
        let before = self.slot_mask + 1;
        self.slot_mask = 2 * before - 1;
        for at in 0..before {
            let slot = self.slots[at];
            let start = slot[1] as usize;
            let length = (slot[3] & 0xffff) as usize;
            let Some(piece) = self.bytes.get(start..start + length) else {
                continue;
            };
            let hash = Self::hash_of(piece);
            // The first ones may be there because the last were taken.
            if length > 0 && (at < REACH || hash as usize & before != 0) {
                self.slots[at] = [0; 4];
                self.taken -= 1;
                self.take_slot(hash, slot);
            }
        }
    }

    /// Bytes of the long pieces and of their tokens.
    fn long_bytes(&self) -> usize {
        self.used.max(self.bytes.len() + self.tokens.len() * 4)
    }

    /// Bytes of memory taken.
    fn size(&self) -> usize {
        self.lines.len() * 8 * LINE + (self.slot_mask + 1) * 16 + self.long_bytes()
    }
}

/// The caches of one tokenizer: at most [`CACHE_BYTES`], each lent to one call at a time.
///
/// No call waits: where all are lent (or were, when the process forked), it works without one.
#[derive(Debug)]
pub(crate) struct Pool {
    caches: Vec<(usize, Mutex<Option<Box<Cache>>>)>,
}

/// A lent cache.
pub(crate) type Lent<'a> = MutexGuard<'a, Option<Box<Cache>>>;

impl Pool {
    pub(crate) fn new() -> Self {
        let sizes = SIZES
            .iter()
            .flat_map(|&(count, size)| std::iter::repeat_n(size, count));
        Self {
            caches: sizes.map(|size| (size, Mutex::new(None))).collect(),
        }
    }

    /// A cache that is free, allocated now if it never was, for a text of `expected` bytes.
    pub(crate) fn lend(&self, expected: usize) -> Option<Lent<'_>> {
        self.caches.iter().find_map(|(size, cache)| {
            let mut lent = match cache.try_lock() {
                Ok(lent) => lent,
                Err(TryLockError::Poisoned(poisoned)) => {
                    // A panic inside may have left half an entry: forget all.
                    let mut lent = poisoned.into_inner();
                    *lent = None;
                    cache.clear_poison();
                    lent
                }
                Err(TryLockError::WouldBlock) => return None,
            };
            lent.get_or_insert_with(|| Box::new(Cache::new(*size, expected)));
            Some(lent)
        })
    }

    /// Bytes of memory that the caches take now, those lent left out.
    pub(crate) fn size(&self) -> usize {
        let size = |cache: &Mutex<Option<Box<Cache>>>| {
            let cache = cache.try_lock().ok()?;
            cache.as_ref().map(|cache| cache.size())
        };
        self.caches
            .iter()
            .filter_map(|(_, cache)| size(cache))
            .sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashSet;

    fn tokens_of(piece: &[u8]) -> Vec<u32> {
        piece
            .chunks(4)
            .map(|part| part.iter().map(|&b| u32::from(b)).sum())
            .collect()
    }

    fn short(cache: &mut Cache, piece: &[u8]) -> Option<Vec<u32>> {
        let ([first, second], count) = cache.short(key(piece), key(piece).hash())?;
        let all = [
            first as u32,
            (first >> 32) as u32,
            second as u32,
            (second >> 32) as u32,
        ];
        Some(all[..count].to_vec())
    }

    fn key(piece: &[u8]) -> Key {
        let mut window = [0xaa; 16];
        window[..piece.len()].copy_from_slice(piece);
        Key::new(&window, piece.len())
    }

    proptest! {
        #[test]
        fn what_is_found_is_what_was_learnt(
            pieces in prop::collection::vec(prop::collection::vec(0_u8..3, 1..40), 1..300),
        ) {
            let mut cache = Cache::new(16 << 10, 1 << 10);
            let mut known = HashSet::new();
            for piece in pieces {
                let expected = tokens_of(&piece);
                if piece.len() <= SHORT && expected.len() <= INLINE {
                    if let Some(found) = short(&mut cache, &piece) {
                        prop_assert!(known.contains(&piece));
                        prop_assert_eq!(&found, &expected);
                    }
                    cache.learn_short(key(&piece), &expected);
                    prop_assert_eq!(short(&mut cache, &piece), Some(expected));
                } else {
                    let hash = Cache::hash_of(&piece);
                    if let Some(found) = cache.long(hash, &piece) {
                        prop_assert!(known.contains(&piece));
                        prop_assert_eq!(found, &expected[..]);
                    }
                    cache.learn_long(hash, &piece, &expected);
                    prop_assert_eq!(cache.long(hash, &piece), Some(&expected[..]));
                }
                known.insert(piece);
            }
        }
    }

    #[test]
    fn memory_stays_within_its_limit_whatever_is_learnt() {
        let size = 1 << 16;
        let mut cache = Cache::new(size, 0);
        for number in 0..100_000_u32 {
            let piece = number.to_le_bytes().repeat(4 + number as usize % 60);
            cache.learn_long(Cache::hash_of(&piece), &piece, &tokens_of(&piece));
            assert!(cache.size() <= size, "{} of {size}", cache.size());
        }
    }

    #[test]
    fn a_pool_lends_each_cache_once_and_no_more_than_it_has() {
        let pool = Pool::new();
        let count = SIZES.iter().map(|size| size.0).sum::<usize>();
        let lent: Vec<_> = std::iter::from_fn(|| pool.lend(1000)).collect();
        assert_eq!(lent.len(), count);
        drop(lent);
        assert!(pool.lend(1000).is_some());
        assert!(pool.size() <= CACHE_BYTES);
    }
}
