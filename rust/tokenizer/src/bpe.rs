//! Merging: the pair of lowest rank first, the leftmost of equals, until no pair has a rank.
//!
//! ```text
//! up to 64 symbols      one array of (rank, place), its minimum found anew for each merge
//! up to a window        a heap of (rank, place)
//! longer                windows of the piece, each merged alone and joined where merging cannot cross: linear
//! ```
//!
//! Joining rests on this: a row of tokens is what merging makes of its bytes exactly when any two neighbors are what
//! merging makes of theirs ([`Merges::stay_apart`]). The end of a window is therefore dropped, the next window starts
//! at the border before it, and the two tokens that meet there are asked. Where origins are not unique, or the asking
//! fails too often, the heap does the whole piece in n log n.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use crate::merges::{Merges, NONE, RANK_BITS};

/// Pieces of more symbols than this go through a heap: the scan's cost grows with the square.
pub(crate) const SCAN_LIMIT: usize = 64;
const PLACE_BITS: u32 = SCAN_LIMIT.trailing_zeros();
const _: () = assert!(RANK_BITS + PLACE_BITS < 31);
/// Behind every key.
const NO_KEY: i32 = i32::MAX;
/// Symbols of a window; four times the longest token if that is more.
const WINDOW: usize = 1024;
/// How many tokens at the end of a window are dropped.
const DROPPED: usize = 8;
/// How many merges of a long piece pass between two looks at the caller's wish to stop.
const POLL_INTERVAL: usize = 1 << 16;

/// The first ranks of a caller that has none nearer at hand than the merges.
pub(crate) const NOT_AT_HAND: Option<fn(usize) -> u32> = None;

/// Rank of a pair and place of its left symbol.
type Candidate = Reverse<(u32, u32)>;

/// Merges `symbols` in place as far as the list of merges allows; false when `stop` asked to give up.
///
/// `longest` is the number of symbols of the longest token; `first` tells the rank of the symbols at a place and behind
/// it, as `Merges::rank` does, where the caller has it nearer at hand than `merges`: else [`NOT_AT_HAND`].
pub(crate) fn apply(
    merges: &Merges,
    symbols: &mut Vec<u32>,
    longest: usize,
    first: Option<impl Fn(usize) -> u32>,
    stop: &mut dyn FnMut() -> bool,
) -> bool {
    let window = WINDOW.max(longest.saturating_mul(4));
    if symbols.len() <= SCAN_LIMIT {
        by_scan(merges, symbols, first);
        true
    } else if symbols.len() > window && merges.are_unique() {
        by_windows(merges, symbols, window, stop)
    } else {
        by_heap(merges, symbols, stop)
    }
}

/// The key of a pair of rank `rank` at `place`, or the greatest key without a rank. Keys have a sign, which they do not
/// use, because every x86-64 processor compares such numbers four at a time.
#[inline]
fn key(rank: u32, place: usize) -> i32 {
    if rank == NONE {
        NO_KEY
    } else {
        (rank << PLACE_BITS | place as u32) as i32
    }
}

/// The least of the first `rows` times eight keys, at least one row.
#[inline]
fn least(keys: &[i32; SCAN_LIMIT], rows: usize) -> i32 {
    let (keys, _) = keys.as_chunks::<8>();
    let mut lanes = keys[0];
    for row in &keys[1..rows] {
        for (lane, &other) in lanes.iter_mut().zip(row) {
            *lane = (*lane).min(other);
        }
    }
    let [a, b, c, d, e, f, g, h] = lanes;
    let fours = [a.min(e), b.min(f), c.min(g), d.min(h)];
    let twos = [fours[0].min(fours[2]), fours[1].min(fours[3])];
    twos[0].min(twos[1])
}

