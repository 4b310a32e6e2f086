//! Sixteen numbers at a time: what a tier must be able to do for `pass.rs`.
//!
//! A value of an implementing type is a proof that the processor has the tier's instructions; that is why the methods
//! are safe. Every one of them is exact or rounds once to nearest even, so all tiers give the same bits.

use crate::lane_scores::flip;

/// Numbers per vector, and per row of scratch memory.
pub(crate) const WIDTH: usize = 16;
/// Candidates that a row may have before it is chosen from one expert at a time.
pub(crate) const CANDIDATES: usize = 64;

/// The experts of a row that may be among its best, in ascending order of their index.
pub(crate) struct Candidates {
    /// How many were found; more than [`CANDIDATES`] were not all kept.
    pub(crate) found: usize,
    /// Their orders; behind the last one is anything.
    pub(crate) orders: [i32; CANDIDATES + WIDTH],
    /// Their indices.
    pub(crate) indices: [i32; CANDIDATES + WIDTH],
}

impl Candidates {
    /// No candidates.
    pub(crate) const EMPTY: Self = Self {
        found: 0,
        orders: [0; CANDIDATES + WIDTH],
        indices: [0; CANDIDATES + WIDTH],
    };

    /// Where the next `N` numbers go; behind the last kept one if there is no room left.
    #[inline(always)]
    pub(crate) fn room<const N: usize>(&mut self) -> (&mut [i32; N], &mut [i32; N]) {
        let start = self.found.min(CANDIDATES);
        let orders = self.orders[start..].first_chunk_mut();
        let indices = self.indices[start..].first_chunk_mut();
        match (orders, indices) {
            (Some(orders), Some(indices)) => (orders, indices),
            _ => unreachable!("N is at most WIDTH, and WIDTH numbers have room behind CANDIDATES"),
        }
    }
}

/// Vectors of sixteen numbers.
pub(crate) trait Lanes: Copy {
    /// Sixteen float32.
    type Float: Copy;
    /// Sixteen int32; arithmetic wraps.
    type Int: Copy;
    /// Sixteen truth values.
    type Mask: Copy;

    fn splat(self, value: f32) -> Self::Float;
    fn load(self, from: &[f32; WIDTH]) -> Self::Float;
    fn store(self, value: Self::Float, to: &mut [f32; WIDTH]);
    fn add(self, a: Self::Float, b: Self::Float) -> Self::Float;
    fn sub(self, a: Self::Float, b: Self::Float) -> Self::Float;
    fn mul(self, a: Self::Float, b: Self::Float) -> Self::Float;
    fn div(self, a: Self::Float, b: Self::Float) -> Self::Float;
    fn sqrt(self, a: Self::Float) -> Self::Float;
    /// The larger of two numbers; anything if one is NaN.
    fn max(self, a: Self::Float, b: Self::Float) -> Self::Float;
    fn bits(self, a: Self::Float) -> Self::Int;
    fn with_bits(self, a: Self::Int) -> Self::Float;
    /// The largest of sixteen numbers that are not NaN.
    fn largest(self, a: Self::Float) -> f32;
    /// The sum: lanes 8 apart first, then 4, 2 and 1 apart.
    fn tree_sum(self, a: Self::Float) -> f32;

    fn int_splat(self, value: i32) -> Self::Int;
    fn int_load(self, from: &[i32; WIDTH]) -> Self::Int;
    fn int_store(self, value: Self::Int, to: &mut [i32; WIDTH]);
    fn int_add(self, a: Self::Int, b: Self::Int) -> Self::Int;
    fn int_sub(self, a: Self::Int, b: Self::Int) -> Self::Int;
    fn and(self, a: Self::Int, b: Self::Int) -> Self::Int;
    fn or(self, a: Self::Int, b: Self::Int) -> Self::Int;
    fn xor(self, a: Self::Int, b: Self::Int) -> Self::Int;
    fn shift_left_23(self, a: Self::Int) -> Self::Int;
    /// Halves, rounding down.
    fn halve(self, a: Self::Int) -> Self::Int;
    /// All bits where negative, none elsewhere.
    fn sign(self, a: Self::Int) -> Self::Int;
    fn int_max(self, a: Self::Int, b: Self::Int) -> Self::Int;
    fn int_min(self, a: Self::Int, b: Self::Int) -> Self::Int;

