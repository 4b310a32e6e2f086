//! `x @ W.T` on packed weights.
//!
//! ```text
//! block_dot = 16 lanes over the 128 products of a block, each lane in ascending order, then a tree over the lanes
//! out[t, n] = sum over blocks, ascending, of scale * block_dot
//! ```
//!
//! Every product, sum and scale is one float32 operation, rounded to nearest even and never contracted. The order of a
//! result's operations follows from the number of columns alone: not from the number of tokens, the place in a batch,
//! the number of threads or the instruction tier, so the bits do not depend on them either. Ragged blocks are filled
//! with zeros, for the activation and for the weight.

use crate::float::{Element, e4m3_to_f32};
use crate::fp8::Scales;
use crate::mxfp4;
use crate::scalar;
use crate::simd::Tier;

/// Columns of a block.
pub(crate) const BLOCK: usize = 128;
pub(crate) const LANES: usize = 16;
/// Weight rows multiplied together.
pub(crate) const GROUP: usize = 4;
/// Weight rows decoded together: 8 KB, which stay in the first-level cache while every token passes over them.
const TILE_ROWS: usize = 16;
/// Tokens converted to float32 together.
const TILE_TOKENS: usize = 256;
/// Multiplications that are worth a thread.
const WORK_PER_THREAD: usize = 1 << 20;

/// The columns of one block, as float32.
pub(crate) type Block = [f32; BLOCK];

/// Rows of packed weights.
pub(crate) trait Weight: Sync {
    /// Writes one block of one row and returns its scale.
    fn decode(&self, row: usize, block: usize, values: &mut Block) -> f32;
}

/// FP8 e4m3 codes with one scale per 128 x 128.
pub(crate) struct Fp8<'a> {
    pub(crate) codes: &'a [u8],
    pub(crate) scales: Scales<'a>,
    pub(crate) columns: usize,
}

/// Codes of a ragged block, filled up with code 0, which is zero.
fn padded(codes: &[u8]) -> [u8; BLOCK] {
    let mut block = [0; BLOCK];
    block[..codes.len()].copy_from_slice(codes);
    block
}

impl Weight for Fp8<'_> {
    #[inline(always)]
    fn decode(&self, row: usize, block: usize, values: &mut Block) -> f32 {
        let start = block * BLOCK;
        let end = self.columns.min(start + BLOCK);
        let codes = &self.codes[row * self.columns + start..row * self.columns + end];
        // A copy cannot overlap `values`, which the compiler would check for at run time.
        let copy = match <&[u8; BLOCK]>::try_from(codes) {
            Ok(whole) => *whole,
            Err(_) => padded(codes),
        };
        for (value, &code) in values.iter_mut().zip(&copy) {
            *value = e4m3_to_f32(code);
        }
        self.scales
            .get(row / BLOCK * self.columns.div_ceil(BLOCK) + block)
    }
}

/// MXFP4 codes with one scale per 32 columns. The scale is a power of two, so it goes into the decoded value.
pub(crate) struct Mxfp4<'a> {
    pub(crate) codes: &'a [u8],
    pub(crate) scales: &'a [u8],
    pub(crate) columns: usize,
}

impl Weight for Mxfp4<'_> {
    #[inline(always)]
    fn decode(&self, row: usize, block: usize, values: &mut Block) -> f32 {
        let start = row * self.columns + block * BLOCK;
        let end = (row + 1) * self.columns;
        let end = end.min(start + BLOCK);
        if end - start < BLOCK {
            values.fill(0.0);
        }
        let scales = &self.scales[start / mxfp4::BLOCK..end / mxfp4::BLOCK];
        scalar::decode_mxfp4(
            &self.codes[start / 2..end / 2],
            scales,
            &mut values[..end - start],
        );
        1.0
    }
}