fn by_scan(merges: &Merges, symbols: &mut Vec<u32>, first: Option<impl Fn(usize) -> u32>) {
    let count = symbols.len();
    if count < 2 {
        return;
    }
    let mut keys = [NO_KEY; SCAN_LIMIT];
    let mut next = [0_u8; SCAN_LIMIT];
    let mut previous = [0_u8; SCAN_LIMIT];
    for place in 0..count {
        next[place] = (place + 1) as u8;
        previous[place] = place.wrapping_sub(1) as u8;
    }
    if let Some(first) = first {
        for (place, slot) in keys[..count - 1].iter_mut().enumerate() {
            *slot = key(first(place), place);
        }
    } else {
        let mut likely = merges.likely(symbols);
        while likely != 0 {
            let place = likely.trailing_zeros() as usize;
            likely &= likely - 1;
            let rank = merges.rank_of_likely(symbols[place], symbols[place + 1]);
            keys[place] = key(rank, place);
        }
    }
    let rows = (count - 1).div_ceil(8);
    let mut best = least(&keys, rows);
    while best != NO_KEY {
        let left = (best as usize) % SCAN_LIMIT;
        let right = next[left] as usize;
        let token = merges.made(best as u32 >> PLACE_BITS);
        symbols[left] = token;
        let after = next[right] as usize;
        let before = previous[left] as usize;
        // Both are asked for before one is looked at: neither can be guessed, and both are far away in the caches.
        if after < count {
            merges.prefetch(token, symbols[after]);
        }
        if left > 0 {
            merges.prefetch(symbols[before], token);
            keys[before] = NO_KEY;
        }
        // The least of the others is found meanwhile.
        keys[left] = NO_KEY;
        keys[right] = NO_KEY;
        best = least(&keys, rows);
        next[left] = after as u8;
        if after < count {
            previous[after] = left as u8;
            keys[left] = key(merges.rank(token, symbols[after]), left);
            best = best.min(keys[left]);
        }
        if left > 0 {
            keys[before] = key(merges.rank(symbols[before], token), before);
            best = best.min(keys[before]);
        }
    }
    let (mut from, mut to) = (0, 0);
    while from < count {
        symbols[to] = symbols[from];
        from = next[from] as usize;
        to += 1;
    }
    symbols.truncate(to);
}

fn by_heap(merges: &Merges, symbols: &mut Vec<u32>, stop: &mut dyn FnMut() -> bool) -> bool {
    let length = symbols.len();
    let mut links = Links::new(length);
    let candidate = |symbols: &[u32], left: usize, right: usize| -> Option<Candidate> {
        let rank = merges.rank(symbols[left], symbols[right]);
        (rank != NONE).then_some(Reverse((rank, left as u32)))
    };
    let mut candidates = Vec::with_capacity(length);
    for index in 0..length.saturating_sub(1) {
        if index % POLL_INTERVAL == POLL_INTERVAL - 1 && stop() {
            return false;
        }
        candidates.extend(candidate(symbols, index, index + 1));
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
        if merges.rank(symbols[left], symbols[right]) != rank {
            continue;
        }
        symbols[left] = merges.made(rank);
        symbols[right] = NONE;
        links.remove(right);
        let (before, after) = (links.previous[left] as usize, links.next[left] as usize);
        if after < length {
            queue.extend(candidate(symbols, left, after));
        }
        if before < length {
            queue.extend(candidate(symbols, before, left));
        }
    }
    symbols.retain(|&symbol| symbol != NONE);
    true
}

/// As `by_heap`, a window at a time. `window` is at least twice `DROPPED` and the longest token.
fn by_windows(
    merges: &Merges,
    symbols: &mut Vec<u32>,
    window: usize,
    stop: &mut dyn FnMut() -> bool,
) -> bool {
    let mut done: Vec<u32> = Vec::new();
    // Where each token of `done` starts in `symbols`.
    let mut starts: Vec<u32> = Vec::new();
    let mut ends = Vec::new();
    let mut part = Vec::with_capacity(window);
    let mut at = 0;
    let mut retreats = 0;
    let mut polled = 0;
    while at < symbols.len() {
        if at >= polled + POLL_INTERVAL {
            polled = at;
            if stop() {
                return false;
            }
        }
        let end = symbols.len().min(at + window);
        part.clear();
        part.extend_from_slice(&symbols[at..end]);
        by_heap(merges, &mut part, &mut || false);
        if let (Some(&last), Some(&first)) = (done.last(), part.first())
            && !merges.stay_apart(last, first, NONE)
        {
            done.pop();
            at = starts.pop().map_or(0, |start| start as usize);
            retreats += 1;
            if retreats > 16 + symbols.len() / 64 {
                return by_heap(merges, symbols, stop);
            }
            continue;
        }
        let kept = if end == symbols.len() {
            part.len()
        } else {
            part.len().saturating_sub(DROPPED).max(1)
        };
        token_ends(merges, &symbols[at..end], &part[..kept], &mut ends);
        let mut start = at;
        for (&token, &width) in part[..kept].iter().zip(&ends) {
            done.push(token);
            starts.push(start as u32);
            start += width as usize;
        }
        at = start;
    }
    *symbols = done;
    true
}

