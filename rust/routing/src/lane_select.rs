//! The best experts of one row, sixteen at a time: the choice of `select.rs`.

use crate::lane_scores::{INDEX, flip, is_nan};
use crate::route::Rule;
use crate::scores::Scoring;
use crate::select::{GroupScore, NEVER};
use crate::simd::lanes::{CANDIDATES, Candidates, Lanes, WIDTH};

/// Most experts per token, and groups, that vectors choose from.
pub(crate) const MOST: usize = WIDTH;

/// `LATER[i]` is one in the lanes behind lane `i`.
static LATER: [[i32; WIDTH]; WIDTH] = {
    let mut table = [[0; WIDTH]; WIDTH];
    let mut cell = 0;
    while cell < WIDTH * WIDTH {
        table[cell / WIDTH][cell % WIDTH] = (cell % WIDTH > cell / WIDTH) as i32;
        cell += 1;
    }
    table
};

/// How many of the first `N` values beat each one, where the first of equals wins. `memory` holds the values.
#[inline(always)]
fn ranks<L: Lanes, const N: usize>(l: L, values: L::Int, memory: &[i32; WIDTH]) -> L::Int {
    let mut ranks = l.int_splat(0);
    for lane in 0..N {
        let other = l.int_add(l.int_splat(memory[lane]), l.int_load(&LATER[lane]));
        ranks = l.count(ranks, l.greater(other, values));
    }
    ranks
}

/// Calls `$body` for each vector of a span of orders, with its first expert; lanes behind the span are barred.
macro_rules! for_each_order {
    ($l:expr, $orders:expr, $start:expr, $size:expr, |$at:ident, $vector:ident| $body:block) => {
        let (full, rest) = $orders[$start..$start + $size].as_chunks::<WIDTH>();
        for (number, vector) in full.iter().enumerate() {
            let ($at, $vector) = ($start + number * WIDTH, $l.int_load(vector));
            $body
        }
        if !rest.is_empty() {
            let $at = $start + full.len() * WIDTH;
            let mut vector = [NEVER; WIDTH];
            for (to, from) in vector.iter_mut().zip(rest) {
                *to = *from;
            }
            let $vector = $l.int_load(&vector);
            $body
        }
    };
}

/// The groups to keep of a row, as bits.
#[inline(always)]
pub(crate) fn best_groups<L: Lanes>(l: L, rule: &Rule, orders: &[i32]) -> u32 {
    let groups = rule.num_groups.min(MOST);
    let size = rule.num_experts / rule.num_groups;
    let (mut best, mut next) = ([NEVER; WIDTH], [NEVER; WIDTH]);
    if groups == 8 {
        let (mut firsts, mut seconds) = ([[0; WIDTH]; 8], [[0; WIDTH]; 8]);
        for group in 0..8 {
            let (first, second) = columns(l, orders, group * size, size);
            l.int_store(first, &mut firsts[group]);
            l.int_store(second, &mut seconds[group]);
        }
        if let (Some(best), Some(next)) = (best.first_chunk_mut(), next.first_chunk_mut()) {
            l.top_two_of_eight(&firsts, &seconds, best, next);
        }
    } else {
        for group in 0..groups {
            let (first, second) = columns(l, orders, group * size, size);
            (best[group], next[group]) = l.top_two(first, second);
        }
    }
    let (mut order, next) = (l.int_load(&best), l.int_load(&next));
    if rule.group_score == GroupScore::TopTwoSum {
        let both = l.greater(next, l.int_splat(NEVER));
        let sum = l.add(l.with_bits(flip(l, order)), l.with_bits(flip(l, next)));
        // Adding zero makes -0 equal to +0; inf - inf ranks last.
        let bits = l.bits(l.add(sum, l.splat(0.0)));
        let floor = l.int_splat(f32::NEG_INFINITY.to_bits() as i32);
        let bits = l.choose(is_nan(l, bits), floor, bits);
        order = l.choose(both, flip(l, bits), order);
        l.int_store(order, &mut best);
    }
    let ranks = if groups <= 8 {
        ranks::<L, 8>(l, order, &best)
    } else {
        ranks::<L, WIDTH>(l, order, &best)
    };
    l.mask_bits(l.greater(l.int_splat(rule.top_groups as i32), ranks))
}

/// The two best orders of each column of a group.
#[inline(always)]
fn columns<L: Lanes>(l: L, orders: &[i32], start: usize, size: usize) -> (L::Int, L::Int) {
    if size == 2 * WIDTH
        && let Some([a, b]) = orders[start..].as_chunks().0.first_chunk()
    {
        let (a, b) = (l.int_load(a), l.int_load(b));
        return (l.int_max(a, b), l.int_min(a, b));
    }
    let (mut first, mut second) = (l.int_splat(NEVER), l.int_splat(NEVER));
    for_each_order!(l, orders, start, size, |_at, vector| {
        second = l.int_max(second, l.int_min(first, vector));
        first = l.int_max(first, vector);
    });
    (first, second)
}

/// What is known of the choice of one row's experts.
pub(crate) struct Choice {
    /// Groups kept, as bits; all experts are one group if there are none.
    pub(crate) kept: u32,
    /// An order that at least `top_k` experts reach; `NEVER` if none is known.
    pub(crate) least: i32,
    candidates: Candidates,
    places: Places,
}

/// Where the candidate of each rank stands.
struct Places([u8; 256]);

impl Places {
    /// Sets the places of the first `N` candidates, by their ranks.
    #[inline(always)]
    fn put<L: Lanes, const N: usize>(&mut self, l: L, ranks: L::Int) {
        let mut slots = [0; WIDTH];
        l.store_bytes(ranks, &mut slots);
        for (place, slot) in slots.into_iter().enumerate().take(N) {
            self.0[slot as usize] = place as u8;
        }
    }
}

