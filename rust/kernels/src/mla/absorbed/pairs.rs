//! Attention on the cached rows themselves, with dot products of bfloat16 pairs.
//!
//! ```text
//! scores   a head's query and a cached row, along the row as the cache holds it: four heads by four keys at a time
//! weights  sixteen heads in the lanes of a register, key by key; rounded to bfloat16, and so is what they sum up to
//! sums     rows of two keys interleaved, once for all heads of the task, times the pair of their weights
//! ```
//!
//! Of an odd number of keys the last one stands beside zeros, not beside a row that may not be seen.
#![cfg(target_arch = "x86_64")]

#[allow(
    clippy::wildcard_imports,
    reason = "a list of instructions would say nothing"
)]
use std::arch::x86_64::*;

use abyssal_quant::Element;

use super::{HEADS, STATE, Step, chunk_start};
use crate::avx512::Avx512;
use crate::mla::arithmetic::Arithmetic;
use crate::mla::pairs::{
    LANES, NUMBERS, STRIP, Strips, Sums, To, dots, interleave, paired, round, sums, widened,
};
use crate::mla::work::{Holder, PairWork, Scratch};

/// Keys of a tile, counted from position 0; chunks are whole tiles. So many that the sums of a tile are worth reading
/// and writing, and that a strip of interleaved rows stays in the nearest cache.
const TILE: usize = 128;
/// Pairs of keys.
const PAIRS: usize = TILE / 2;

/// Keys whose scores are computed between two requests for rows.
const FEW: usize = 4;
/// Rows of a chunk's first tile that are asked for ahead; all others are, a tile ahead: half of them while scores are
/// computed and half while values are summed, when memory would rest.
const AHEAD: usize = 16;

/// A token, a chunk and some heads.
pub(super) struct AttendPairs<'a, T, O>(pub(super) &'a Step<'a, T, O>);

/// What a task's heads have seen; lanes beyond the last head hold anything.
struct States {
    largest: [f32; HEADS],
    total: [f32; HEADS],
}

impl<T: Element, O: Element> PairWork for AttendPairs<'_, T, O> {
    #[inline(always)]
    unsafe fn task(&self, number: usize) {
        let step = self.0;
        let (widths, heads) = (step.call.widths, step.call.sizes.heads);
        let groups = heads.div_ceil(HEADS);
        let (unit, first_head) = (number / groups, number % groups * HEADS);
        let count = HEADS.min(heads - first_head);
        let (index, chunk) = step.panel.units[unit];
        let query = &step.panel.queries[index];
        let width = widths.latent + widths.rope;
        let room = width.next_multiple_of(NUMBERS);
        let copied = if query.context.copies((width, room)) {
            TILE * room / 2
        } else {
            0
        };
        let parts = [copied, TILE * HEADS, PAIRS * HEADS, PAIRS * STRIP, HEADS];
        let mut scratch = Scratch::new(Holder::Task, parts.iter().sum());
        let [copies, scores, weights, strip, factors] = parts.map(|size| scratch.part(size));
        let (weights, strip) = (weights.cast::<u32>(), strip.cast::<u32>());
        let own = unit * heads + first_head;
        let result = step.sums.at(own * widths.latent_room);
        let mut states = States {
            largest: [f32::NEG_INFINITY; HEADS],
            total: [0.0; HEADS],
        };
        let first_query = step
            .queries
            .at((index * heads + first_head) * widths.row_room);
        let (mut queries, mut of_heads) = ([std::ptr::null(); HEADS], [std::ptr::null(); HEADS]);
        for head in 0..count {
            queries[head] = first_query.wrapping_add(head * widths.row_room).cast();
            of_heads[head] = weights.wrapping_add(head).cast_const();
        }
        let mut rows = [std::ptr::null(); TILE];
        let start = chunk_start(chunk);
        let end = (query.position + 1).min(chunk_start(chunk + 1));
        // SAFETY: the caller has the instructions; keys up to the query's own position lie in the block table; the parts have
        // the sizes asked for; the sums and states of this unit and these heads are this task's.
        unsafe {
            for first in (start..end).step_by(TILE) {
                let visible = TILE.min(end - first);
                let rows = &mut rows[..visible];
                let context = &query.context;
                context.addresses(first, (width, room), copies.cast(), rows);
                let next = first + TILE;
                for group in (0..count).step_by(LANES) {
                    let queries = &queries[group..count.min(group + LANES)];
                    let scores = scores.add(group);
                    for (number, rows) in rows.chunks(FEW).enumerate() {
                        let place = number * FEW;
                        if group == 0 {
                            if first == start {
                                let ahead = first + place + AHEAD;
                                context.ask(ahead.min(end)..(ahead + FEW).min(next).min(end));
                            }
                            let ahead = next + place / 2;
                            context.ask(ahead.min(end)..(ahead + FEW / 2).min(end));
                        }
                        let to = To {
                            start: scores.add(place * HEADS),
                            stride: HEADS,
                        };
                        dots(queries, rows, room / NUMBERS, to);
                    }
                    let to = (weights.add(group), factors.add(group));
                    weigh(scores, visible, group, &mut states, to);
                }
                let kind = if first == start {
                    Sums::Fresh
                } else {
                    Sums::Rescaled(factors)
                };
                let share = (TILE / 2).div_ceil(widths.latent_room.div_ceil(STRIP));
                for (number, column) in (0..widths.latent_room).step_by(STRIP).enumerate() {
                    let ahead = next + TILE / 2 + number * share;
                    context.ask(ahead.min(end)..(ahead + share).min(next + TILE).min(end));
                    let lanes = STRIP.min(widths.latent_room - column);
                    let rows_of_pairs = interleave_strip(rows, column, lanes, strip);
                    let to = To {
                        start: result.add(column),
                        stride: widths.latent_room,
                    };
                    let pairs = visible.div_ceil(2);
                    sums(
                        &of_heads[..count],
                        HEADS,
                        rows_of_pairs,
                        pairs,
                        lanes,
                        kind,
                        to,
                    );
                }
            }
            for head in 0..count {
                let to = step.states.at((own + head) * STATE);
                *to = states.largest[head];
                *to.add(1) = states.total[head];
            }
        }
    }
}

