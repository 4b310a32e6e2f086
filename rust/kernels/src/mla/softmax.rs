//! The online softmax: scores of a tile become weights, and what was summed before is brought to the same base.
//!
//! Scores are logarithms to base 2. A row's state is the largest score so far and the sum of its weights; parts of a row
//! are joined by the same rule.

use super::arithmetic::Arithmetic;

/// Keys of a tile, counted from position 0: whole registers of every tier, whole tiles of three.
pub(super) const TILE: usize = 48;
/// Lanes of the widest register.
const WIDEST: usize = 16;

/// How far a row has come.
#[derive(Debug, Clone, Copy)]
pub(super) struct State {
    /// The largest score; negative infinity before the first.
    pub(super) largest: f32,
    /// The sum of the weights.
    pub(super) total: f32,
}

impl State {
    /// Nothing seen.
    pub(super) const EMPTY: Self = Self {
        largest: f32::NEG_INFINITY,
        total: 0.0,
    };
}

/// What weights are relative to: the largest score, or 0 where all are negative infinity (their weights are 0).
#[inline(always)]
pub(super) fn base(largest: f32) -> f32 {
    if largest == f32::NEG_INFINITY {
        0.0
    } else {
        largest
    }
}

#[inline(always)]
fn larger(a: f32, b: f32) -> f32 {
    if a > b { a } else { b }
}

#[inline(always)]
unsafe fn exp2<L: Arithmetic>(x: f32) -> f32 {
    let mut lanes = [0.0; WIDEST];
    // SAFETY: the caller has the tier's instructions; no register has more lanes.
    unsafe { L::splat(x).exp2_nonpositive().store(lanes.as_mut_ptr()) };
    lanes[0]
}

/// Turns the first `visible` of a tile's scores into weights and the others into 0; returns the factor for what was summed
/// before.
///
/// # Safety
/// The tier's instructions are there; `visible` is at most [`TILE`], and the tile is writable.
#[inline(always)]
pub(super) unsafe fn weigh<L: Arithmetic>(
    scores: *mut f32,
    visible: usize,
    state: &mut State,
) -> f32 {
    // SAFETY: as the caller promises; a tile is whole registers.
    unsafe {
        for place in visible..TILE {
            *scores.add(place) = f32::NEG_INFINITY;
        }
        let mut most = L::load(scores);
        for at in (L::WIDTH..TILE).step_by(L::WIDTH) {
            most = L::load(scores.add(at)).larger(most);
        }
        let mut lanes = [f32::NEG_INFINITY; WIDEST];
        most.store(lanes.as_mut_ptr());
        let largest = lanes[..L::WIDTH]
            .iter()
            .fold(state.largest, |most, &lane| larger(lane, most));
        let origin = base(largest);
        let factor = exp2::<L>(state.largest - origin);
        let mut total = L::zero();
        for at in (0..TILE).step_by(L::WIDTH) {
            let weight = L::load(scores.add(at))
                .subtract(L::splat(origin))
                .exp2_nonpositive();
            weight.store(scores.add(at));
            total = total.add(weight);
        }
        state.total = state.total * factor + total.sum();
        state.largest = largest;
        factor
    }
}

/// Joins a later part of a row to an earlier one; returns the factors of the two parts' sums.
///
/// # Safety
/// The tier's instructions are there.
#[inline(always)]
pub(super) unsafe fn join<L: Arithmetic>(state: &mut State, next: State) -> (f32, f32) {
    let largest = larger(next.largest, state.largest);
    let origin = base(largest);
    // SAFETY: as the caller promises.
    let (before, after) = unsafe {
        (
            exp2::<L>(state.largest - origin),
            exp2::<L>(next.largest - origin),
        )
    };
    *state = State {
        largest,
        total: state.total * before + next.total * after,
    };
    (before, after)
}
