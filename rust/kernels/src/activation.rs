//! Activations, laid out once for all rows that they are multiplied with.
//!
//! The weights stay as they are stored; it is the activation whose elements are put where a tier's registers have the
//! weights'. FP8 codes are unpacked as their values times 2^-120, so their activations are scaled up: each token by a
//! power of two that brings its largest element to 1..2, each scale of a row of blocks likewise, and their product by
//! 2^100. All of it is undone, exactly, in the last step.

use abyssal_quant::{Element, Format, Scales};

use crate::lanes::{Lanes, Packing};
use crate::matrix::FP8_BLOCK;
use crate::memory::{Aligned, Buffer, Places};
use crate::pool;
use crate::tier::{Kind, Tier};

/// What scaled FP8 activations are multiplied by; with codes worth 2^-120 no sum reaches float32's limits.
const RAISED: i32 = 100;
/// Codes are unpacked this much too small.
const SHORT: i32 = 120;
/// What the scales of pairs are multiplied by, so that small blocks count beside large ones: sums stay below 2^(64 + 1)
/// times 2^17, a block's largest, times the number of blocks.
const PAIRS_RAISED: i32 = 64;

/// Tokens laid out in a task.
const TASK_TOKENS: usize = 16;
/// Numbers that are worth a thread.
const WORK_PER_THREAD: usize = 1 << 15;

/// How activations are multiplied.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum Form {
    /// As float32 numbers, each in a lane.
    #[default]
    Lanes,
    /// As pairs of bfloat16 numbers, where the tier has such products.
    Pairs,
}

impl Form {
    /// The form for activations of a type and weights of a packing.
    pub(crate) fn of<T: Element>(tier: Tier, packing: Packing) -> Self {
        if tier.has_pairs() && T::FORMAT == Format::Bf16 && packing != Packing::F32 {
            Self::Pairs
        } else {
            Self::Lanes
        }
    }
}

/// The rows of some tokens, ready for one packing.
#[derive(Debug, Default)]
pub(crate) struct Panel {
    /// `[tokens, width]`, in the order of the tier's registers, filled up with zeros.
    values: Aligned,
    form: Form,
    /// Elements of a token, whole groups; of pairs, words that hold one pair each.
    width: usize,
    /// The power of two that each token was divided by.
    pub(crate) exponents: Vec<i32>,
}

/// A panel's rows, or some of them.
#[derive(Debug, Clone, Copy)]
pub(crate) struct PanelView<'a> {
    pub(crate) values: &'a [f32],
    pub(crate) width: usize,
    #[cfg_attr(
        not(target_arch = "x86_64"),
        allow(dead_code, reason = "there is one form alone")
    )]
    pub(crate) form: Form,
    pub(crate) exponents: &'a [i32],
}

impl PanelView<'_> {
    /// One token's elements.
    #[inline(always)]
    pub(crate) fn token(&self, token: usize) -> &[f32] {
        &self.values[token * self.width..][..self.width]
    }

    /// Tokens.
    pub(crate) fn len(&self) -> usize {
        self.exponents.len()
    }
}

impl Panel {
    /// Lays out the tokens of `x`, `[tokens, columns]`.
    pub(crate) fn fill<T: Element>(
        &mut self,
        tier: Tier,
        packing: Packing,
        x: &[T],
        columns: usize,
        num_threads: usize,
    ) {
        let order = Order::of(tier, packing);
        self.form = Form::of::<T>(tier, packing);
        self.width = match self.form {
            Form::Lanes => order.width(columns),
            Form::Pairs => columns.next_multiple_of(PAIR_GROUP) / 2,
        };
        let (form, width, tokens) = (self.form, self.width, x.len() / columns);
        self.exponents.resize(tokens, 0);
        let values = Places::new(self.values.some(tokens * width));
        let exponents = Places::new(&mut self.exponents);
        let threads = num_threads.min(x.len() / WORK_PER_THREAD).max(1);
        pool::for_each(threads, tokens.div_ceil(TASK_TOKENS), &|task| {
            let first = task * TASK_TOKENS;
            let count = TASK_TOKENS.min(tokens - first);
            let rows = x[first * columns..][..count * columns].chunks_exact(columns);
            // SAFETY: this task's tokens, which no other task writes.
            let (values, exponents) = unsafe {
                (
                    values.slice(first * width, count * width),
                    exponents.slice(first, count),
                )
            };
            let rows = rows.zip(values.chunks_exact_mut(width));
            for ((row, values), exponent) in rows.zip(exponents) {
                *exponent = match form {
                    Form::Lanes => lay_lanes(&order, packing, row, values),
                    #[cfg(target_arch = "x86_64")]
                    // SAFETY: only the tier that has the instructions has this form.
                    Form::Pairs => unsafe { lay_pairs(packing, row, values) },
                    #[cfg(not(target_arch = "x86_64"))]
                    Form::Pairs => 0,
                };
            }
        });
    }

    /// All of its rows.
    pub(crate) fn view(&self) -> PanelView<'_> {
        PanelView {
            values: self.values.first(self.exponents.len() * self.width),
            width: self.width,
            form: self.form,
            exponents: &self.exponents,
        }
    }
}

