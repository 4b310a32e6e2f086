//! Attention on rebuilt keys and values, with dot products of bfloat16 pairs.
//!
//! ```text
//! once a task      the head's rows of the up projection as pairs of columns
//! for each tile    rows = latents, as the cache holds them, times the up projection, in float32
//!                  keys   = rows rounded, rotary parts behind them, as pairs of columns
//!                  values = rows rounded, two keys to a pair
//!                  scores = queries times keys;  weights, rounded;  sums = sums, rescaled, + weights times values
//! ```
//!
//! FP8 codes are exact in bfloat16 and their scales are not: each 128 columns are summed by themselves, and their sums
//! multiplied by the scale in float32. That costs a multiply-add for 64 dot products, and rounding each weight would
//! cost as much precision as rounding the keys does.
#![cfg(target_arch = "x86_64")]

#[allow(
    clippy::wildcard_imports,
    reason = "a list of instructions would say nothing"
)]
use std::arch::x86_64::*;

use abyssal_quant::Element;

use super::{Expand, FEW, Panel};
use crate::avx512::Avx512;
use crate::lanes::Lanes;
use crate::matrix::{FP8_BLOCK, Weights};
use crate::mla::arithmetic::Arithmetic;
use crate::mla::pairs::{
    LANES, NUMBERS, Strips, Sums, To, paired, round, store_rounded, sums, transpose, widened,
};
use crate::mla::softmax::{State, base};
use crate::mla::weights::{Narrow, scale_of};
use crate::mla::work::{Holder, PairWork, Scratch};

/// Keys of a tile, counted from position 0.
const TILE: usize = 128;
/// Pairs of keys.
const PAIRS: usize = TILE / 2;
/// Queries that pass over a tile together.
const BLOCK: usize = 32;

/// Sizes in memory.
#[derive(Clone, Copy)]
struct Rooms {
    /// Numbers of a head's rows of the up projection.
    latent: usize,
    /// Numbers of a query or key.
    key: usize,
    /// Numbers of an expanded row in float32.
    row: usize,
    value: usize,
}

/// A task's memory.
#[derive(Clone, Copy)]
struct Parts {
    /// `[queries, key]` bfloat16, scaled for logarithms to base 2.
    queries: *mut u32,
    /// `[queries, value]`.
    sums: *mut f32,
    /// Pairs of columns, `[latent / 2, nope + v]`.
    up: Strips,
    /// The scales of the up projection's blocks of columns, `[blocks, row]`.
    factors: *mut f32,
    /// Sixteen rows of the up projection, `[16, latent]` bfloat16.
    narrow: *mut u16,
    /// Latents whose rows are no pairs, `[TILE, latent]` bfloat16.
    copies: *mut u16,
    /// Expanded rows, `[TILE, row]`.
    rows: *mut f32,
    /// `[TILE, key]` bfloat16.
    key_rows: *mut u16,
    /// `[key / 2, TILE]`.
    keys: Strips,
    /// `[PAIRS, v]`.
    values: Strips,
    /// One row of values whose second key may not be seen.
    last: Strips,
    /// `[BLOCK, TILE]`.
    scores: *mut f32,
    /// `[BLOCK, PAIRS]`.
    weights: *mut u32,
}

/// As [`Expand`], on a tier with dot products of bfloat16 pairs.
pub(super) struct ExpandPairs<'a, T, O>(pub(super) &'a Expand<'a, T, O>);

