//! Products of few hidden states with the rows of a weight, which are read where they lie.
//!
//! The same code runs on the vectors of every tier; its operations are single float32 multiplications and additions.

use std::ops::Range;

use abyssal_routing::Tier;

use super::Values;
#[cfg(target_arch = "aarch64")]
use super::vector::arm::Neon;
#[cfg(target_arch = "x86_64")]
use super::vector::x86::{Avx2, Avx512};
use super::vector::{Scalar, Vector, WIDTH};

/// Rows of the weight, and tokens, whose sums are in registers at the same time.
pub(super) const EXPERTS: usize = 3;
const TOKENS: usize = 2;
/// Rows of the weight at a time for a single token.
const ALONE: usize = 4;

/// Numbers of hidden states that stay in the second nearest cache while all rows of the weight pass.
const NEAR: usize = 1 << 16;

pub(crate) type Lanes = [f32; WIDTH];

/// Hidden states in float32, each row filled up with zeros to whole vectors.
pub(super) struct Rows {
    values: Vec<Lanes>,
    width: usize,
    vectors: usize,
}

impl Rows {
    /// Memory for some rows.
    pub(super) fn new(width: usize, count: usize) -> Self {
        let vectors = width.div_ceil(WIDTH);
        Self {
            values: vec![[0.0; WIDTH]; vectors * count],
            width,
            vectors,
        }
    }

    /// Takes the rows of a matrix.
    pub(super) fn fill(&mut self, from: Values<'_>) {
        match from {
            Values::F32(from) => self.convert(from),
            Values::Bf16(from) => self.convert(from),
        }
    }

    fn convert<N: Number>(&mut self, from: &[N]) {
        for (to, from) in self
            .values
            .chunks_exact_mut(self.vectors)
            .zip(from.chunks_exact(self.width))
        {
            for (to, from) in to.as_flattened_mut().iter_mut().zip(from) {
                *to = from.widen();
            }
        }
    }

    fn row(&self, token: usize) -> &[Lanes] {
        &self.values[token * self.vectors..(token + 1) * self.vectors]
    }
}

/// A number of a matrix.
pub(super) trait Number: Copy + Default {
    fn widen(self) -> f32;
    fn load<V: Vector>(v: V, from: &[Self; WIDTH]) -> V::Float;
}

impl Number for f32 {
    #[inline(always)]
    fn widen(self) -> f32 {
        self
    }

    #[inline(always)]
    fn load<V: Vector>(v: V, from: &[Self; WIDTH]) -> V::Float {
        v.load(from)
    }
}

impl Number for u16 {
    #[inline(always)]
    fn widen(self) -> f32 {
        f32::from_bits(u32::from(self) << 16)
    }

    #[inline(always)]
    fn load<V: Vector>(v: V, from: &[Self; WIDTH]) -> V::Float {
        v.load_bf16(from)
    }
}

/// Writes the products of some tokens with some rows of the weight.
pub(super) fn rows(
    tier: Tier,
    x: &Rows,
    tokens: Range<usize>,
    weight: Values<'_>,
    experts: Range<usize>,
    out: &mut [f32],
) {
    match weight {
        Values::F32(weight) => chosen(tier, x, tokens, weight, experts, out),
        Values::Bf16(weight) => chosen(tier, x, tokens, weight, experts, out),
    }
}