    fn greater(self, a: Self::Int, b: Self::Int) -> Self::Mask;
    fn choose(self, mask: Self::Mask, yes: Self::Int, no: Self::Int) -> Self::Int;
    /// Adds one where the mask is set.
    fn count(self, sum: Self::Int, mask: Self::Mask) -> Self::Int;
    /// The smallest of sixteen numbers.
    fn smallest(self, a: Self::Int) -> i32;
    /// Bit `i` is lane `i`.
    fn mask_bits(self, mask: Self::Mask) -> u32;

    /// The two largest of sixteen pairs `(first, second)`, where no lane's second is larger than its first.
    fn top_two(self, first: Self::Int, second: Self::Int) -> (i32, i32);

    /// As [`Lanes::top_two`] for eight groups at once: the first and the second of each.
    #[inline(always)]
    fn top_two_of_eight(
        self,
        first: &[[i32; WIDTH]; 8],
        second: &[[i32; WIDTH]; 8],
        best: &mut [i32; 8],
        next: &mut [i32; 8],
    ) {
        for group in 0..8 {
            (best[group], next[group]) =
                self.top_two(self.int_load(&first[group]), self.int_load(&second[group]));
        }
    }

    /// Adds the lanes above `below` to the candidates; lane `i` is expert `start + i`.
    fn collect(self, orders: Self::Int, below: Self::Int, start: i32, candidates: &mut Candidates);

    /// As [`Lanes::collect`], for consecutive vectors; the first lane is expert `start`.
    #[inline(always)]
    fn collect_all(
        self,
        orders: &[[i32; WIDTH]],
        below: Self::Int,
        start: usize,
        candidates: &mut Candidates,
    ) {
        for (number, orders) in orders.iter().enumerate() {
            let start = (start + number * WIDTH) as i32;
            self.collect(self.int_load(orders), below, start, candidates);
        }
    }

    /// Writes the columns of sixteen rows as rows.
    #[inline(always)]
    fn transpose(self, from: &[&[f32; WIDTH]; WIDTH], to: &mut [[f32; WIDTH]; WIDTH]) {
        for (column, to) in to.iter_mut().enumerate() {
            for (to, row) in to.iter_mut().zip(from) {
                *to = row[column];
            }
        }
    }

    /// Puts every expert into the sorted list of each lane: `best` are its orders, largest first, `places` their experts.
    /// An equal order stays behind the ones before it. The order of a score is that of its sum with a bias.
    #[inline(always)]
    fn insert_all<const N: usize>(
        self,
        scores: &[[f32; WIDTH]],
        bias: Option<&[f32]>,
        best: &mut [[i32; WIDTH]; N],
        places: &mut [[i32; WIDTH]; N],
    ) {
        let mut lists = [(self.int_splat(i32::MIN), self.int_splat(0)); N];
        for (expert, score) in scores.iter().enumerate() {
            let score = self.load(score);
            let order = match bias {
                None => self.bits(score),
                Some(bias) => flip(self, self.bits(self.add(score, self.splat(bias[expert])))),
            };
            let expert = self.int_splat(expert as i32);
            let mut beaten = self.greater(order, lists[N - 1].0);
            for place in (1..N).rev() {
                let (before, of_before) = lists[place - 1];
                let (here, of_here) = lists[place];
                let beats_before = self.greater(order, before);
                let moved = self.choose(beats_before, of_before, expert);
                lists[place] = (
                    self.int_max(here, self.int_min(before, order)),
                    self.choose(beaten, moved, of_here),
                );
                beaten = beats_before;
            }
            lists[0] = (
                self.int_max(lists[0].0, order),
                self.choose(beaten, expert, lists[0].1),
            );
        }
        for (place, (order, expert)) in lists.into_iter().enumerate() {
            self.int_store(order, &mut best[place]);
            self.int_store(expert, &mut places[place]);
        }
    }

    /// Stores the lowest byte of each lane.
    #[inline(always)]
    fn store_bytes(self, value: Self::Int, to: &mut [u8; WIDTH]) {
        let mut lanes = [0; WIDTH];
        self.int_store(value, &mut lanes);
        for (to, lane) in to.iter_mut().zip(lanes) {
            *to = lane as u8;
        }
    }
}