impl<T: Element, O: Element> PairWork for ExpandPairs<'_, T, O> {
    #[inline(always)]
    unsafe fn task(&self, number: usize) {
        let panel = &self.0.tasks[number];
        let call = self.0.call;
        let sizes = call.sizes;
        let rooms = self.rooms();
        let up_rows = sizes.nope + sizes.v;
        // Numbers of 32 bits, whole lines of the cache.
        let parts = [
            panel.count * rooms.key / 2,
            panel.count * rooms.value,
            Strips::size(rooms.latent / 2, up_rows),
            sizes.kv_lora.div_ceil(FP8_BLOCK) * rooms.row,
            LANES * rooms.latent / 2,
            TILE * rooms.latent / 2,
            TILE * rooms.row,
            TILE * rooms.key / 2,
            Strips::size(rooms.key / 2, TILE),
            Strips::size(PAIRS, sizes.v),
            Strips::size(1, sizes.v),
            BLOCK * TILE,
            BLOCK * PAIRS,
        ];
        let mut scratch = Scratch::new(Holder::Task, parts.iter().sum());
        let [
            queries,
            sums,
            up,
            factors,
            narrow,
            copies,
            rows,
            key_rows,
            keys,
            values,
            last,
            scores,
            weights,
        ] = parts.map(|size| scratch.part(size));
        let strips = |start: *mut f32, room| Strips {
            start: start.cast(),
            room,
        };
        let parts = Parts {
            queries: queries.cast(),
            sums,
            up: strips(up, rooms.latent / 2),
            factors,
            narrow: narrow.cast(),
            copies: copies.cast(),
            rows,
            key_rows: key_rows.cast(),
            keys: strips(keys, rooms.key / 2),
            values: strips(values, PAIRS),
            last: strips(last, 1),
            scores,
            weights: weights.cast(),
        };
        let mut states = vec![State::EMPTY; panel.count];
        // SAFETY: the caller has the instructions; the parts have the sizes asked for; keys up to the last query's position
        // lie in the block table; this head's columns of these rows of the output are this task's.
        unsafe {
            self.round_queries(panel, &parts);
            self.unpack(panel.head, &parts);
            let end = panel.position + panel.count;
            for first in (0..end).step_by(TILE) {
                let available = TILE.min(end - first);
                self.expand(panel, first, available, &parts);
                // Queries before the tile do not see it.
                let mut index = first.saturating_sub(panel.position);
                while index < panel.count {
                    let count = BLOCK.min(panel.count - index);
                    let states = &mut states[index..index + count];
                    self.attend(panel.position, first, index, states, &parts);
                    index += count;
                }
            }
            for (index, state) in states.iter().enumerate() {
                let sums = parts.sums.add(index * rooms.value);
                let sums = std::slice::from_raw_parts_mut(sums, sizes.v);
                for value in &mut *sums {
                    *value /= state.total;
                }
                call.write(panel.row + index, panel.head, 0, sums);
            }
        }
    }
}

