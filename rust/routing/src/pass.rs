//! One pass over a token, sixteen experts at a time: scores, groups, the best experts, weights, load.
//!
//! ```text
//! scores, orders    of all experts, as `scores.rs` and `select.rs` define them
//! groups            the two best orders of each, in the columns of a vector, then across it
//! threshold         the k-th best of the sixteen column maxima of what is kept: at least k orders are as good
//! candidates        orders at or above the threshold, about 11 for the best 8 whatever the number of experts
//! ranks             of each candidate: how many others beat it
//! ```
//!
//! Rows are *tame* when no logit is so large that an exponential could underflow and nothing is NaN or infinite; that
//! is found out on the way, and a row that is not is computed again with all cases minded. Shapes that the vectors do
//! not cover (more than 16 experts per token or 16 groups), rows with many ties and rows without enough experts are
//! chosen from by the specification.

use crate::route::{Job, Output, Rule, Scratch, count};
use crate::scores::{EXP, EXP_FLOOR, LN_2_HIGH, LN_2_LOW, LOG, ROUND, Scoring};
use crate::select::{GroupScore, NEVER};
use crate::simd::lanes::{CANDIDATES, Candidates, Lanes, WIDTH};

/// Below this size, an exponential of a logit is a normal number.
const TAME: f32 = 80.0;
/// Most experts per token, and groups, that vectors choose from.
const MOST: usize = WIDTH;

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
const INDEX: [i32; WIDTH] = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15];
const SIGN: i32 = i32::MIN;
const MAGNITUDE: i32 = i32::MAX;

/// Routes the rows of a job that was checked; the same bits as `route::rows`.
#[inline(always)]
pub(crate) fn rows<L: Lanes>(
    l: L,
    job: &Job<'_>,
    output: &mut Output<'_>,
    scratch: &mut Scratch<'_>,
) -> usize {
    let Job { rule, logits, bias } = *job;
    let experts = rule.num_experts;
    let scores = scratch.scores.as_chunks_mut().0;
    let finite_bias = bias.is_none_or(|bias| bias.iter().all(|bias| bias.is_finite()));
    let grouped = rule.top_groups < rule.num_groups;
    let covered = rule.top_k <= MOST && (!grouped || rule.num_groups <= MOST);
    let mut choice = Choice::new();
    let mut incomplete = 0;
    let outputs = output
        .weights
        .chunks_exact_mut(rule.top_k)
        .zip(output.indices.chunks_exact_mut(rule.top_k));
    for (token, (weights, indices)) in outputs.enumerate() {
        let row = logits.row(token, experts, scratch.widened);
        let orders = scratch.orders.as_chunks_mut().0;
        match bias {
            Some(bias) => score::<L, true>(l, rule.scoring, row, bias, finite_bias, scores, orders),
            None => score::<L, false>(l, rule.scoring, row, &[], true, scores, orders),
        }
        let chosen = covered
            && if grouped {
                choice.among_groups(l, rule, scratch.orders)
            } else {
                choice.among_all(l, rule.top_k, scratch.orders, experts)
            };
        if chosen {
            choice.deliver(l, rule, scores.as_flattened(), weights, indices);
        } else if !by_specification(
            rule,
            scores.as_flattened(),
            scratch.orders,
            weights,
            indices,
        ) {
            incomplete += 1;
            continue;
        }
        count(output.load.as_deref_mut(), indices);
    }
    incomplete
}

#[cold]
#[inline(never)]
fn by_specification(
    rule: &Rule,
    scores: &[f32],
    orders: &mut [i32],
    weights: &mut [f32],
    indices: &mut [i32],
) -> bool {
    let orders = &mut orders[..rule.num_experts];
    rule.choose(&scores[..rule.num_experts], orders, weights, indices)
}

type Floats = [[f32; WIDTH]];
type Ints = [[i32; WIDTH]];

/// Writes the scores and orders of one row, and `NEVER` behind the last expert.
#[inline(always)]
fn score<L: Lanes, const BIAS: bool>(
    l: L,
    scoring: Scoring,
    row: &[f32],
    bias: &[f32],
    finite_bias: bool,
    scores: &mut Floats,
    orders: &mut Ints,
) {
    match scoring {
        Scoring::Sigmoid => {
            if !(finite_bias && each::<L, BIAS, false, true>(l, row, bias, scores, orders)) {
                each::<L, BIAS, false, false>(l, row, bias, scores, orders);
            }
        }
        Scoring::SqrtSoftplus => {
            if !(finite_bias && each::<L, BIAS, true, true>(l, row, bias, scores, orders)) {
                each::<L, BIAS, true, false>(l, row, bias, scores, orders);
            }
        }
        Scoring::Softmax => {
            let (largest, size) = extremes(l, row);
            // Differences of two such logits are tame.
            if finite_bias && size <= TAME / 2.0 {
                softmax::<L, BIAS, true>(l, row, largest, bias, scores, orders);
            } else {
                softmax::<L, BIAS, false>(l, row, cleaned_largest(row), bias, scores, orders);
            }
        }
    }
}