/// The products of one activation block with four weight blocks: the specification of every tier's.
#[inline(always)]
pub(crate) fn dot_four(x: &Block, weights: &[Block; GROUP]) -> [f32; GROUP] {
    weights.each_ref().map(|weight| {
        let mut lanes = [0.0_f32; LANES];
        for step in 0..BLOCK / LANES {
            for (lane, sum) in lanes.iter_mut().enumerate() {
                *sum += x[step * LANES + lane] * weight[step * LANES + lane];
            }
        }
        let mut width = LANES;
        while width > 1 {
            width /= 2;
            for lane in 0..width {
                lanes[lane] += lanes[lane + width];
            }
        }
        lanes[0]
    })
}

/// Writes the products of all tokens with the rows from `first` on: `out[row - first][token]`.
#[inline(always)]
pub(crate) fn multiply<W: Weight>(
    weight: &W,
    x: &[Block],
    tokens: usize,
    first: usize,
    out: &mut [f32],
    dot_four: impl Fn(&Block, &[Block; GROUP]) -> [f32; GROUP],
) {
    let num_blocks = x.len() / tokens;
    // Rows behind the last one are multiplied too, and dropped.
    let mut values = [[[0.0_f32; BLOCK]; GROUP]; TILE_ROWS / GROUP];
    let mut scales = [0.0_f32; TILE_ROWS];
    out.fill(0.0);
    for (tile, out) in out.chunks_mut(TILE_ROWS * tokens).enumerate() {
        let rows = out.len() / tokens;
        let start = first + tile * TILE_ROWS;
        for block in 0..num_blocks {
            for row in 0..rows {
                let values = &mut values[row / GROUP][row % GROUP];
                scales[row] = weight.decode(start + row, block, values);
            }
            for token in 0..tokens {
                let x = &x[token * num_blocks + block];
                for (group, values) in values.iter().enumerate().take(rows.div_ceil(GROUP)) {
                    let dots = dot_four(x, values);
                    let rows = group * GROUP..rows.min((group + 1) * GROUP);
                    for (row, dot) in rows.zip(dots) {
                        out[row * tokens + token] += scales[row] * dot;
                    }
                }
            }
        }
    }
}

/// Converts rows to float32 blocks, the last of each row filled up with zeros.
fn to_blocks<T: Element>(x: &[T], columns: usize, blocks: &mut Vec<Block>) {
    blocks.clear();
    for row in x.chunks_exact(columns) {
        for part in row.chunks(BLOCK) {
            let mut block = [0.0; BLOCK];
            for (value, element) in block.iter_mut().zip(part) {
                *value = element.load();
            }
            blocks.push(block);
        }
    }
}

/// Multiplies checked slices: `x` is `[tokens, columns]`, `out` is `[tokens, rows]`.
pub(crate) fn linear<W: Weight, T: Element>(
    tier: Tier,
    weight: &W,
    columns: usize,
    rows: usize,
    x: &[T],
    out: &mut [T],
    num_threads: usize,
) {
    if rows == 0 {
        return;
    }
    let mut blocks = Vec::new();
    let mut products = Vec::new();
    for (x, out) in x
        .chunks(TILE_TOKENS * columns)
        .zip(out.chunks_mut(TILE_TOKENS * rows))
    {
        let tokens = x.len() / columns;
        to_blocks(x, columns, &mut blocks);
        products.resize(rows * tokens, 0.0);
        let threads = (rows * columns * tokens / WORK_PER_THREAD).clamp(1, num_threads.max(1));
        let share = rows.div_ceil(threads).next_multiple_of(TILE_ROWS);
        std::thread::scope(|scope| {
            let mut parts = products.chunks_mut(share * tokens).enumerate();
            let own = parts.next();
            for (part, products) in parts {
                let blocks = &blocks;
                scope.spawn(move || tier.multiply(weight, blocks, tokens, part * share, products));
            }
            // The caller takes the first share.
            if let Some((_, products)) = own {
                tier.multiply(weight, &blocks, tokens, 0, products);
            }
        });
        for (token, out) in out.chunks_exact_mut(rows).enumerate() {
            for (row, value) in out.iter_mut().enumerate() {
                *value = T::store(products[row * tokens + token]);
            }
        }
    }
}