impl Choice {
    /// Memory for a choice.
    pub(crate) const EMPTY: Self = Self {
        kept: 1,
        least: NEVER,
        candidates: Candidates::EMPTY,
        places: Places([0; 256]),
    };

    /// Finds a threshold: the `top_k`-th best of the sixteen column maxima.
    #[inline(always)]
    pub(crate) fn find_least<L: Lanes>(&mut self, l: L, top_k: usize, size: usize, orders: &[i32]) {
        let mut most = l.int_splat(NEVER);
        let mut kept = self.kept;
        while kept != 0 {
            let start = kept.trailing_zeros() as usize * size;
            for_each_order!(l, orders, start, size, |_at, vector| {
                most = l.int_max(most, vector);
            });
            kept &= kept - 1;
        }
        let mut memory = [NEVER; WIDTH];
        l.int_store(most, &mut memory);
        let mut better = l.int_splat(0);
        for &other in &memory {
            better = l.count(better, l.greater(l.int_splat(other), most));
        }
        let among = l.greater(l.int_splat(top_k as i32), better);
        self.least = l.smallest(l.choose(among, most, l.int_splat(i32::MAX)));
    }

    /// Collects the experts that reach the threshold.
    #[inline(always)]
    pub(crate) fn collect<L: Lanes>(&mut self, l: L, size: usize, orders: &[i32]) {
        self.candidates.found = 0;
        // Orders above `NEVER` alone: there is no threshold below.
        let below = l.int_splat(self.least.saturating_sub(1));
        let mut kept = self.kept;
        while kept != 0 {
            let start = kept.trailing_zeros() as usize * size;
            let (full, rest) = orders[start..start + size].as_chunks();
            l.collect_all(full, below, start, &mut self.candidates);
            if !rest.is_empty() {
                let mut vector = [NEVER; WIDTH];
                for (to, from) in vector.iter_mut().zip(rest) {
                    *to = *from;
                }
                let start = (start + full.len() * WIDTH) as i32;
                l.collect(l.int_load(&vector), below, start, &mut self.candidates);
            }
            kept &= kept - 1;
        }
    }

    /// Puts the best candidates in order; whether there is a threshold and they are few enough.
    #[inline(always)]
    pub(crate) fn rank<L: Lanes>(&mut self, l: L) -> bool {
        let found = self.candidates.found;
        if self.least == NEVER || found > CANDIDATES {
            return false;
        }
        *self.candidates.room::<WIDTH>().0 = [NEVER; WIDTH];
        let (orders, _) = self.candidates.orders.as_chunks::<WIDTH>();
        if found <= WIDTH {
            let values = l.int_load(&orders[0]);
            if found <= 8 {
                self.places
                    .put::<L, 8>(l, ranks::<L, 8>(l, values, &orders[0]));
            } else {
                self.places
                    .put::<L, WIDTH>(l, ranks::<L, WIDTH>(l, values, &orders[0]));
            }
            return true;
        }
        for (block, values) in orders.iter().enumerate() {
            let start = block * WIDTH;
            if start >= found {
                break;
            }
            let values = l.int_load(values);
            let places = l.int_add(l.int_load(&INDEX), l.int_splat(start as i32));
            let mut ranks = l.int_splat(0);
            for (place, &other) in self.candidates.orders[..found].iter().enumerate() {
                let later = l.greater(places, l.int_splat(place as i32));
                let other = l.count(l.int_splat(other), later);
                ranks = l.count(ranks, l.greater(other, values));
            }
            let mut slots = [0; WIDTH];
            l.int_store(ranks, &mut slots);
            for (place, slot) in (start..).zip(slots) {
                self.places.0[slot as usize % 256] = place as u8;
            }
        }
        true
    }

    /// Writes the chosen experts and their weights.
    #[inline(always)]
    pub(crate) fn deliver<L: Lanes>(
        &self,
        l: L,
        rule: &Rule,
        scores: &[f32],
        weights: &mut [f32],
        indices: &mut [i32],
    ) {
        let mut chosen = [0.0; WIDTH];
        let places = chosen.iter_mut().zip(&self.places.0);
        for (index, (score, &place)) in indices.iter_mut().zip(places) {
            *index = self.candidates.indices[place as usize % CANDIDATES];
            *score = scores[*index as usize];
        }
        let weighting = rule.weighting;
        if weighting.normalize && rule.scoring == Scoring::SqrtSoftplus {
            // Infinite scores share the weight.
            weighting.apply(&mut chosen[..rule.top_k]);
        } else {
            let mut values = l.load(&chosen);
            if weighting.normalize {
                let mut total = chosen[0];
                for score in &chosen[1..rule.top_k] {
                    total += score;
                }
                values = l.div(values, l.splat(total + 1e-20));
            }
            l.store(l.mul(values, l.splat(weighting.scale)), &mut chosen);
        }
        put(&chosen, weights);
    }
}

/// Copies the first elements; the common numbers of experts per token without a call.
#[inline(always)]
fn put(from: &[f32; WIDTH], to: &mut [f32]) {
    macro_rules! fixed {
        ($count:literal) => {
            if let (Some(from), Some(to)) = (from.first_chunk::<$count>(), to.first_chunk_mut()) {
                *to = *from;
            }
        };
    }
    match to.len() {
        8 => fixed!(8),
        6 => fixed!(6),
        4 => fixed!(4),
        _ => {
            for (to, from) in to.iter_mut().zip(from) {
                *to = *from;
            }
        }
    }
}