impl<T: Element, O: Element> ExpandPairs<'_, T, O> {
    fn rooms(&self) -> Rooms {
        let sizes = self.0.call.sizes;
        Rooms {
            latent: sizes.kv_lora.next_multiple_of(NUMBERS),
            key: (sizes.nope + sizes.rope).next_multiple_of(NUMBERS),
            // A register of values may begin anywhere.
            row: (sizes.nope + sizes.v).next_multiple_of(LANES) + LANES,
            value: self.0.value_room,
        }
    }

    /// Writes the queries of a panel, rounded.
    #[inline(always)]
    unsafe fn round_queries(&self, panel: &Panel<'_>, parts: &Parts) {
        let (call, rooms) = (self.0.call, self.rooms());
        let (nope, key) = (call.sizes.nope, call.sizes.nope + call.sizes.rope);
        let mut query = vec![0.0; rooms.key];
        for index in 0..panel.count {
            let (plain, rotated) = query[..key].split_at_mut(nope);
            call.query(panel.row + index, panel.head, plain, rotated);
            // SAFETY: the caller has the instructions, and the queries have room.
            unsafe {
                let to: *mut u16 = parts.queries.add(index * rooms.key / 2).cast();
                for at in (0..rooms.key).step_by(LANES) {
                    store_rounded(_mm512_loadu_ps(query.as_ptr().add(at)), to.add(at));
                }
            }
        }
    }

    /// Unpacks a head's rows of the up projection, and the scales of their blocks.
    #[inline(always)]
    unsafe fn unpack(&self, head: usize, parts: &Parts) {
        let (call, rooms) = (self.0.call, self.rooms());
        let rows = call.sizes.nope + call.sizes.v;
        let narrow = Narrow {
            matrix: &call.up,
            order: &call.order,
        };
        // SAFETY: the caller has the instructions, and the parts have room.
        unsafe {
            for at in (0..rows).step_by(LANES) {
                let count = LANES.min(rows - at);
                let mut addresses = [parts.narrow.cast_const().cast(); LANES];
                for (row, address) in addresses.iter_mut().enumerate().take(count) {
                    let to = parts.narrow.add(row * rooms.latent);
                    narrow.row(head * rows + at + row, to, rooms.latent);
                    *address = to.cast_const().cast();
                }
                transpose(addresses, rooms.latent / 2, parts.up, (0, at));
            }
            if let Weights::Fp8 { scales, .. } = call.up.weights {
                let columns = call.sizes.kv_lora;
                for block in 0..columns.div_ceil(FP8_BLOCK) {
                    let to = parts.factors.add(block * rooms.row);
                    for row in 0..rows {
                        let row_of = head * rows + row;
                        *to.add(row) = scale_of(Some(scales), row_of, columns, block * FP8_BLOCK);
                    }
                }
            }
        }
    }

    /// Makes keys and values of the rows `[first, first + available)`.
    #[inline(always)]
    unsafe fn expand(&self, panel: &Panel<'_>, first: usize, available: usize, parts: &Parts) {
        let (call, rooms) = (self.0.call, self.rooms());
        let sizes = call.sizes;
        let (key, context) = (sizes.nope + sizes.rope, &panel.context);
        let mut addresses = [std::ptr::null::<u32>(); TILE];
        // SAFETY: the caller has the instructions, the parts have room, and the positions lie in the block table.
        unsafe {
            let latents = &mut addresses[..available];
            let width = (sizes.kv_lora, sizes.kv_lora.next_multiple_of(2));
            context.addresses(first, width, parts.copies, latents);
            self.multiply(latents, parts);
            for place in 0..available {
                let row = parts.rows.add(place * rooms.row);
                let to = parts.key_rows.add(place * rooms.key);
                for at in (0..sizes.nope).step_by(LANES) {
                    store_rounded(_mm512_loadu_ps(row.add(at)), to.add(at));
                }
                context.copy_rotated(first + place, to.add(sizes.nope));
                std::ptr::write_bytes(to.add(key), 0, rooms.key - key);
            }
            for place in (0..available).step_by(LANES) {
                // Rows beyond the last one end in lanes that nothing sees.
                let mut rows = [std::ptr::null(); LANES];
                for (row, address) in rows.iter_mut().enumerate() {
                    let from = parts.key_rows.add((place + row) * rooms.key);
                    *address = from.cast_const().cast();
                }
                transpose(rows, rooms.key / 2, parts.keys, (0, place));
            }
            for place in (0..available).step_by(2) {
                let row = parts.rows.add(place * rooms.row + sizes.nope);
                for at in (0..sizes.v).step_by(LANES) {
                    let first = round(_mm512_loadu_ps(row.add(at)));
                    let second = if place + 1 < available {
                        round(_mm512_loadu_ps(row.add(rooms.row + at)))
                    } else {
                        _mm512_setzero_si512()
                    };
                    let to = parts.values.at(place / 2, at);
                    _mm512_storeu_si512(to.cast(), paired(first, second));
                }
            }
        }
    }

    /// Multiplies latents with the up projection.
    #[inline(always)]
    unsafe fn multiply(&self, latents: &mut [*const u32], parts: &Parts) {
        let (call, rooms) = (self.0.call, self.rooms());
        let sizes = call.sizes;
        let lanes = sizes.nope + sizes.v;
        let to = To {
            start: parts.rows,
            stride: rooms.row,
        };
        // SAFETY: the caller has the instructions, and the parts have room.
        unsafe {
            if !matches!(call.up.weights, Weights::Fp8 { .. }) {
                let pairs = sizes.kv_lora.div_ceil(2);
                sums(latents, 1, parts.up, pairs, lanes, Sums::Fresh, to);
                return;
            }
            for (block, column) in (0..sizes.kv_lora).step_by(FP8_BLOCK).enumerate() {
                let pairs = FP8_BLOCK.min(sizes.kv_lora - column).div_ceil(2);
                let factors = parts.factors.add(block * rooms.row);
                let kind = if block == 0 {
                    Sums::Times(factors)
                } else {
                    Sums::TimesOnto(factors)
                };
                sums(
                    latents,
                    1,
                    parts.up.from(column / 2),
                    pairs,
                    lanes,
                    kind,
                    to,
                );
                for latent in &mut *latents {
                    *latent = latent.wrapping_add(FP8_BLOCK / 2);
                }
            }
        }
    }

    /// Takes a tile into the sums of a block of queries, the first of which is number `index` of the panel.
    #[inline(always)]
    unsafe fn attend(
        &self,
        panel_position: usize,
        first: usize,
        index: usize,
        states: &mut [State],
        parts: &Parts,
    ) {
        let (sizes, rooms) = (self.0.call.sizes, self.rooms());
        let count = states.len();
        // Keys of the tile that query `offset` of the block sees, itself included.
        let visible = |offset: usize| (panel_position + index + offset + 1 - first).min(TILE);
        let mut queries = [std::ptr::null(); BLOCK];
        for (offset, query) in queries.iter_mut().enumerate().take(count) {
            let start = (index + offset) * rooms.key / 2;
            *query = parts.queries.wrapping_add(start).cast_const();
        }
        let mut factors = [0.0; BLOCK];
        // SAFETY: the caller has the instructions, and the parts have room.
        unsafe {
            let pairs = (sizes.nope + sizes.rope).div_ceil(2);
            let to = To {
                start: parts.scores,
                stride: TILE,
            };
            let most = visible(count - 1);
            sums(
                &queries[..count],
                1,
                parts.keys,
                pairs,
                most,
                Sums::Fresh,
                to,
            );
            for (offset, state) in states.iter_mut().enumerate() {
                let scores = parts.scores.add(offset * TILE);
                let weights = parts.weights.add(offset * PAIRS).cast();
                factors[offset] = weigh(scores, visible(offset), state, weights);
            }
            // Pairs of keys that queries seen together see whole; each sees the rest by itself.
            let few = if visible(0) == most { count } else { FEW };
            for start in (0..count).step_by(few) {
                let few = few.min(count - start);
                let common = visible(start) / 2;
                let kind = if first == 0 {
                    Sums::Fresh
                } else {
                    Sums::Rescaled(factors[start..].as_ptr())
                };
                self.add(index + start, start..start + few, 0..common, kind, parts);
                for offset in start..start + few {
                    self.add_rest(index + offset, offset, common, visible(offset), parts);
                }
            }
        }
    }

    /// Adds pairs of values to the sums of queries of a block, the first of which is number `index` of the panel.
    #[inline(always)]
    unsafe fn add(
        &self,
        index: usize,
        offsets: std::ops::Range<usize>,
        pairs: std::ops::Range<usize>,
        kind: Sums,
        parts: &Parts,
    ) {
        let (v, room) = (self.0.call.sizes.v, self.0.value_room);
        let mut weights = [std::ptr::null(); BLOCK];
        let count = offsets.len();
        for (offset, weights) in offsets.zip(&mut weights) {
            let start = offset * PAIRS + pairs.start;
            *weights = parts.weights.wrapping_add(start).cast_const();
        }
        let to = To {
            start: parts.sums.wrapping_add(index * room),
            stride: room,
        };
        let values = parts.values.from(pairs.start);
        // SAFETY: the caller has the instructions, and the parts have room.
        unsafe { sums(&weights[..count], 1, values, pairs.len(), v, kind, to) };
    }

    /// Adds what one query sees beyond `common` pairs of keys.
    #[inline(always)]
    unsafe fn add_rest(
        &self,
        index: usize,
        offset: usize,
        common: usize,
        visible: usize,
        parts: &Parts,
    ) {
        let (v, room) = (self.0.call.sizes.v, self.0.value_room);
        // SAFETY: the caller has the instructions, and the parts have room.
        unsafe {
            if common < visible / 2 {
                let pairs = common..visible / 2;
                self.add(index, offset..offset + 1, pairs, Sums::Onto, parts);
            }
            if visible % 2 == 1 {
                // The second key of the last pair may not be seen, not even times zero.
                let lower = _mm512_set1_epi32(0xffff);
                for at in (0..v).step_by(LANES) {
                    let pair = parts.values.at(visible / 2, at);
                    let pair = _mm512_and_si512(_mm512_loadu_si512(pair.cast()), lower);
                    _mm512_storeu_si512(parts.last.at(0, at).cast(), pair);
                }
                let weights = parts.weights.add(offset * PAIRS + visible / 2);
                let to = To {
                    start: parts.sums.add(index * room),
                    stride: room,
                };
                sums(&[weights.cast_const()], 1, parts.last, 1, v, Sums::Onto, to);
            }
        }
    }
}

