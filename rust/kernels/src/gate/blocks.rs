//! Products of many hidden states with the rows of a weight, by pieces of both that stay in the near caches.
//!
//! ```text
//! for each band of rows:  for each piece of the columns:  copy the band's piece
//!   for each part of the lanes:  for each strip of rows (first cache):  for three tokens:  for three rows:  multiply
//! ```
//!
//! The chain of an output goes on from piece to piece, through memory, so its bits are those of `dots.rs`. Tokens and
//! rows are filled up to threes with zeros, whose products nobody reads.

use abyssal_routing::Tier;

use super::Values;
use super::dots::{Number, tree_sum};
#[cfg(target_arch = "aarch64")]
use super::vector::arm::Neon;
#[cfg(target_arch = "x86_64")]
use super::vector::x86::{Avx2, Avx512};
use super::vector::{Part, Scalar, WIDTH};
use crate::memory::Buffer;

/// Tokens, and rows of the weight, whose sums are in registers at the same time.
pub(super) const TILE: usize = 3;
const SUMS: usize = TILE * TILE;
/// Vectors of a row that are multiplied before the sums go to memory.
const PIECE: usize = 32;
/// Rows of the weight in the second cache.
const BAND: usize = 36;
/// Bytes of the weight in the first.
const STRIP: usize = 18 << 10;

/// Writes the products of tokens with rows of the weight, `[tokens, rows]`.
pub(super) fn products(
    tier: Tier,
    x: Values<'_>,
    weight: Values<'_>,
    width: usize,
    out: &mut [f32],
) {
    match (x, weight) {
        (Values::F32(x), Values::F32(weight)) => chosen(tier, x, weight, width, out),
        (Values::F32(x), Values::Bf16(weight)) => chosen(tier, x, weight, width, out),
        (Values::Bf16(x), Values::F32(weight)) => chosen(tier, x, weight, width, out),
        (Values::Bf16(x), Values::Bf16(weight)) => chosen(tier, x, weight, width, out),
    }
}