/// Interleaves rows two by two, `lanes` of their numbers from `column` on.
#[inline(always)]
unsafe fn interleave_strip(
    rows: &[*const u32],
    column: usize,
    lanes: usize,
    strip: *mut u32,
) -> Strips {
    let to = Strips {
        start: strip,
        room: PAIRS,
    };
    for (pair, rows) in rows.chunks(2).enumerate() {
        let first = rows[0].wrapping_add(column / 2).cast();
        let second = rows.get(1).map_or(std::ptr::null(), |row| {
            row.wrapping_add(column / 2).cast::<u16>()
        });
        // SAFETY: the caller has the instructions; rows are whole registers of numbers, and the strip has room.
        unsafe { interleave(first, second, lanes, to.at(pair, 0)) };
    }
    to
}

/// Turns the scores of `visible` keys, sixteen heads from number `group` on in the lanes, into pairs of weights, and
/// writes the factors for what was summed before.
#[inline(always)]
unsafe fn weigh(
    scores: *const f32,
    visible: usize,
    group: usize,
    states: &mut States,
    (weights, factors): (*mut u32, *mut f32),
) {
    // SAFETY: the caller has the instructions and gives rows of scores and room for weights, `HEADS` apart.
    unsafe {
        let largest = states.largest.as_mut_ptr().add(group);
        let total = states.total.as_mut_ptr().add(group);
        let before = _mm512_loadu_ps(largest);
        let mut most = Avx512(before);
        for key in 0..visible {
            most = Avx512(_mm512_loadu_ps(scores.add(key * HEADS))).larger(most);
        }
        _mm512_storeu_ps(largest, most.0);
        // Weights are relative to the largest score, or to 0 where all are negative infinity (their weights are 0).
        let none = _mm512_set1_ps(f32::NEG_INFINITY);
        let none = _mm512_cmp_ps_mask::<_CMP_EQ_OQ>(most.0, none);
        let origin = Avx512(_mm512_mask_mov_ps(most.0, none, _mm512_setzero_ps()));
        let factor = Avx512(before).subtract(origin).exp2_nonpositive();
        _mm512_storeu_ps(factors, factor.0);
        let mut sum = _mm512_setzero_ps();
        for pair in 0..visible / 2 {
            let first = weight(scores.add(2 * pair * HEADS), origin);
            let second = weight(scores.add((2 * pair + 1) * HEADS), origin);
            sum = _mm512_add_ps(_mm512_add_ps(sum, widened(first)), widened(second));
            let to: *mut u32 = weights.add(pair * HEADS);
            _mm512_storeu_si512(to.cast(), paired(first, second));
        }
        if visible % 2 == 1 {
            let last = weight(scores.add((visible - 1) * HEADS), origin);
            sum = _mm512_add_ps(sum, widened(last));
            let to: *mut u32 = weights.add(visible / 2 * HEADS);
            _mm512_storeu_si512(to.cast(), last);
        }
        let earlier = _mm512_mul_ps(_mm512_loadu_ps(total), factor.0);
        _mm512_storeu_ps(total, _mm512_add_ps(earlier, sum));
    }
}

/// The weights of scores, as [`round`] gives them.
#[inline(always)]
unsafe fn weight(scores: *const f32, origin: Avx512) -> __m512i {
    // SAFETY: the caller has the instructions and gives sixteen scores.
    unsafe {
        let scores = Avx512(_mm512_loadu_ps(scores));
        round(scores.subtract(origin).exp2_nonpositive().0)
    }
}