fn chosen<N: Number>(
    tier: Tier,
    x: &Rows,
    tokens: Range<usize>,
    weight: &[N],
    experts: Range<usize>,
    out: &mut [f32],
) {
    #[cfg(target_arch = "x86_64")]
    {
        if let Some(v) = Avx512::of(tier) {
            // SAFETY: the value exists only where the processor has these instructions.
            return unsafe { product_avx512(v, x, tokens, weight, experts, out) };
        }
        if let Some(v) = Avx2::of(tier) {
            // SAFETY: the value exists only where the processor has AVX2.
            return unsafe { product_avx2(v, x, tokens, weight, experts, out) };
        }
    }
    #[cfg(target_arch = "aarch64")]
    if let Some(v) = Neon::of(tier) {
        return product(v, x, tokens, weight, experts, out);
    }
    product(Scalar, x, tokens, weight, experts, out);
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,avx512f,avx512bw,avx512dq,avx512vl")]
fn product_avx512<N: Number>(
    v: Avx512,
    x: &Rows,
    tokens: Range<usize>,
    weight: &[N],
    experts: Range<usize>,
    out: &mut [f32],
) {
    product(v, x, tokens, weight, experts, out);
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn product_avx2<N: Number>(
    v: Avx2,
    x: &Rows,
    tokens: Range<usize>,
    weight: &[N],
    experts: Range<usize>,
    out: &mut [f32],
) {
    product(v, x, tokens, weight, experts, out);
}

/// `out[token][expert]`, both counted from the start of their ranges.
#[inline(always)]
fn product<V: Vector, N: Number>(
    v: V,
    x: &Rows,
    tokens: Range<usize>,
    weight: &[N],
    experts: Range<usize>,
    out: &mut [f32],
) {
    let width = experts.len();
    let some = (NEAR / (x.vectors * WIDTH)).clamp(TOKENS, tokens.len().max(TOKENS));
    for start in tokens.clone().step_by(some) {
        let out = &mut out[(start - tokens.start) * width..];
        let tokens = start..tokens.end.min(start + some);
        let mut expert = experts.start;
        while expert < experts.end {
            let column = expert - experts.start;
            let rest = experts.end - expert;
            if tokens.len() == 1 && rest >= ALONE {
                let rows = lines(weight, x.width, expert);
                let [sums] = tile::<V, N, 1, ALONE>(v, [x.row(tokens.start)], rows);
                out[column..column + ALONE].copy_from_slice(&sums);
                expert += ALONE;
            } else if rest >= EXPERTS {
                let rows: [_; EXPERTS] = lines(weight, x.width, expert);
                several(v, x, tokens.clone(), rows, &mut out[column..], width);
                expert += EXPERTS;
            } else {
                let rows: [_; 1] = lines(weight, x.width, expert);
                several(v, x, tokens.clone(), rows, &mut out[column..], width);
                expert += 1;
            }
        }
    }
}

/// Some rows of the weight.
#[inline(always)]
fn lines<N, const E: usize>(weight: &[N], width: usize, first: usize) -> [&[N]; E] {
    let mut lines: [&[N]; E] = [&[]; E];
    for (line, row) in lines
        .iter_mut()
        .zip(weight[first * width..].chunks_exact(width))
    {
        *line = row;
    }
    lines
}

/// The products of all tokens with a few rows of the weight.
#[inline(always)]
fn several<V: Vector, N: Number, const E: usize>(
    v: V,
    x: &Rows,
    tokens: Range<usize>,
    rows: [&[N]; E],
    out: &mut [f32],
    width: usize,
) {
    let mut token = tokens.start;
    while token < tokens.end {
        let at = (token - tokens.start) * width;
        if tokens.end - token >= TOKENS {
            let sums = tile::<V, N, TOKENS, E>(v, [x.row(token), x.row(token + 1)], rows);
            out[at..at + E].copy_from_slice(&sums[0]);
            out[at + width..at + width + E].copy_from_slice(&sums[1]);
            token += TOKENS;
        } else {
            let [sums] = tile::<V, N, 1, E>(v, [x.row(token)], rows);
            out[at..at + E].copy_from_slice(&sums);
            token += 1;
        }
    }
}

/// The products of `T` tokens with `E` rows.
#[inline(always)]
fn tile<V: Vector, N: Number, const T: usize, const E: usize>(
    v: V,
    x: [&[Lanes]; T],
    rows: [&[N]; E],
) -> [[f32; E]; T] {
    let mut sums = [[v.zero(); E]; T];
    let vectors = rows[0].len() / WIDTH;
    let mut full: [&[[N; WIDTH]]; E] = [&[]; E];
    for (full, row) in full.iter_mut().zip(rows) {
        *full = &row.as_chunks().0[..vectors];
    }
    let mut whole: [&[Lanes]; T] = [&[]; T];
    for (whole, x) in whole.iter_mut().zip(x) {
        *whole = &x[..vectors];
    }
    for at in 0..vectors {
        let mut left = [v.zero(); T];
        for token in 0..T {
            left[token] = v.load(&whole[token][at]);
        }
        for expert in 0..E {
            let right = N::load(v, &full[expert][at]);
            for token in 0..T {
                sums[token][expert] = v.add_product(sums[token][expert], left[token], right);
            }
        }
    }
    if rows[0].len() > vectors * WIDTH {
        // Behind the end both sides are zero, and so is their product.
        for expert in 0..E {
            let mut rest = [N::default(); WIDTH];
            for (to, from) in rest.iter_mut().zip(&rows[expert][vectors * WIDTH..]) {
                *to = *from;
            }
            let right = N::load(v, &rest);
            for token in 0..T {
                let left = v.load(&x[token][vectors]);
                sums[token][expert] = v.add_product(sums[token][expert], left, right);
            }
        }
    }
    let mut logits = [[0.0; E]; T];
    for token in 0..T {
        for expert in 0..E {
            let mut lanes = [0.0; WIDTH];
            v.store(sums[token][expert], &mut lanes);
            logits[token][expert] = tree_sum(lanes);
        }
    }
    logits
}

/// Lanes 8 apart first, then 4, 2 and 1 apart.
#[inline(always)]
pub(crate) fn tree_sum(mut lanes: Lanes) -> f32 {
    let mut width = WIDTH;
    while width > 1 {
        width /= 2;
        for lane in 0..width {
            lanes[lane] += lanes[lane + width];
        }
    }
    lanes[0]
}
