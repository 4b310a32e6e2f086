//! Activations, laid out once for all rows that they are multiplied with.
//!
//! The weights stay as they are stored; it is the activation whose elements are put where a tier's registers have the
//! weights'. FP8 codes are unpacked as their values times 2^-120, so their activations are scaled up: each token by a
//! power of two that brings its largest element to 1..2, each scale of a row of blocks likewise, and their product by
//! 2^100. All of it is undone, exactly, in the last step.

use abyssal_quant::{Element, Scales};

use crate::lanes::{Lanes, Packing};
use crate::matrix::FP8_BLOCK;
use crate::memory::Aligned;
use crate::tier::{Kind, Tier};

/// What scaled FP8 activations are multiplied by; with codes worth 2^-120 no sum reaches float32's limits.
const RAISED: i32 = 100;
/// Codes are unpacked this much too small.
const SHORT: i32 = 120;

/// The rows of some tokens, ready for one packing.
#[derive(Debug, Default)]
pub(crate) struct Panel {
    /// `[tokens, width]`, in the order of the tier's registers, filled up with zeros.
    values: Aligned,
    /// Elements of a token, whole groups.
    width: usize,
    /// The power of two that each token was divided by.
    pub(crate) exponents: Vec<i32>,
}

/// A panel's rows, or some of them.
#[derive(Debug, Clone, Copy)]
pub(crate) struct PanelView<'a> {
    pub(crate) values: &'a [f32],
    pub(crate) width: usize,
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
    ) {
        let order = Order::of(tier, packing);
        self.width = order.width(columns);
        self.exponents.clear();
        let values = self.values.some(x.len() / columns * self.width);
        let mut padded = vec![0.0_f32; self.width];
        let rows = x.chunks_exact(columns);
        for (row, values) in rows.zip(values.chunks_exact_mut(self.width)) {
            for (value, element) in padded.iter_mut().zip(row) {
                *value = element.load();
            }
            let exponent = match packing {
                Packing::Fp8 => normalize(&mut padded[..columns]),
                _ => 0,
            };
            self.exponents.push(exponent);
            order.place(&padded, values);
        }
    }

    /// All of its rows.
    pub(crate) fn view(&self) -> PanelView<'_> {
        PanelView {
            values: self.values.first(self.exponents.len() * self.width),
            width: self.width,
            exponents: &self.exponents,
        }
    }
}

/// Elements of the largest group.
const MOST_ELEMENTS: usize = 64;

/// Where the elements of a group stand in a tier's registers.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Order {
    pub(crate) group: usize,
    /// The element at each place.
    pub(crate) elements: [u8; MOST_ELEMENTS],
}

impl Order {
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
pub(crate) fn normalize(values: &mut [f32]) -> i32 {
    // Sizes are ordered as their bits are.
    let largest = values.iter().fold(0, |largest: i32, value| {
        let bits = value.to_bits().cast_signed() & 0x7fff_ffff;
        let finite = if bits < 0x7f80_0000 { bits } else { 0 };
        largest.max(finite)
    });
    let exponent = exponent_of(f32::from_bits(largest.cast_unsigned()));
    multiply_by_power(values, -exponent);
    exponent
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

/// The scales of one row of FP8 blocks, brought to 1..2 times 2^100, and the exponent taken out.
pub(crate) struct BlockScales {
    factors: Vec<f32>,
    exponent: i32,
}

impl BlockScales {
    /// The scales of row `row_block` of `across` blocks.
    pub(crate) fn new(scales: Scales<'_>, row_block: usize, across: usize) -> Self {
        let mut factors: Vec<f32> = (row_block * across..(row_block + 1) * across)
            .map(|index| scales.get(index))
            .collect();
        let exponent = normalize(&mut factors);
        multiply_by_power(&mut factors, RAISED);
        Self { factors, exponent }
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
        let exponent = token_exponent + self.exponent + SHORT - RAISED;
        // Within float64's range: at most 127 + 127 + 20, at least -149 - 149 + 20. One rounding, at the end.
        let factor = f64::from_bits(((exponent + 1023) as u64) << 52);
        (f64::from(sum) * factor) as f32
    }
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
            let block = BlockScales::new(Scales::F32(&scales), 0, 2);
            let mut out = [0.0];
            block.apply(&[1.0], 0, &mut out);
            // A code of 1 is unpacked as 2^-120.
            let sum = out[0] * 2.0_f32.powi(-120);
            assert_eq!(block.undo(sum, 0), scale);
        }
    }
}
