//! The expanded form: keys and values of a head rebuilt from the latents, a tile at a time, for all queries of a panel.
//!
//! ```text
//! for each tile of keys, from position 0:      a task has one head and up to 2048 consecutive queries
//!     keys    = latents times the key rows of the up projection, stored as columns; rotary parts below them
//!     values  = latents times the value rows
//!     scores  = queries times keys;  weights;  sums = sums, rescaled, + weights times values
//! ```
//!
//! A query's operations follow from its position alone; queries of a panel share the tiles and nothing else. The causal
//! limit is the number of keys that a query's loops run over: what it may not see takes no part, not even times zero.

use abyssal_quant::Element;

use super::Call;
use super::arithmetic::Arithmetic;
use super::latents::Context;
use super::softmax::{State, TILE, weigh};
use super::spans::Span;
use super::tiles::{Grid, Initial, Rows, dots, weighted_sums};
use super::weights::{STRIP, unpack};
#[cfg(target_arch = "x86_64")]
use super::work::for_each_pairs;
use super::work::{Holder, Scratch, Work, for_each};

mod pairs;

/// Queries that pass over a tile together: they and a third of the keys fit the nearest cache.
const BLOCK: usize = 16;
/// Queries whose causal limits are minded together.
const FEW: usize = 4;
/// Queries of a panel at most.
const PANEL: usize = 2048;
/// Numbers that the panels of all threads take at most: 128 MB.
const ROOM: usize = 1 << 25;

/// Computes the tokens of all spans that take this form.
pub(super) fn run<L: Arithmetic, T: Element, O: Element>(
    call: &Call<'_, T, O>,
    spans: &[Span<'_>],
) {
    let sizes = call.sizes;
    let key = sizes.nope + sizes.rope;
    let value_room = sizes.v.next_multiple_of(L::WIDTH);
    let most = (ROOM / call.num_threads.max(1) / (key + value_room)).clamp(BLOCK, PANEL);
    let mut tasks = Vec::new();
    let mut work = 0;
    for span in spans.iter().filter(|span| span.expanded > 0) {
        // Fewer queries, and tiles expanded more often, where there would be less than two tasks a thread.
        let wanted = (2 * call.num_threads).div_ceil(sizes.heads);
        let share = span.expanded.div_ceil(wanted).max(256).min(most);
        for first in (0..span.expanded).step_by(share) {
            let count = share.min(span.expanded - first);
            let keys = span.position + first + count;
            work += keys * (count * (key + sizes.v) + sizes.kv_lora * (sizes.nope + sizes.v));
            tasks.extend((0..sizes.heads).map(|head| Panel {
                head,
                row: span.start + first,
                position: span.position + first,
                count,
                context: call.context(span),
            }));
        }
    }
    let work = work * sizes.heads;
    // The longest ones first.
    tasks.sort_by_key(|panel| std::cmp::Reverse(panel.position));
    let expand = Expand {
        call,
        tasks: &tasks,
        value_room,
    };
    #[cfg(target_arch = "x86_64")]
    if call.pairs {
        let expand = pairs::ExpandPairs(&expand);
        // SAFETY: the call is checked to be on a tier that has the instructions.
        unsafe { for_each_pairs(call.num_threads, work, tasks.len(), &expand) };
        return;
    }
    for_each(call.tier, call.num_threads, work, tasks.len(), &expand);
}

/// Consecutive queries of one head.
struct Panel<'a> {
    head: usize,
    /// First row in the flat batch.
    row: usize,
    /// Position of that row.
    position: usize,
    count: usize,
    context: Context<'a>,
}

struct Expand<'a, T, O> {
    call: &'a Call<'a, T, O>,
    tasks: &'a [Panel<'a>],
    value_room: usize,
}

/// A task's memory.
#[derive(Clone, Copy)]
struct Parts {
    /// `[queries, nope + rope]`, scaled for logarithms to base 2.
    queries: *mut f32,
    /// `[queries, value_room]`.
    sums: *mut f32,
    /// The head's rows of the up projection, `[nope + v, latent_room]`.
    up: *mut f32,
    /// Cached rows, `[TILE, row_room]`.
    tile: *mut f32,
    /// `[nope + rope, TILE]`.
    keys: *mut f32,
    /// `[TILE, value_room]`.
    values: *mut f32,
    /// `[BLOCK, TILE]`.
    scores: *mut f32,
}

