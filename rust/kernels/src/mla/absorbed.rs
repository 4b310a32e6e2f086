//! The absorbed form: queries moved into the latent space, attention on the cached rows themselves.
//!
//! ```text
//! absorb   a task a head:                      query times the key rows of the up projection, rotary part behind it
//! attend   a task a token, chunk and heads:    tiles of keys, each unpacked once for all heads of the task
//! finish   a task a head:                      chunks joined in order, times the value rows of the up projection
//! ```
//!
//! Chunks are cut at fixed positions and joined from the first to the last, so a token's bits follow from its position.

use abyssal_quant::{Bf16, Element};

use super::Call;
use super::arithmetic::Arithmetic;
use super::latents::{Context, Widths};
use super::softmax::{State, TILE, join, weigh};
use super::spans::Span;
use super::tiles::{Grid, Initial, Rows, dots, weighted_sums};
use super::weights::{STRIP, unpack};
#[cfg(target_arch = "x86_64")]
use super::work::for_each_pairs;
use super::work::{Holder, Scratch, Shared, Work, for_each};

mod pairs;

/// Heads that share an unpacked tile: queries, tile and sums of published models fit the second-level cache.
const HEADS: usize = 32;
/// Keys of a chunk, and how many chunks there are of that size; later ones are four times as long.
const CHUNK: usize = 8 * TILE;
const SHORT_CHUNKS: usize = 32;
const LONG_CHUNK: usize = 4 * CHUNK;
/// Numbers that queries and partial sums of a panel take at most (a panel has one token at least): 64 MB.
const PANEL_ROOM: usize = 1 << 24;
/// Tokens of a panel.
const PANEL_TOKENS: usize = 256;
/// Numbers of a state in memory.
const STATE: usize = 2;

/// Chunks that hold `keys` keys.
fn chunks(keys: usize) -> usize {
    let short = keys.div_ceil(CHUNK);
    if short <= SHORT_CHUNKS {
        short
    } else {
        SHORT_CHUNKS + (keys - SHORT_CHUNKS * CHUNK).div_ceil(LONG_CHUNK)
    }
}

/// The first key of a chunk.
fn chunk_start(chunk: usize) -> usize {
    if chunk <= SHORT_CHUNKS {
        chunk * CHUNK
    } else {
        SHORT_CHUNKS * CHUNK + (chunk - SHORT_CHUNKS) * LONG_CHUNK
    }
}

/// A token and what it attends to.
#[derive(Clone, Copy)]
struct Query<'a> {
    /// Row of the flat batch.
    row: usize,
    position: usize,
    context: Context<'a>,
    /// Its first chunk among those of the panel.
    first_unit: usize,
}

/// Computes the tokens of all spans that take this form.
pub(super) fn run<L: Arithmetic, T: Element, O: Element>(
    call: &Call<'_, T, O>,
    spans: &[Span<'_>],
) {
    let (widths, heads) = (call.widths, call.sizes.heads);
    let query_size = heads * widths.row_room;
    let unit_size = heads * (widths.latent_room + STATE);
    let mut panel = Panel::default();
    let mut room = 0;
    for span in spans {
        for offset in span.expanded..span.length {
            let position = span.position + offset;
            let count = chunks(position + 1);
            let size = query_size + count * unit_size;
            if panel.queries.len() == PANEL_TOKENS || (room > 0 && room + size > PANEL_ROOM) {
                panel.run::<L, T, O>(call);
                (panel, room) = (Panel::default(), 0);
            }
            room += size;
            panel.queries.push(Query {
                row: span.start + offset,
                position,
                context: call.context(span),
                first_unit: panel.units.len(),
            });
            let query = panel.queries.len() - 1;
            panel.units.extend((0..count).map(|chunk| (query, chunk)));
        }
    }
    panel.run::<L, T, O>(call);
}

/// Tokens computed together.
#[derive(Default)]
struct Panel<'a> {
    queries: Vec<Query<'a>>,
    /// Query and chunk of each unit.
    units: Vec<(usize, usize)>,
}