/// How many symbols each of `tokens` covers: its origins are undone until the symbols appear.
fn token_ends(merges: &Merges, symbols: &[u32], tokens: &[u32], widths: &mut Vec<u32>) {
    widths.clear();
    let mut at = 0;
    let mut stack = Vec::new();
    for &token in tokens {
        let start = at;
        stack.push(token);
        while let Some(part) = stack.pop() {
            if symbols.get(at) == Some(&part) {
                at += 1;
                continue;
            }
            let origin = merges.origin(part);
            if origin.rank == NONE {
                // Not reached: each token was made of these symbols.
                at += 1;
                continue;
            }
            stack.push(origin.right);
            stack.push(origin.left);
        }
        widths.push((at - start) as u32);
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
    fn naive(merges: &HashMap<(u32, u32), (u32, u32)>, symbols: &[u32]) -> Vec<u32> {
        let mut symbols = symbols.to_vec();
        loop {
            let best = symbols
                .windows(2)
                .enumerate()
                .filter_map(|(index, pair)| {
                    merges
                        .get(&(pair[0], pair[1]))
                        .map(|&(rank, token)| (rank, index, token))
                })
                .min();
            let Some((_, index, token)) = best else {
                return symbols;
            };
            symbols.splice(index..index + 2, [token]);
        }
    }

    type Definition = HashMap<(u32, u32), (u32, u32)>;

    fn build(triples: &[(u32, u32, u32)]) -> (Merges, Definition) {
        let mut table = Merges::with_capacity(triples.len(), 512);
        let mut map = HashMap::new();
        for (rank, &(left, right, token)) in triples.iter().enumerate() {
            table.push(left, right, token);
            map.insert((left, right), (rank as u32, token));
        }
        table.finish();
        (table, map)
    }

    proptest! {
        #[test]
        fn scan_and_heap_equal_the_definition(
            pairs in prop::collection::vec((0u32..24, 0u32..24), 0..80),
            symbols in prop::collection::vec(0u32..6, 1..200),
        ) {
            let triples: Vec<_> = pairs.iter().enumerate()
                .map(|(rank, &(left, right))| (left, right, 6 + rank as u32 % 18)).collect();
            let (table, map) = build(&triples);
            let expected = naive(&map, &symbols);
            let mut by_heap_result = symbols.clone();
            prop_assert!(by_heap(&table, &mut by_heap_result, &mut || false));
            prop_assert_eq!(&by_heap_result, &expected);
            if symbols.len() <= SCAN_LIMIT {
                let mut by_scan_result = symbols;
                by_scan(&table, &mut by_scan_result, NOT_AT_HAND);
                prop_assert_eq!(&by_scan_result, &expected);
            }
        }

        #[test]
        fn windows_equal_the_definition(
            // Each merge makes a new token of any two before it, so ranks may lie in any order.
            pairs in prop::collection::vec((any::<u32>(), any::<u32>()), 0..40),
            shuffle in any::<u64>(),
            symbols in prop::collection::vec(0u32..3, 1..400),
        ) {
            let mut triples = Vec::new();
            let mut seen = std::collections::HashSet::new();
            for (index, &(left, right)) in pairs.iter().enumerate() {
                let token = 3 + index as u32;
                let pair = (left % token, right % token);
                if seen.insert(pair) {
                    triples.push((pair.0, pair.1, token));
                }
            }
            if shuffle % 2 == 0 && triples.len() > 1 {
                let length = triples.len();
                triples.swap((shuffle >> 1) as usize % length, (shuffle >> 20) as usize % length);
            }
            let (table, map) = build(&triples);
            let expected = naive(&map, &symbols);
            prop_assume!(table.are_unique());
            for window in [40, 64, 150] {
                let mut result = symbols.clone();
                prop_assert!(by_windows(&table, &mut result, window, &mut || false));
                prop_assert_eq!(&result, &expected, "window {}", window);
            }
        }
    }

    #[test]
    fn a_long_piece_stops_when_asked() {
        let (table, _) = build(&[(0, 0, 1)]);
        assert!(!apply(
            &table,
            &mut vec![0; 4 * POLL_INTERVAL],
            2,
            NOT_AT_HAND,
            &mut || true
        ));
        assert!(!by_heap(
            &table,
            &mut vec![0; 4 * POLL_INTERVAL],
            &mut || true
        ));
    }
}