impl<T: Element, O: Element> Work for Expand<'_, T, O> {
    #[inline(always)]
    unsafe fn task<L: Arithmetic>(&self, number: usize) {
        let panel = &self.tasks[number];
        let call = self.call;
        let (sizes, widths) = (call.sizes, call.widths);
        let key = sizes.nope + sizes.rope;
        let places = call.order.width();
        let parts = [
            panel.count * key,
            panel.count * self.value_room,
            (sizes.nope + sizes.v) * widths.latent_room,
            TILE * widths.row_room,
            key * TILE,
            TILE * self.value_room,
            BLOCK * TILE,
            STRIP * places,
        ];
        let mut scratch = Scratch::new(Holder::Task, parts.iter().sum());
        let [queries, sums, up, tile, keys, values, scores, strip] =
            parts.map(|size| scratch.part(size));
        let parts = Parts {
            queries,
            sums,
            up,
            tile,
            keys,
            values,
            scores,
        };
        let mut states = vec![State::EMPTY; panel.count];
        // SAFETY: the caller has the tier's instructions; the parts have the sizes asked for; keys up to the last query's
        // position lie in the block table; this head's columns of these rows of the output are this task's.
        unsafe {
            for index in 0..panel.count {
                let query = std::slice::from_raw_parts_mut(queries.add(index * key), key);
                let (plain, rotated) = query.split_at_mut(sizes.nope);
                call.query(panel.row + index, panel.head, plain, rotated);
            }
            self.unpack::<L>(panel.head, up, strip);
            let end = panel.position + panel.count;
            for first in (0..end).step_by(TILE) {
                let available = TILE.min(end - first);
                panel.context.read::<L>(first, available, tile);
                self.expand::<L>(available, &parts);
                // Queries before the tile do not see it.
                let mut index = first.saturating_sub(panel.position);
                while index < panel.count {
                    let count = BLOCK.min(panel.count - index);
                    let states = &mut states[index..index + count];
                    self.attend::<L>(panel.position, first, index, states, &parts);
                    index += count;
                }
            }
            for (index, state) in states.iter().enumerate() {
                let sums = sums.add(index * self.value_room);
                let sums = std::slice::from_raw_parts_mut(sums, sizes.v);
                for value in &mut *sums {
                    *value /= state.total;
                }
                call.write(panel.row + index, panel.head, 0, sums);
            }
        }
    }
}