/// Sixteen numbers from the start of a shorter slice.
#[inline(always)]
fn padded(values: &[f32]) -> [f32; WIDTH] {
    let mut block = [0.0; WIDTH];
    for (to, from) in block.iter_mut().zip(values) {
        *to = *from;
    }
    block
}

/// Calls `$body` with the number of each vector of a row, the vector, that of the bias, and how many lanes are
/// experts.
macro_rules! for_each_vector {
    ($row:expr, $bias:expr, $biased:expr, |$at:ident, $x:ident, $b:ident, $lanes:ident| $body:block) => {
        let (full, rest) = $row.as_chunks::<WIDTH>();
        let (full_bias, rest_bias) = $bias.as_chunks::<WIDTH>();
        for $at in 0..full.len() {
            let ($x, $lanes) = (&full[$at], None::<usize>);
            let $b = if $biased {
                &full_bias[$at]
            } else {
                &[0.0; WIDTH]
            };
            $body
        }
        if !rest.is_empty() {
            let ($at, $lanes) = (full.len(), Some(rest.len()));
            let ($x, $b) = (&padded(rest), &padded(rest_bias));
            $body
        }
    };
}

/// Scores that depend on one logit each; returns whether the row was tame, or had all cases minded.
#[inline(always)]
fn each<L: Lanes, const BIAS: bool, const SOFTPLUS: bool, const TAME_ROW: bool>(
    l: L,
    row: &[f32],
    bias: &[f32],
    scores: &mut Floats,
    orders: &mut Ints,
) -> bool {
    // The size of the largest logit, by its bits: those of a negative number grow with its size, and NaN comes last.
    let mut worst = l.int_splat(SIGN);
    for_each_vector!(row, bias, BIAS, |at, logits, bias, lanes| {
        let given = l.load(logits);
        let x = if TAME_ROW { given } else { cleaned(l, given) };
        let negative = l.or(l.bits(x), l.int_splat(SIGN));
        if TAME_ROW {
            worst = l.int_max(worst, negative);
        }
        let small = exp_nonpositive::<L, TAME_ROW>(l, l.from_bits(negative));
        let score = if SOFTPLUS {
            let positive = l.max(x, l.splat(0.0));
            l.sqrt(l.add(positive, log1p_unit(l, small)))
        } else {
            let one = l.splat(1.0);
            let minus = l.greater(l.int_splat(0), l.bits(x));
            let upper = l.from_bits(l.choose(minus, l.bits(small), l.bits(one)));
            l.div(upper, l.add(small, one))
        };
        finish::<L, BIAS, TAME_ROW>(
            l,
            given,
            score,
            bias,
            lanes,
            &mut scores[at],
            &mut orders[at],
        );
    });
    !TAME_ROW || l.mask_bits(l.greater(worst, l.int_splat((-TAME).to_bits() as i32))) == 0
}

/// The largest logit and the largest size of one; the size is NaN if a logit is.
#[inline(always)]
fn extremes<L: Lanes>(l: L, row: &[f32]) -> (f32, f32) {
    let mut largest = l.splat(f32::NEG_INFINITY);
    let mut worst = l.int_splat(0);
    for_each_vector!(row, &[0.0_f32; 0], false, |_at, logits, _bias, lanes| {
        let x = l.load(logits);
        let seen = match lanes {
            None => x,
            Some(lanes) => l.from_bits(only(l, lanes, l.bits(x), f32::NEG_INFINITY.to_bits())),
        };
        largest = l.max(largest, seen);
        worst = l.int_max(worst, l.and(l.bits(x), l.int_splat(MAGNITUDE)));
    });
    let mut sizes = [0; WIDTH];
    l.int_store(worst, &mut sizes);
    let size = sizes.into_iter().fold(0, i32::max);
    (l.largest(largest), f32::from_bits(size as u32))
}

fn cleaned_largest(row: &[f32]) -> f32 {
    row.iter().copied().fold(f32::NEG_INFINITY, f32::max)
}