impl Panel<'_> {
    fn run<L: Arithmetic, T: Element, O: Element>(&self, call: &Call<'_, T, O>) {
        let (widths, sizes) = (call.widths, call.sizes);
        let heads = sizes.heads;
        let rows = self.queries.len() * heads;
        let parts = self.units.len() * heads;
        let sizes_of = [
            rows * widths.row_room,
            parts * widths.latent_room,
            parts * STATE,
        ];
        let mut memory = Scratch::new(Holder::Caller, sizes_of.iter().sum());
        let [queries, sums, states] = sizes_of.map(|size| Shared::new(memory.part(size)));
        let step = Step {
            call,
            panel: self,
            queries,
            sums,
            states,
        };
        let absorbing = rows * sizes.nope * sizes.kv_lora;
        let attending: usize = self
            .queries
            .iter()
            .map(|query| (query.position + 1) * heads * (widths.row_room + widths.latent_room))
            .sum();
        let finishing = rows * sizes.v * sizes.kv_lora + parts * widths.latent_room;
        let (tier, threads) = (call.tier, call.num_threads);
        for_each(tier, threads, absorbing, heads, &Absorb(&step));
        let tasks = self.units.len() * heads.div_ceil(HEADS);
        #[cfg(target_arch = "x86_64")]
        if call.pairs {
            // SAFETY: the call is checked to be on a tier that has the instructions.
            unsafe { for_each_pairs(threads, attending, tasks, &pairs::AttendPairs(&step)) };
        }
        if !call.pairs {
            for_each(tier, threads, attending, tasks, &Attend(&step));
        }
        for_each(tier, threads, finishing, heads, &Finish(&step));
    }
}

/// What the three regions share.
struct Step<'a, T, O> {
    call: &'a Call<'a, T, O>,
    panel: &'a Panel<'a>,
    /// `[tokens, heads, row_room]`: absorbed queries, scaled for logarithms to base 2. For products of pairs each begins
    /// with its row in bfloat16, the two parts one after the other as in the cache.
    queries: Shared<f32>,
    /// `[units, heads, latent_room]`.
    sums: Shared<f32>,
    /// `[units, heads, 2]`.
    states: Shared<f32>,
}

struct Absorb<'a, T, O>(&'a Step<'a, T, O>);
struct Attend<'a, T, O>(&'a Step<'a, T, O>);
struct Finish<'a, T, O>(&'a Step<'a, T, O>);

impl<T: Element, O: Element> Work for Absorb<'_, T, O> {
    #[inline(always)]
    unsafe fn task<L: Arithmetic>(&self, head: usize) {
        let Step {
            call,
            panel,
            queries,
            ..
        } = *self.0;
        let (sizes, widths, order) = (call.sizes, call.widths, &call.order);
        let (tokens, nope) = (panel.queries.len(), sizes.nope);
        let width = order.width();
        let mut scratch = Scratch::new(Holder::Task, tokens * (nope + width) + STRIP * width);
        let (plain, moved, strip) = (
            scratch.part(tokens * nope),
            scratch.part(tokens * width),
            scratch.part(STRIP * width),
        );
        // SAFETY: the caller has the tier's instructions; the parts have the sizes asked for, and the queries of this head
        // are this task's.
        unsafe {
            for (index, query) in panel.queries.iter().enumerate() {
                let plain = std::slice::from_raw_parts_mut(plain.add(index * nope), nope);
                let to = queries.at((index * sizes.heads + head) * widths.row_room);
                let to = std::slice::from_raw_parts_mut(to, widths.row_room);
                to.fill(0.0);
                let rotated = &mut to[widths.latent_room..][..sizes.rope];
                call.query(query.row, head, plain, rotated);
            }
            let first = head * (nope + sizes.v);
            for at in (0..nope).step_by(STRIP) {
                let count = STRIP.min(nope - at);
                unpack::<L>(&call.up, first + at..first + at + count, strip);
                let weights = Rows {
                    start: plain.add(at),
                    stride: nope,
                    count: tokens,
                };
                let rows = Rows {
                    start: strip,
                    stride: width,
                    count,
                };
                let initial = if at == 0 {
                    Initial::Zero
                } else {
                    Initial::Stored
                };
                weighted_sums::<L>(weights, rows, initial, moved, width, width / L::WIDTH);
            }
            for index in 0..tokens {
                let places = std::slice::from_raw_parts(moved.add(index * width), width);
                let to = queries.at((index * sizes.heads + head) * widths.row_room);
                order.take(places, std::slice::from_raw_parts_mut(to, sizes.kv_lora));
                if call.pairs {
                    narrow(widths, to);
                }
            }
        }
    }
}