/// Lays out a token's elements as lanes; returns the exponent of what they were divided by.
fn lay_lanes<T: Element>(order: &Order, packing: Packing, row: &[T], out: &mut [f32]) -> i32 {
    let mut buffer = Buffer::take();
    let padded = buffer.some(out.len());
    load(row, padded);
    let exponent = match packing {
        Packing::Fp8 => normalize(&mut padded[..row.len()]),
        _ => 0,
    };
    order.place(padded, out);
    exponent
}

/// Lays out a token's elements as pairs; returns the exponent of what they were divided by.
///
/// # Safety
/// The tier's instructions are there.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi,avx512bf16")]
unsafe fn lay_pairs<T: Element>(packing: Packing, row: &[T], out: &mut [f32]) -> i32 {
    let mut buffer = Buffer::take();
    let padded = buffer.some(out.len() * 2);
    load(row, padded);
    // SAFETY: the instructions are there, as this function's own features say, and a word holds two numbers.
    unsafe { crate::pairs::lay(packing, padded, out.as_mut_ptr().cast()) }
}

/// Lays out a row of numbers as pairs where it stands, in its first half; returns the exponent of what they were divided
/// by.
///
/// # Safety
/// The tier's instructions are there.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi,avx512bf16")]
pub(crate) unsafe fn lay_pairs_in_place(packing: Packing, row: &mut [f32]) -> i32 {
    let to = row.as_mut_ptr();
    // SAFETY: as above; a place is written after all that lies there was read.
    unsafe { crate::pairs::lay(packing, row, to.cast()) }
}

/// Reads a row, and fills up with zeros.
#[inline(always)]
fn load<T: Element>(row: &[T], to: &mut [f32]) {
    for (value, element) in to.iter_mut().zip(row) {
        *value = element.load();
    }
    to[row.len()..].fill(0.0);
}

/// Elements of a group of pairs.
pub(crate) const PAIR_GROUP: usize = 128;
/// Elements of the largest group of lanes.
const MOST_ELEMENTS: usize = 64;

/// Where the elements of a group stand in a tier's registers.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Order {
    pub(crate) group: usize,
    /// The element at each place.
    pub(crate) elements: [u8; MOST_ELEMENTS],
}

impl Order {
    /// Every element in its own place.
    pub(crate) const NATURAL: Self = {
        let mut elements = [0; MOST_ELEMENTS];
        let mut place = 0;
        while place < MOST_ELEMENTS {
            elements[place] = place as u8;
            place += 1;
        }
        Self {
            group: MOST_ELEMENTS,
            elements,
        }
    };

    pub(crate) fn of(tier: Tier, packing: Packing) -> Self {
        fn of<L: Lanes>(packing: Packing) -> Order {
            Order {
                group: L::GROUP,
                elements: std::array::from_fn(|place| {
                    if place < L::GROUP {
                        L::element(packing, place) as u8
                    } else {
                        0
                    }
                }),
            }
        }
        match tier.0 {
            Kind::Scalar => of::<crate::scalar::Scalar<8>>(packing),
            #[cfg(target_arch = "x86_64")]
            Kind::Avx2 => of::<crate::avx2::Avx2>(packing),
            #[cfg(target_arch = "x86_64")]
            Kind::Avx512 | Kind::Avx512Bf16 => of::<crate::avx512::Avx512>(packing),
            #[cfg(target_arch = "aarch64")]
            Kind::Neon => of::<crate::neon::Neon>(packing),
        }
    }

    /// Elements of a row with so many columns, filled up to whole groups.
    pub(crate) fn width(&self, columns: usize) -> usize {
        columns.next_multiple_of(self.group)
    }

    /// Puts the elements of whole groups where they stand.
    fn place(&self, from: &[f32], to: &mut [f32]) {
        match self.group {
            16 => self.place_groups::<16>(from, to),
            32 => self.place_groups::<32>(from, to),
            _ => self.place_groups::<MOST_ELEMENTS>(from, to),
        }
    }

    fn place_groups<const G: usize>(&self, from: &[f32], to: &mut [f32]) {
        let order: [usize; G] = std::array::from_fn(|place| usize::from(self.elements[place]) % G);
        for (from, to) in from
            .as_chunks::<G>()
            .0
            .iter()
            .zip(to.as_chunks_mut::<G>().0)
        {
            for (to, &element) in to.iter_mut().zip(&order) {
                *to = from[element];
            }
        }
    }

    /// Where each element stands.
    pub(crate) fn places(&self) -> [u8; MOST_ELEMENTS] {
        let mut places = [0; MOST_ELEMENTS];
        for (place, &element) in self.elements[..self.group].iter().enumerate() {
            places[usize::from(element)] = place as u8;
        }
        places
    }
}