fn chosen<X: Number, W: Number>(tier: Tier, x: &[X], weight: &[W], width: usize, out: &mut [f32]) {
    #[cfg(target_arch = "x86_64")]
    {
        if let Some(v) = Avx512::of(tier) {
            // SAFETY: the value exists only where the processor has these instructions.
            return unsafe { product_avx512(v, x, weight, width, out) };
        }
        if let Some(v) = Avx2::of(tier) {
            // SAFETY: the value exists only where the processor has AVX2.
            return unsafe { product_avx2(v, x, weight, width, out) };
        }
    }
    #[cfg(target_arch = "aarch64")]
    if let Some(v) = Neon::of(tier) {
        return product::<8, _, _, _>(v, x, weight, width, out);
    }
    product::<8, _, _, _>(Scalar, x, weight, width, out);
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,avx512f,avx512bw,avx512dq,avx512vl")]
fn product_avx512<X: Number, W: Number>(
    v: Avx512,
    x: &[X],
    weight: &[W],
    width: usize,
    out: &mut [f32],
) {
    product::<WIDTH, _, _, _>(v, x, weight, width, out);
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn product_avx2<X: Number, W: Number>(
    v: Avx2,
    x: &[X],
    weight: &[W],
    width: usize,
    out: &mut [f32],
) {
    product::<8, _, _, _>(v, x, weight, width, out);
}

/// Vectors of `LANES` lanes take `WIDTH / LANES` parts, one after the other.
#[inline(always)]
fn product<const LANES: usize, V: Part<LANES>, X: Number, W: Number>(
    v: V,
    x: &[X],
    weight: &[W],
    width: usize,
    out: &mut [f32],
) {
    let (tokens, rows) = (x.len() / width, weight.len() / width);
    let (vectors, parts) = (width.div_ceil(WIDTH), WIDTH / LANES);
    let token_tiles = tokens.div_ceil(TILE);
    let band = rows.min(BAND);
    let row_tiles = band.div_ceil(TILE);
    let sizes = [
        token_tiles * TILE * vectors * WIDTH,
        row_tiles * TILE * vectors.min(PIECE) * WIDTH,
        token_tiles * row_tiles * SUMS * WIDTH,
    ];
    let mut buffer = Buffer::take();
    let (all_x, rest) = buffer.some(sizes.iter().sum()).split_at_mut(sizes[0]);
    let (some_weight, lanes) = rest.split_at_mut(sizes[1]);
    for first in (0..vectors).step_by(PIECE) {
        let size = PIECE.min(vectors - first);
        let place = first * token_tiles * TILE * WIDTH..(first + size) * token_tiles * TILE * WIDTH;
        copy_piece::<LANES, X>(x, width, first, size, &mut all_x[place]);
    }
    let bands = weight.chunks(BAND * width).zip((0..rows).step_by(BAND));
    for (weight, first_row) in bands {
        let rows_here = weight.len() / width;
        let row_tiles = rows_here.div_ceil(TILE);
        let lanes = &mut lanes[..token_tiles * row_tiles * SUMS * WIDTH];
        lanes.fill(0.0);
        for first in (0..vectors).step_by(PIECE) {
            let size = PIECE.min(vectors - first);
            let weight_piece = &mut some_weight[..row_tiles * TILE * size * WIDTH];
            copy_piece::<LANES, W>(weight, width, first, size, weight_piece);
            let place = first * token_tiles * TILE * WIDTH;
            let x_piece = &all_x[place..][..token_tiles * TILE * size * WIDTH];
            for part in 0..parts {
                let x = &x_piece[part * (x_piece.len() / parts)..][..x_piece.len() / parts];
                let weight = &weight_piece[part * (weight_piece.len() / parts)..]
                    [..weight_piece.len() / parts];
                let sums = lanes.len() / parts;
                let lanes = &mut lanes[part * sums..][..sums];
                multiply(
                    v,
                    size,
                    x.as_chunks::<LANES>().0,
                    weight.as_chunks::<LANES>().0,
                    lanes.as_chunks_mut::<LANES>().0.as_chunks_mut::<SUMS>().0,
                );
            }
        }
        let part = lanes.len() / parts;
        for token in 0..tokens {
            let out = &mut out[token * rows + first_row..][..rows_here];
            for (row, out) in out.iter_mut().enumerate() {
                let tile = token / TILE * row_tiles + row / TILE;
                let at = (tile * SUMS + token % TILE * TILE + row % TILE) * LANES;
                let mut all = [0.0; WIDTH];
                for (all, lanes) in all.chunks_exact_mut(LANES).zip(lanes.chunks_exact(part)) {
                    all.copy_from_slice(&lanes[at..at + LANES]);
                }
                *out = tree_sum(all);
            }
        }
    }
}

/// Copies some vectors of every row: for each part of the lanes, one row's after the other's, then zeros.
#[inline(always)]
fn copy_piece<const LANES: usize, N: Number>(
    from: &[N],
    width: usize,
    first: usize,
    size: usize,
    to: &mut [f32],
) {
    let part = to.len() * LANES / WIDTH;
    for (to, lanes) in to.chunks_exact_mut(part).zip((0..WIDTH).step_by(LANES)) {
        let (to, _) = to.as_chunks_mut::<LANES>();
        let (filled, rest) = to.split_at_mut(from.len() / width * size);
        rest.fill([0.0; LANES]);
        for (to, from) in filled.chunks_exact_mut(size).zip(from.chunks_exact(width)) {
            let from = &from[first * WIDTH..width.min((first + size) * WIDTH)];
            let (whole, rest) = from.as_chunks::<WIDTH>();
            for (to, from) in to.iter_mut().zip(whole) {
                for (to, from) in to.iter_mut().zip(&from[lanes..lanes + LANES]) {
                    *to = from.widen();
                }
            }
            if let Some(last) = to.get_mut(whole.len()) {
                *last = [0.0; LANES];
                for (to, from) in last.iter_mut().zip(rest.iter().skip(lanes)) {
                    *to = from.widen();
                }
            }
        }
    }
}

/// Goes on with the chains of all tokens and rows of a band, for one part of the lanes.
#[inline(always)]
fn multiply<const LANES: usize, V: Part<LANES>>(
    v: V,
    size: usize,
    x: &[[f32; LANES]],
    weight: &[[f32; LANES]],
    lanes: &mut [[[f32; LANES]; SUMS]],
) {
    let row_tiles = weight.len() / (TILE * size);
    let strip = (STRIP / (TILE * size * LANES * size_of::<f32>())).max(1);
    for first in (0..row_tiles).step_by(strip) {
        let tiles = first..row_tiles.min(first + strip);
        let weight = &weight[first * TILE * size..tiles.end * TILE * size];
        let tokens = x.chunks_exact(TILE * size);
        for (x, lanes) in tokens.zip(lanes.chunks_exact_mut(row_tiles)) {
            let rows = weight.chunks_exact(TILE * size);
            for (weight, lanes) in rows.zip(&mut lanes[tiles.clone()]) {
                tile(v, size, x, weight, lanes);
            }
        }
    }
}

/// Goes on with the chains of three tokens and three rows.
#[inline(always)]
fn tile<const LANES: usize, V: Part<LANES>>(
    v: V,
    size: usize,
    x: &[[f32; LANES]],
    weight: &[[f32; LANES]],
    lanes: &mut [[f32; LANES]; SUMS],
) {
    let mut sums = [[v.zero(); TILE]; TILE];
    for token in 0..TILE {
        for row in 0..TILE {
            sums[token][row] = v.load(&lanes[token * TILE + row]);
        }
    }
    let (x0, rest) = x.split_at(size);
    let (x1, x2) = rest.split_at(size);
    let x = [x0, x1, &x2[..size]];
    let (w0, rest) = weight.split_at(size);
    let (w1, w2) = rest.split_at(size);
    let weight = [w0, w1, &w2[..size]];
    for at in 0..size {
        let x = [v.load(&x[0][at]), v.load(&x[1][at]), v.load(&x[2][at])];
        for row in 0..TILE {
            let weight = v.load(&weight[row][at]);
            for token in 0..TILE {
                sums[token][row] = v.add_product(sums[token][row], x[token], weight);
            }
        }
    }
    for token in 0..TILE {
        for row in 0..TILE {
            v.store(sums[token][row], &mut lanes[token * TILE + row]);
        }
    }
}