/// Turns the first `visible` scores of a tile into weights in bfloat16, with zeros up to the next whole register; returns
/// the factor for what was summed before.
#[inline(always)]
unsafe fn weigh(scores: *const f32, visible: usize, state: &mut State, weights: *mut u16) -> f32 {
    // SAFETY: the caller has the instructions and gives scores and room for whole registers.
    unsafe {
        let mut most = Avx512(_mm512_set1_ps(state.largest));
        for at in (0..visible).step_by(LANES) {
            most = Avx512(visible_scores(scores, at, visible)).larger(most);
        }
        let largest = _mm512_reduce_max_ps(most.0);
        let origin = Avx512::splat(base(largest));
        let before = Avx512::splat(state.largest).subtract(origin);
        let factor = _mm512_cvtss_f32(before.exp2_nonpositive().0);
        let mut total = _mm512_setzero_ps();
        for at in (0..visible).step_by(LANES) {
            let scores = Avx512(visible_scores(scores, at, visible));
            let weight = scores.subtract(origin).exp2_nonpositive().0;
            let narrow = round(weight);
            total = _mm512_add_ps(total, widened(narrow));
            _mm256_storeu_si256(weights.add(at).cast(), _mm512_cvtepi32_epi16(narrow));
        }
        state.total = state.total * factor + Avx512(total).sum();
        state.largest = largest;
        factor
    }
}

/// Sixteen scores, negative infinity where they are not visible.
#[inline(always)]
unsafe fn visible_scores(scores: *const f32, at: usize, visible: usize) -> __m512 {
    // SAFETY: the caller has the instructions and gives scores for whole registers.
    unsafe {
        let seen = (visible - at).min(LANES);
        let seen = (u32::MAX >> (32 - seen)) as __mmask16;
        _mm512_mask_loadu_ps(_mm512_set1_ps(f32::NEG_INFINITY), seen, scores.add(at))
    }
}