/// Rounds a query to bfloat16 in its place, with zeros behind it.
#[inline(always)]
unsafe fn narrow(widths: Widths, query: *mut f32) {
    let to = query.cast::<u16>();
    // SAFETY: the caller gives a row; a number is written behind those still to be read, in half their room.
    unsafe {
        for place in 0..widths.latent {
            *to.add(place) = Bf16::store(*query.add(place)).0;
        }
        for place in 0..widths.rope {
            let value = *query.add(widths.latent_room + place);
            *to.add(widths.latent + place) = Bf16::store(value).0;
        }
        let width = widths.latent + widths.rope;
        std::slice::from_raw_parts_mut(to.add(width), 2 * widths.row_room - width).fill(0);
    }
}

impl<T: Element, O: Element> Work for Attend<'_, T, O> {
    #[inline(always)]
    unsafe fn task<L: Arithmetic>(&self, number: usize) {
        let Step {
            call,
            panel,
            queries,
            sums,
            states,
        } = *self.0;
        let (widths, heads) = (call.widths, call.sizes.heads);
        let groups = heads.div_ceil(HEADS);
        let (unit, first_head) = (number / groups, number % groups * HEADS);
        let count = HEADS.min(heads - first_head);
        let (index, chunk) = panel.units[unit];
        let query = &panel.queries[index];
        let mut scratch = Scratch::new(Holder::Task, TILE * (widths.row_room + HEADS) + HEADS);
        let (tile, scores, factors) = (
            scratch.part(TILE * widths.row_room),
            scratch.part(TILE * HEADS),
            scratch.part(HEADS),
        );
        let own = unit * heads + first_head;
        let sums = sums.at(own * widths.latent_room);
        let mut state = [State::EMPTY; HEADS];
        let left = Rows {
            start: queries.at((index * heads + first_head) * widths.row_room),
            stride: widths.row_room,
            count,
        };
        let (start, keys) = (chunk_start(chunk), query.position + 1);
        let mut first = start;
        // SAFETY: the caller has the tier's instructions; keys up to the query's own position lie in the block table; the
        // parts have the sizes asked for; the sums and states of this unit and these heads are this task's.
        unsafe {
            while first < keys.min(chunk_start(chunk + 1)) {
                let visible = TILE.min(keys - first);
                query.context.read::<L>(first, visible, tile);
                let right = Rows {
                    start: tile,
                    stride: widths.row_room,
                    count: visible,
                };
                let grid = Grid {
                    start: scores,
                    strides: (TILE, 1),
                };
                dots::<L>(left, right, widths.row_room, grid);
                for (head, state) in state.iter_mut().enumerate().take(count) {
                    *factors.add(head) = weigh::<L>(scores.add(head * TILE), visible, state);
                }
                let weights = Rows {
                    start: scores,
                    stride: TILE,
                    count,
                };
                let initial = if first == start {
                    Initial::Zero
                } else {
                    Initial::Scaled(factors)
                };
                let registers = widths.latent_room / L::WIDTH;
                weighted_sums::<L>(weights, right, initial, sums, widths.latent_room, registers);
                first += TILE;
            }
            for (head, state) in state.iter().enumerate().take(count) {
                let to = states.at((own + head) * STATE);
                *to = state.largest;
                *to.add(1) = state.total;
            }
        }
    }
}

