//! Products of hidden states with the rows of a weight, in registers.
//!
//! The same code is compiled for every tier; its operations are single float32 multiplications and additions on arrays
//! of sixteen, which the compiler keeps in vector registers, so the bits are the same.

use std::ops::Range;

use abyssal_routing::Tier;

use super::Values;

/// Lanes of a sum.
pub(super) const WIDTH: usize = 16;
/// Rows of the weight, and tokens, whose sums are in registers at the same time.
pub(super) const EXPERTS: usize = 3;
const TOKENS: usize = 2;
/// Rows of the weight at a time for a single token.
const ALONE: usize = 4;

type Lanes = [f32; WIDTH];

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

    pub(super) fn width(&self) -> usize {
        self.width
    }

    /// Takes `count` rows of a matrix, from `first` on.
    pub(super) fn fill(&mut self, from: Values<'_>, first: usize, count: usize) {
        let cells = first * self.width..(first + count) * self.width;
        match from {
            Values::F32(from) => self.convert(&from[cells]),
            Values::Bf16(from) => self.convert(&from[cells]),
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
trait Number: Copy {
    fn widen(self) -> f32;
}

impl Number for f32 {
    #[inline(always)]
    fn widen(self) -> f32 {
        self
    }
}

impl Number for u16 {
    #[inline(always)]
    fn widen(self) -> f32 {
        f32::from_bits(u32::from(self) << 16)
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
    match tier.name() {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: a tier exists only where the processor has its instructions, and this one has AVX-512 F, BW, DQ, VL.
        "avx512" => unsafe { product_avx512(x, tokens, weight, experts, out) },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: a tier exists only where the processor has its instructions, and this one has AVX2.
        "avx2" => unsafe { product_avx2(x, tokens, weight, experts, out) },
        _ => product(x, tokens, weight, experts, out),
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,avx512f,avx512bw,avx512dq,avx512vl")]
fn product_avx512<N: Number>(
    x: &Rows,
    tokens: Range<usize>,
    weight: &[N],
    experts: Range<usize>,
    out: &mut [f32],
) {
    product(x, tokens, weight, experts, out);
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn product_avx2<N: Number>(
    x: &Rows,
    tokens: Range<usize>,
    weight: &[N],
    experts: Range<usize>,
    out: &mut [f32],
) {
    product(x, tokens, weight, experts, out);
}

/// `out[token][expert]`, both counted from the start of their ranges.
#[inline(always)]
fn product<N: Number>(
    x: &Rows,
    tokens: Range<usize>,
    weight: &[N],
    experts: Range<usize>,
    out: &mut [f32],
) {
    let width = experts.len();
    let row = |expert: usize| &weight[expert * x.width..(expert + 1) * x.width];
    let mut expert = experts.start;
    // The rows of the weight stay in the nearest cache while all tokens pass.
    while expert < experts.end {
        let column = expert - experts.start;
        let rest = experts.end - expert;
        if tokens.len() == 1 && rest >= ALONE {
            let rows = [
                row(expert),
                row(expert + 1),
                row(expert + 2),
                row(expert + 3),
            ];
            let [sums] = tile::<N, 1, ALONE>([x.row(tokens.start)], rows);
            out[column..column + ALONE].copy_from_slice(&sums);
            expert += ALONE;
        } else if rest >= EXPERTS {
            let rows = [row(expert), row(expert + 1), row(expert + 2)];
            several(x, tokens.clone(), rows, &mut out[column..], width);
            expert += EXPERTS;
        } else {
            several(x, tokens.clone(), [row(expert)], &mut out[column..], width);
            expert += 1;
        }
    }
}

/// The products of all tokens with a few rows of the weight.
#[inline(always)]
fn several<N: Number, const E: usize>(
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
            let sums = tile::<N, TOKENS, E>([x.row(token), x.row(token + 1)], rows);
            out[at..at + E].copy_from_slice(&sums[0]);
            out[at + width..at + width + E].copy_from_slice(&sums[1]);
            token += TOKENS;
        } else {
            let [sums] = tile::<N, 1, E>([x.row(token)], rows);
            out[at..at + E].copy_from_slice(&sums);
            token += 1;
        }
    }
}

/// The products of `T` tokens with `E` rows.
#[inline(always)]
fn tile<N: Number, const T: usize, const E: usize>(
    x: [&[Lanes]; T],
    rows: [&[N]; E],
) -> [[f32; E]; T] {
    let mut sums = [[[0.0_f32; WIDTH]; E]; T];
    let mut full: [&[[N; WIDTH]]; E] = [&[]; E];
    let vectors = rows[0].len() / WIDTH;
    for (full, row) in full.iter_mut().zip(rows) {
        *full = &row.as_chunks().0[..vectors];
    }
    let mut whole: [&[Lanes]; T] = [&[]; T];
    for (whole, x) in whole.iter_mut().zip(x) {
        *whole = &x[..vectors];
    }
    for at in 0..vectors {
        for expert in 0..E {
            let mut weight = [0.0; WIDTH];
            for lane in 0..WIDTH {
                weight[lane] = full[expert][at][lane].widen();
            }
            for token in 0..T {
                add(&mut sums[token][expert], &whole[token][at], &weight);
            }
        }
    }
    if rows[0].len() > vectors * WIDTH {
        for expert in 0..E {
            let mut weight = [0.0; WIDTH];
            for (to, from) in weight.iter_mut().zip(&rows[expert][vectors * WIDTH..]) {
                *to = from.widen();
            }
            for token in 0..T {
                add(&mut sums[token][expert], &x[token][vectors], &weight);
            }
        }
    }
    let mut logits = [[0.0; E]; T];
    for token in 0..T {
        for expert in 0..E {
            logits[token][expert] = tree_sum(sums[token][expert]);
        }
    }
    logits
}

#[inline(always)]
fn add(sums: &mut Lanes, x: &Lanes, weight: &Lanes) {
    for lane in 0..WIDTH {
        sums[lane] += x[lane] * weight[lane];
    }
}

/// Lanes 8 apart first, then 4, 2 and 1 apart.
#[inline(always)]
fn tree_sum(mut lanes: Lanes) -> f32 {
    let mut width = WIDTH;
    while width > 1 {
        width /= 2;
        for lane in 0..width {
            lanes[lane] += lanes[lane + width];
        }
    }
    lanes[0]
}