/// Divides numbers by the power of two below their largest finite size; returns its exponent.
#[inline(always)]
pub(crate) fn normalize(values: &mut [f32]) -> i32 {
    let (sixteens, rest) = values.as_chunks::<16>();
    let mut largest = [0; 16];
    for sixteen in sixteens {
        for (largest, &value) in largest.iter_mut().zip(sixteen) {
            *largest = finite_size(value).max(*largest);
        }
    }
    let sizes = rest.iter().map(|&value| finite_size(value));
    let largest = sizes.chain(largest).fold(0, i32::max);
    let exponent = exponent_of(f32::from_bits(largest.cast_unsigned()));
    multiply_by_power(values, -exponent);
    exponent
}

/// The bits of a number's size, which are ordered as the sizes are; 0 unless it is finite.
#[inline(always)]
fn finite_size(value: f32) -> i32 {
    let bits = value.to_bits().cast_signed() & 0x7fff_ffff;
    if bits < 0x7f80_0000 { bits } else { 0 }
}

/// The exponent of the power of two at or below a number; 0 for zero.
fn exponent_of(size: f32) -> i32 {
    match size.to_bits() >> 23 {
        0 if size == 0.0 => 0,
        // Subnormal: counted from the highest bit.
        0 => -118 - size.to_bits().leading_zeros().cast_signed(),
        field => field.cast_signed() - 127,
    }
}

/// Multiplies by a power of two between 2^-127 and 2^149; exact while the results are normal.
#[inline(always)]
fn multiply_by_power(values: &mut [f32], exponent: i32) {
    // Two steps: 2^149 is no float32, and 2^-127 is subnormal.
    let half = exponent / 2;
    let (first, second) = (power(half), power(exponent - half));
    for value in values {
        *value = *value * first * second;
    }
}

/// A normal power of two.
fn power(exponent: i32) -> f32 {
    f32::from_bits(((exponent + 127) as u32) << 23)
}

/// The scales of one row of FP8 blocks, the largest brought to 1..2 times a power of two, and the exponent taken out.
pub(crate) struct BlockScales {
    factors: Vec<f32>,
    /// Of what sums of products have to be multiplied by.
    exponent: i32,
}

impl BlockScales {
    /// The scales of row `row_block` of `across` blocks.
    pub(crate) fn new(form: Form, scales: Scales<'_>, row_block: usize, across: usize) -> Self {
        let mut factors: Vec<f32> = (row_block * across..(row_block + 1) * across)
            .map(|index| scales.get(index))
            .collect();
        let exponent = normalize(&mut factors);
        let (raised, short) = match form {
            Form::Lanes => (RAISED, SHORT),
            Form::Pairs => (PAIRS_RAISED, 0),
        };
        multiply_by_power(&mut factors, raised);
        Self {
            factors,
            exponent: exponent + short - raised,
        }
    }

    /// One for each block.
    #[cfg(target_arch = "x86_64")]
    pub(crate) fn factors(&self) -> &[f32] {
        &self.factors
    }

    /// Writes the elements `[start, start + out.len())` of a token, each times its block's factor.
    pub(crate) fn apply(&self, token: &[f32], start: usize, out: &mut [f32]) {
        let blocks = token[start..start + out.len()]
            .chunks(FP8_BLOCK)
            .zip(out.chunks_mut(FP8_BLOCK));
        for ((values, out), factor) in blocks.zip(&self.factors[start / FP8_BLOCK..]) {
            for (out, value) in out.iter_mut().zip(values) {
                *out = value * factor;
            }
        }
    }

    /// Takes a sum back to its own size.
    pub(crate) fn undo(&self, sum: f32, token_exponent: i32) -> f32 {
        // One rounding, at the end.
        (f64::from(sum) * self.undoing(token_exponent)) as f32
    }

    /// What a sum is multiplied by to take it back to its own size.
    pub(crate) fn undoing(&self, token_exponent: i32) -> f64 {
        // Within float64's range: at most 127 + 127 + 20, at least -149 - 149 - 64.
        wide_power(token_exponent + self.exponent)
    }
}

/// A power of two in float64, normal there.
pub(crate) fn wide_power(exponent: i32) -> f64 {
    f64::from_bits(((exponent + 1023) as u64) << 52)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exponents_of_all_kinds_of_numbers() {
        for exponent in -149..128 {
            let size = 2.0_f64.powi(exponent) as f32;
            assert_eq!(exponent_of(size), exponent);
            let mut values = [size, -size / 2.0, 0.0];
            assert_eq!(normalize(&mut values), exponent);
            assert_eq!(values[0], 1.0);
        }
        let mut odd = [f32::INFINITY, f32::NAN, 3.0];
        assert_eq!(normalize(&mut odd), 1);
        assert!(odd[0] == f32::INFINITY && odd[1].is_nan() && odd[2] == 1.5);
    }

    #[test]
    fn scaling_is_undone_exactly() {
        for scale in [1e-45_f32, 1.3e-38, 1e-4, 1.0, 448.0, 1e30] {
            let scales = [scale, scale / 2.0];
            let block = BlockScales::new(Form::Lanes, Scales::F32(&scales), 0, 2);
            let mut out = [0.0];
            block.apply(&[1.0], 0, &mut out);
            // A code of 1 is unpacked as 2^-120.
            let sum = out[0] * 2.0_f32.powi(-120);
            assert_eq!(block.undo(sum, 0), scale);
        }
    }
}
