//! FP8 and MXFP4 block formats: exact conversion, quantize, dequantize. Products are `abyssal-kernels`'.
//!
//! Scalar code is the specification; instruction tiers (`simd.rs`) compile the same code for wider registers, so every
//! tier gives the same bits. Matrices are row-major slices; leading dimensions are the caller's.
#![cfg_attr(test, allow(clippy::unwrap_used, reason = "a test may fail"))]

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod error;
mod float;
mod fp8;
mod kernels;
mod mxfp4;
#[cfg(target_arch = "aarch64")]
mod neon;
mod pages;
mod quantize;
#[cfg(test)]
mod quotient;
mod rows;
mod scalar;
mod simd;

pub use error::{Error, Result};
pub use float::{Bf16, Element, F16, Format, e4m3_to_f32, e8m0_to_f32, f32_to_e4m3};
pub use fp8::{Blocks, ScaleFormat, Scales};
pub use rows::Rows;
pub use simd::Tier;

use error::expect_length;

/// Quantizes a matrix to FP8: `scale = max(amax, 1e-4) / 448` per block, `code = e4m3(x / scale)`, ties to even.
///
/// A NaN keeps its sign and does not enter `amax`. A block that holds an infinity has an infinite scale.
///
/// # Errors
/// Lengths that do not fit the blocks, empty blocks, a matrix without columns.
pub fn quantize_fp8<T: Element>(
    tier: Tier,
    x: Rows<'_, T>,
    block: (usize, usize),
    format: ScaleFormat,
    codes: &mut [u8],
    scales: &mut [f32],
) -> Result<()> {
    let (x, blocks) = cut(x, block);
    blocks.check("x", x.len(), scales.len())?;
    expect_length("codes", x.len(), codes.len())?;
    tier.quantize_fp8(x, blocks, format, codes, scales);
    Ok(())
}

/// Writes `code * scale`, rounded once to float32 and then to the output's type.
///
/// # Errors
/// Lengths that do not fit the blocks, empty blocks, a matrix without columns.
pub fn dequantize_fp8<T: Element>(
    tier: Tier,
    codes: Rows<'_, u8>,
    scales: Scales<'_>,
    block: (usize, usize),
    out: &mut [T],
) -> Result<()> {
    let (codes, blocks) = cut(codes, block);
    blocks.check("codes", codes.len(), scales.len())?;
    expect_length("out", codes.len(), out.len())?;
    tier.dequantize_fp8(codes, scales, blocks, out);
    Ok(())
}

/// Matrices with their blocks. The rows of all matrices are one matrix where blocks cannot tell the difference.
fn cut<T: Copy>(
    x: Rows<'_, T>,
    (block_rows, block_columns): (usize, usize),
) -> (Rows<'_, T>, Blocks) {
    let [_, rows, _] = x.shape();
    let whole = block_rows > 0 && rows.is_multiple_of(block_rows);
    let x = if whole { x.merged() } else { x };
    let [matrices, rows, columns] = x.shape();
    let blocks = Blocks {
        matrices,
        rows,
        columns,
        block_rows,
        block_columns,
    };
    (x, blocks)
}

/// Quantizes rows to MXFP4.
///
/// # Errors
/// A NaN, columns that do not fall into blocks of 32, lengths that do not fit; nothing is written then.
pub fn quantize_mxfp4<T: Element>(
    tier: Tier,
    x: Rows<'_, T>,
    codes: &mut [u8],
    scales: &mut [u8],
) -> Result<()> {
    let [matrices, rows, columns] = x.shape();
    mxfp4::check(matrices * rows, columns, codes.len(), scales.len())?;
    tier.check_no_nan(x)?;
    tier.quantize_mxfp4(x, codes, scales);
    Ok(())
}

/// Writes the values of MXFP4 codes; scale code 255 gives NaN.
///
/// # Errors
/// Columns that do not fall into blocks of 32, lengths that do not fit.
pub fn dequantize_mxfp4<T: Element>(
    tier: Tier,
    codes: Rows<'_, u8>,
    scales: &[u8],
    out: &mut [T],
) -> Result<()> {
    let [matrices, rows, half] = codes.shape();
    mxfp4::check(matrices * rows, half * 2, codes.len(), scales.len())?;
    expect_length("out", codes.len() * 2, out.len())?;
    tier.dequantize_mxfp4(codes, scales, out);
    Ok(())
}