#[inline(always)]
fn softmax<L: Lanes, const BIAS: bool, const TAME_ROW: bool>(
    l: L,
    row: &[f32],
    largest: f32,
    bias: &[f32],
    scores: &mut Floats,
    orders: &mut Ints,
) {
    let largest = l.splat(largest);
    let mut sum = l.splat(0.0);
    for_each_vector!(row, &[0.0_f32; 0], false, |at, logits, _bias, lanes| {
        let x = l.load(logits);
        let shifted = if TAME_ROW {
            l.sub(x, largest)
        } else {
            // inf - inf is taken as zero: the largest logits share the mass, whatever their size.
            let shifted = l.bits(l.sub(cleaned(l, x), largest));
            l.from_bits(l.choose(is_nan(l, shifted), l.int_splat(0), shifted))
        };
        let mut value = exp_nonpositive::<L, TAME_ROW>(l, shifted);
        if let Some(lanes) = lanes {
            value = l.from_bits(only(l, lanes, l.bits(value), 0));
        }
        l.store(value, &mut scores[at]);
        sum = l.add(sum, value);
    });
    let sum = l.splat(l.tree_sum(sum));
    for_each_vector!(row, bias, BIAS, |at, logits, bias, lanes| {
        let score = l.div(l.load(&scores[at]), sum);
        let given = l.load(logits);
        finish::<L, BIAS, TAME_ROW>(
            l,
            given,
            score,
            bias,
            lanes,
            &mut scores[at],
            &mut orders[at],
        );
    });
}

/// The first lanes, and `other` behind them.
#[inline(always)]
fn only<L: Lanes>(l: L, lanes: usize, values: L::Int, other: u32) -> L::Int {
    let inside = l.greater(l.int_splat(lanes as i32), l.int_load(&INDEX));
    l.choose(inside, values, l.int_splat(other as i32))
}

#[inline(always)]
fn is_nan<L: Lanes>(l: L, bits: L::Int) -> L::Mask {
    let size = l.and(bits, l.int_splat(MAGNITUDE));
    l.greater(size, l.int_splat(f32::INFINITY.to_bits() as i32))
}

/// NaN counts as negative infinity.
#[inline(always)]
fn cleaned<L: Lanes>(l: L, x: L::Float) -> L::Float {
    let bits = l.bits(x);
    let floor = l.int_splat(f32::NEG_INFINITY.to_bits() as i32);
    l.from_bits(l.choose(is_nan(l, bits), floor, bits))
}

/// Writes the scores and the orders of a vector of experts.
#[inline(always)]
fn finish<L: Lanes, const BIAS: bool, const TAME_ROW: bool>(
    l: L,
    given: L::Float,
    score: L::Float,
    bias: &[f32; WIDTH],
    lanes: Option<usize>,
    to_score: &mut [f32; WIDTH],
    to_order: &mut [i32; WIDTH],
) {
    l.store(score, to_score);
    // Scores are no negative zeros, so neither are their sums with a bias, and keys without one order themselves.
    let mut order = l.bits(score);
    if BIAS {
        let key = l.bits(l.add(score, l.load(bias)));
        order = flip(l, key);
        if !TAME_ROW {
            order = l.choose(is_nan(l, key), l.int_splat(NEVER), order);
        }
    }
    if !TAME_ROW {
        order = l.choose(is_nan(l, l.bits(given)), l.int_splat(NEVER), order);
    }
    if let Some(lanes) = lanes {
        order = only(l, lanes, order, NEVER as u32);
    }
    l.int_store(order, to_order);
}

/// Bits to orders and back.
#[inline(always)]
fn flip<L: Lanes>(l: L, bits: L::Int) -> L::Int {
    l.xor(bits, l.and(l.sign(bits), l.int_splat(MAGNITUDE)))
}

#[inline(always)]
fn horner<L: Lanes>(l: L, x: L::Float, coefficients: &[f32]) -> L::Float {
    let mut value = l.splat(coefficients[0]);
    for &next in &coefficients[1..] {
        value = l.add(l.mul(value, x), l.splat(next));
    }
    value
}

/// As `scores::exp_nonpositive`; tame numbers need no floor, and their power of two is added to the exponent.
#[inline(always)]
fn exp_nonpositive<L: Lanes, const TAME_ROW: bool>(l: L, x: L::Float) -> L::Float {
    let x = if TAME_ROW {
        x
    } else {
        l.max(x, l.splat(EXP_FLOOR))
    };
    let rounded = l.add(l.mul(x, l.splat(std::f32::consts::LOG2_E)), l.splat(ROUND));
    let steps = l.sub(rounded, l.splat(ROUND));
    let rest = l.sub(x, l.mul(steps, l.splat(LN_2_HIGH)));
    let rest = l.sub(rest, l.mul(steps, l.splat(LN_2_LOW)));
    let value = l.mul(horner(l, rest, &EXP), l.mul(rest, rest));
    let value = l.add(l.add(value, rest), l.splat(1.0));
    if TAME_ROW {
        // The lowest nine bits of `ROUND` are zero.
        return l.from_bits(l.int_add(l.bits(value), l.shift_left_23(l.bits(rounded))));
    }
    let exponent = l.int_sub(l.bits(rounded), l.int_splat(ROUND.to_bits() as i32));
    let half = l.halve(exponent);
    let rest = l.int_sub(exponent, half);
    let bias = l.int_splat(127);
    let value = l.mul(value, l.from_bits(l.shift_left_23(l.int_add(half, bias))));
    l.mul(value, l.from_bits(l.shift_left_23(l.int_add(rest, bias))))
}