impl<T: Element, O: Element> Work for Finish<'_, T, O> {
    #[inline(always)]
    unsafe fn task<L: Arithmetic>(&self, head: usize) {
        let Step {
            call, panel, sums, ..
        } = *self.0;
        let (sizes, widths, order) = (call.sizes, call.widths, &call.order);
        let (tokens, width) = (panel.queries.len(), order.width());
        let mut scratch = Scratch::new(Holder::Task, tokens * (width + STRIP) + STRIP * width);
        let (joined, products, strip) = (
            scratch.part(tokens * width),
            scratch.part(tokens * STRIP),
            scratch.part(STRIP * width),
        );
        // SAFETY: the caller has the tier's instructions; the parts have the sizes asked for; the sums of this head and its
        // columns of the output are this task's.
        unsafe {
            for (index, query) in panel.queries.iter().enumerate() {
                let total = self.join::<L>(query, head);
                let own = sums.at((query.first_unit * sizes.heads + head) * widths.latent_room);
                let own = std::slice::from_raw_parts_mut(own, sizes.kv_lora);
                for value in &mut *own {
                    *value /= total;
                }
                let places = std::slice::from_raw_parts_mut(joined.add(index * width), width);
                order.place(own, places);
            }
            let first = head * (sizes.nope + sizes.v) + sizes.nope;
            for at in (0..sizes.v).step_by(STRIP) {
                let count = STRIP.min(sizes.v - at);
                unpack::<L>(&call.up, first + at..first + at + count, strip);
                let left = Rows {
                    start: joined,
                    stride: width,
                    count: tokens,
                };
                let right = Rows {
                    start: strip,
                    stride: width,
                    count,
                };
                let grid = Grid {
                    start: products,
                    strides: (STRIP, 1),
                };
                dots::<L>(left, right, width, grid);
                for (index, query) in panel.queries.iter().enumerate() {
                    let products = products.add(index * STRIP);
                    call.write(
                        query.row,
                        head,
                        at,
                        std::slice::from_raw_parts(products, count),
                    );
                }
            }
        }
    }
}

impl<T: Element, O: Element> Finish<'_, T, O> {
    /// Joins a token's chunks in the place of the first one's sums; returns the sum of all weights.
    #[inline(always)]
    unsafe fn join<L: Arithmetic>(&self, query: &Query<'_>, head: usize) -> f32 {
        let Step {
            call, sums, states, ..
        } = *self.0;
        let (width, heads) = (call.widths.latent_room, call.sizes.heads);
        let place = |chunk: usize| (query.first_unit + chunk) * heads + head;
        // SAFETY: the caller has the tier's instructions, and what belongs to this head is its own.
        unsafe {
            let state = |chunk: usize| {
                let from = states.at(place(chunk) * STATE);
                State {
                    largest: *from,
                    total: *from.add(1),
                }
            };
            let mut joined = state(0);
            let to = sums.at(place(0) * width);
            for chunk in 1..chunks(query.position + 1) {
                let (before, after) = join::<L>(&mut joined, state(chunk));
                let (before, after) = (L::splat(before), L::splat(after));
                let from = sums.at(place(chunk) * width);
                for at in (0..width).step_by(L::WIDTH) {
                    let earlier = L::load(to.add(at)).multiply(before);
                    L::load(from.add(at))
                        .mul_add(after, earlier)
                        .store(to.add(at));
                }
            }
            joined.total
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_follow_each_other_and_hold_every_key() {
        for keys in [1, 383, 384, 385, 12_288, 12_289, 13_824, 13_825, 1_000_000] {
            let count = chunks(keys);
            assert!(chunk_start(count - 1) < keys && keys <= chunk_start(count));
        }
        assert_eq!(chunk_start(0), 0);
        for chunk in 0..100 {
            assert!(
                chunk_start(chunk).is_multiple_of(TILE)
                    && chunk_start(chunk) < chunk_start(chunk + 1)
            );
        }
    }
}