impl<T: Element, O: Element> Expand<'_, T, O> {
    /// Unpacks a head's rows of the up projection, elements in their own order.
    #[inline(always)]
    unsafe fn unpack<L: Arithmetic>(&self, head: usize, up: *mut f32, strip: *mut f32) {
        let call = self.call;
        let (rows, room) = (call.sizes.nope + call.sizes.v, call.widths.latent_room);
        let places = call.order.width();
        for at in (0..rows).step_by(STRIP) {
            let count = STRIP.min(rows - at);
            let first = head * rows + at;
            // SAFETY: the caller has the tier's instructions and gives room for both.
            unsafe {
                unpack::<L>(&call.up, first..first + count, strip);
                for row in 0..count {
                    let from = std::slice::from_raw_parts(strip.add(row * places), places);
                    let to = std::slice::from_raw_parts_mut(up.add((at + row) * room), room);
                    to[call.sizes.kv_lora..].fill(0.0);
                    call.order.take(from, to);
                }
            }
        }
    }

    /// Makes keys and values of the tile's first `available` rows.
    #[inline(always)]
    unsafe fn expand<L: Arithmetic>(&self, available: usize, parts: &Parts) {
        let (sizes, widths) = (self.call.sizes, self.call.widths);
        let room = widths.latent_room;
        let latents = Rows {
            start: parts.tile,
            stride: widths.row_room,
            count: available,
        };
        let up = |first: usize, count: usize| Rows {
            start: parts.up.wrapping_add(first * room),
            stride: room,
            count,
        };
        let columns = Grid {
            start: parts.keys,
            strides: (TILE, 1),
        };
        let rows = Grid {
            start: parts.values,
            strides: (1, self.value_room),
        };
        // SAFETY: the caller has the tier's instructions, and the parts have room.
        unsafe {
            dots::<L>(up(0, sizes.nope), latents, room, columns);
            dots::<L>(up(sizes.nope, sizes.v), latents, room, rows);
            for place in 0..available {
                let rotated = parts.tile.add(place * widths.row_room + room);
                for number in 0..sizes.rope {
                    let to = parts.keys.add((sizes.nope + number) * TILE + place);
                    *to = *rotated.add(number);
                }
            }
        }
    }

    /// Takes a tile into the sums of a block of queries, the first of which is number `index` of the panel.
    #[inline(always)]
    unsafe fn attend<L: Arithmetic>(
        &self,
        panel_position: usize,
        first: usize,
        index: usize,
        states: &mut [State],
        parts: &Parts,
    ) {
        let key = self.call.sizes.nope + self.call.sizes.rope;
        let count = states.len();
        // Keys of the tile that query `offset` of the block sees, itself included.
        let visible = |offset: usize| (panel_position + index + offset + 1 - first).min(TILE);
        let queries = Rows {
            start: parts.queries.wrapping_add(index * key),
            stride: key,
            count,
        };
        let keys = Rows {
            start: parts.keys,
            stride: TILE,
            count: key,
        };
        let mut factors = [0.0; BLOCK];
        // SAFETY: the caller has the tier's instructions; the parts have room, and a tile is whole registers.
        unsafe {
            let registers = TILE / L::WIDTH;
            weighted_sums::<L>(queries, keys, Initial::Zero, parts.scores, TILE, registers);
            for (offset, state) in states.iter_mut().enumerate() {
                let scores = parts.scores.add(offset * TILE);
                factors[offset] = weigh::<L>(scores, visible(offset), state);
            }
            let fresh = first == 0;
            if visible(0) == visible(count - 1) {
                self.add::<L>(index, 0, count, visible(0), fresh, &factors, parts);
                return;
            }
            for start in (0..count).step_by(FEW) {
                let few = FEW.min(count - start);
                let common = visible(start);
                self.add::<L>(index, start, few, common, fresh, &factors, parts);
                for offset in start..start + few {
                    self.add_rest::<L>(index, offset, common, visible(offset), parts);
                }
            }
        }
    }

    /// Rescales the sums of some queries and adds the first `visible` values, times their weights.
    #[inline(always)]
    #[allow(clippy::too_many_arguments, reason = "which queries, which values")]
    unsafe fn add<L: Arithmetic>(
        &self,
        index: usize,
        start: usize,
        count: usize,
        visible: usize,
        fresh: bool,
        factors: &[f32; BLOCK],
        parts: &Parts,
    ) {
        let weights = Rows {
            start: parts.scores.wrapping_add(start * TILE),
            stride: TILE,
            count,
        };
        let values = Rows {
            start: parts.values,
            stride: self.value_room,
            count: visible,
        };
        let initial = if fresh {
            Initial::Zero
        } else {
            Initial::Scaled(factors[start..].as_ptr())
        };
        // SAFETY: the caller has the tier's instructions, and the parts have room.
        unsafe {
            let to = parts.sums.add((index + start) * self.value_room);
            let registers = self.value_room / L::WIDTH;
            weighted_sums::<L>(weights, values, initial, to, self.value_room, registers);
        }
    }

    /// Adds the values `[from, visible)` to the sums of one query.
    #[inline(always)]
    unsafe fn add_rest<L: Arithmetic>(
        &self,
        index: usize,
        offset: usize,
        from: usize,
        visible: usize,
        parts: &Parts,
    ) {
        if from == visible {
            return;
        }
        let weights = Rows {
            start: parts.scores.wrapping_add(offset * TILE + from),
            stride: TILE,
            count: 1,
        };
        let values = Rows {
            start: parts.values.wrapping_add(from * self.value_room),
            stride: self.value_room,
            count: visible - from,
        };
        // SAFETY: the caller has the tier's instructions, and the parts have room.
        unsafe {
            let to = parts.sums.add((index + offset) * self.value_room);
            let registers = self.value_room / L::WIDTH;
            weighted_sums::<L>(
                weights,
                values,
                Initial::Stored,
                to,
                self.value_room,
                registers,
            );
        }
    }
}