/// As `scores::log1p_unit`.
#[inline(always)]
fn log1p_unit<L: Lanes>(l: L, x: L::Float) -> L::Float {
    let s = l.div(x, l.add(x, l.splat(2.0)));
    let z = l.mul(s, s);
    let double = l.add(s, s);
    l.add(l.mul(l.mul(horner(l, z, &LOG), z), double), double)
}

/// How many of the values beat each one, where the first of equals wins. `memory` holds the values.
#[inline(always)]
fn ranks<L: Lanes>(l: L, values: L::Int, memory: &[i32; WIDTH]) -> L::Int {
    let mut ranks = l.int_splat(0);
    for lane in 0..WIDTH {
        let other = l.int_add(l.int_splat(memory[lane]), l.int_load(&LATER[lane]));
        ranks = l.count(ranks, l.greater(other, values));
    }
    ranks
}

/// The choice of one row's experts, and its memory.
struct Choice {
    first: [[i32; WIDTH]; MOST],
    second: [[i32; WIDTH]; MOST],
    candidates: Candidates,
    best: [i32; WIDTH],
}

impl Choice {
    #[inline(always)]
    fn new() -> Self {
        Self {
            first: [[NEVER; WIDTH]; MOST],
            second: [[NEVER; WIDTH]; MOST],
            candidates: Candidates::new(),
            best: [0; WIDTH],
        }
    }

    /// Chooses from all experts; whether that could be done.
    #[inline(always)]
    fn among_all<L: Lanes>(&mut self, l: L, top_k: usize, orders: &[i32], experts: usize) -> bool {
        let vectors = &orders.as_chunks().0[..experts.div_ceil(WIDTH)];
        let mut most = l.int_splat(NEVER);
        for vector in vectors {
            most = l.int_max(most, l.int_load(vector));
        }
        let least = threshold(l, most, top_k);
        if least == NEVER {
            return false;
        }
        self.candidates.found = 0;
        let least = l.int_splat(least);
        for (number, vector) in vectors.iter().enumerate() {
            let start = (number * WIDTH) as i32;
            l.collect(l.int_load(vector), least, start, &mut self.candidates);
        }
        self.rank(l)
    }

    /// Chooses from the experts of the best groups; whether that could be done.
    #[inline(always)]
    fn among_groups<L: Lanes>(&mut self, l: L, rule: &Rule, orders: &[i32]) -> bool {
        let size = rule.num_experts / rule.num_groups;
        let mut kept = self.best_groups(l, rule, orders, size);
        let mut most = l.int_splat(NEVER);
        let mut rest = kept;
        while rest != 0 {
            most = l.int_max(
                most,
                l.int_load(&self.first[rest.trailing_zeros() as usize & 15]),
            );
            rest &= rest - 1;
        }
        let least = threshold(l, most, rule.top_k);
        if least == NEVER {
            return false;
        }
        self.candidates.found = 0;
        let least = l.int_splat(least);
        while kept != 0 {
            let start = kept.trailing_zeros() as usize * size;
            let mut at = 0;
            while at < size {
                let vector = l.int_load(window(orders, start + at));
                let vector = inside(l, vector, size - at);
                l.collect(vector, least, (start + at) as i32, &mut self.candidates);
                at += WIDTH;
            }
            kept &= kept - 1;
        }
        self.rank(l)
    }

    /// The groups to keep, as bits; `first` has the column maxima of each.
    #[inline(always)]
    fn best_groups<L: Lanes>(&mut self, l: L, rule: &Rule, orders: &[i32], size: usize) -> u32 {
        let groups = rule.num_groups.min(MOST);
        for group in 0..groups {
            let (mut first, mut second) = (l.int_splat(NEVER), l.int_splat(NEVER));
            let mut at = 0;
            while at < size {
                let vector = l.int_load(window(orders, group * size + at));
                let vector = inside(l, vector, size - at);
                second = l.int_max(second, l.int_min(first, vector));
                first = l.int_max(first, vector);
                at += WIDTH;
            }
            l.int_store(first, &mut self.first[group]);
            l.int_store(second, &mut self.second[group]);
        }
        let (mut best, mut next) = ([NEVER; WIDTH], [NEVER; WIDTH]);
        if groups == 8 {
            let (first, second) = (self.first.first_chunk(), self.second.first_chunk());
            if let (Some(first), Some(second)) = (first, second)
                && let (Some(best), Some(next)) = (best.first_chunk_mut(), next.first_chunk_mut())
            {
                l.top_two_of_eight(first, second, best, next);
            }
        } else {
            for group in 0..groups {
                (best[group], next[group]) = l.top_two(
                    l.int_load(&self.first[group]),
                    l.int_load(&self.second[group]),
                );
            }
        }
        let (mut order, next) = (l.int_load(&best), l.int_load(&next));
        if rule.group_score == GroupScore::TopTwoSum {
            let both = l.greater(next, l.int_splat(NEVER));
            let sum = l.add(l.from_bits(flip(l, order)), l.from_bits(flip(l, next)));
            // Adding zero makes -0 equal to +0; inf - inf ranks last.
            let bits = l.bits(l.add(sum, l.splat(0.0)));
            let floor = l.int_splat(f32::NEG_INFINITY.to_bits() as i32);
            let bits = l.choose(is_nan(l, bits), floor, bits);
            order = l.choose(both, flip(l, bits), order);
            l.int_store(order, &mut best);
        }
        let ranks = ranks(l, order, &best);
        l.mask_bits(l.greater(l.int_splat(rule.top_groups as i32), ranks))
    }

    /// Puts the best candidates in order; whether they were few enough.
    #[inline(always)]
    fn rank<L: Lanes>(&mut self, l: L) -> bool {
        let found = self.candidates.found;
        if found > CANDIDATES {
            return false;
        }
        *self.candidates.room::<WIDTH>().0 = [NEVER; WIDTH];
        let (orders, _) = self.candidates.orders.as_chunks::<WIDTH>();
        let (indices, _) = self.candidates.indices.as_chunks::<WIDTH>();
        if found <= WIDTH {
            let mut slots = [0; WIDTH];
            l.int_store(ranks(l, l.int_load(&orders[0]), &orders[0]), &mut slots);
            for (slot, index) in slots.into_iter().zip(indices[0]) {
                self.best[slot as usize % WIDTH] = index;
            }
            return true;
        }
        for (block, (values, indices)) in orders.iter().zip(indices).enumerate() {
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
            for (slot, &index) in slots.into_iter().zip(indices) {
                if (slot as usize) < WIDTH {
                    self.best[slot as usize] = index;
                }
            }
        }
        true
    }

    /// Writes the chosen experts and their weights.
    #[inline(always)]
    fn deliver<L: Lanes>(
        &self,
        l: L,
        rule: &Rule,
        scores: &[f32],
        weights: &mut [f32],
        indices: &mut [i32],
    ) {
        let mut chosen = [0.0; WIDTH];
        for (score, &index) in chosen.iter_mut().zip(&self.best[..rule.top_k]) {
            *score = scores[index as usize];
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
        put(&self.best, indices);
    }
}

/// Copies the first elements; the common numbers of experts per token without a call.
#[inline(always)]
fn put<T: Copy>(from: &[T; WIDTH], to: &mut [T]) {
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

/// Sixteen orders from the given one on; the scratch memory is long enough.
#[inline(always)]
fn window(orders: &[i32], start: usize) -> &[i32; WIDTH] {
    const NONE: [i32; WIDTH] = [NEVER; WIDTH];
    orders[start..].first_chunk().unwrap_or(&NONE)
}

/// Bars the lanes behind the first ones.
#[inline(always)]
fn inside<L: Lanes>(l: L, orders: L::Int, lanes: usize) -> L::Int {
    if lanes >= WIDTH {
        orders
    } else {
        only(l, lanes, orders, NEVER as u32)
    }
}

/// The `top_k`-th best of sixteen orders.
#[inline(always)]
fn threshold<L: Lanes>(l: L, orders: L::Int, top_k: usize) -> i32 {
    let mut memory = [NEVER; WIDTH];
    l.int_store(orders, &mut memory);
    let ranks = ranks(l, orders, &memory);
    let better = l.mask_bits(l.greater(l.int_splat(top_k as i32), ranks));
    let others = l.mask_bits(l.greater(l.int_splat(top_k as i32 - 1), ranks));
    memory[(better ^ others).trailing_zeros() as usize % WIDTH]
}
