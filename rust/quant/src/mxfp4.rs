//! MXFP4: e2m1 elements, two to a byte, one power-of-two scale per 32.

use crate::error::{Error, Result, expect_length};
use crate::float::Element;
use crate::kernels::{AHEAD, INFINITY, Kernels, STREAMED};
use crate::pages::Pages;
use crate::rows::Rows;

/// Elements that share a scale.
pub(crate) const BLOCK: usize = 32;

/// Elements between requests for memory ahead.
const PART: usize = 1024;

/// Checks that columns fall into whole blocks, and the lengths of elements, codes and scales.
pub(crate) fn check(rows: usize, columns: usize, codes: usize, scales: usize) -> Result<()> {
    if columns == 0 || !columns.is_multiple_of(BLOCK) {
        return Err(Error::Columns { columns });
    }
    expect_length("codes", rows * columns / 2, codes)?;
    expect_length("scales", rows * columns / BLOCK, scales)
}

/// Refuses rows that hold NaN.
#[inline(always)]
pub(crate) fn check_no_nan<T: Element, K: Kernels>(kernels: K, x: Rows<'_, T>) -> Result<()> {
    let mut largest = 0;
    for row in x.iter() {
        for row in row.chunks(PART) {
            kernels.prefetch(row, AHEAD);
            largest = kernels.largest(std::iter::once(row), largest);
        }
    }
    if largest <= INFINITY {
        return Ok(());
    }
    let not_numbers = |row: &[T]| row.iter().filter(|value| value.load().is_nan()).count();
    let count = x.iter().map(not_numbers).sum();
    Err(Error::Nan { count })
}

/// Quantizes checked slices without NaN.
#[inline(always)]
pub(crate) fn quantize<T: Element, K: Kernels>(
    kernels: K,
    x: Rows<'_, T>,
    codes: &mut [u8],
    scales: &mut [u8],
) {
    let [_, _, columns] = x.shape();
    let outs = codes
        .chunks_exact_mut(columns / 2)
        .zip(scales.chunks_exact_mut(columns / BLOCK));
    for (row, (codes, scales)) in x.iter().zip(outs) {
        for ((row, codes), scales) in row
            .chunks(PART)
            .zip(codes.chunks_mut(PART / 2))
            .zip(scales.chunks_mut(PART / BLOCK))
        {
            kernels.prefetch(row, AHEAD);
            kernels.encode_mxfp4(row, codes, scales);
        }
    }
}

/// Dequantizes checked slices.
#[inline(always)]
pub(crate) fn dequantize<T: Element, K: Kernels>(
    kernels: K,
    codes: Rows<'_, u8>,
    scales: &[u8],
    out: &mut [T],
) {
    let [_, _, half] = codes.shape();
    let kernels = kernels.streaming(size_of_val(out) >= STREAMED);
    let mut pages = Pages::default();
    let rows = codes.iter().zip(scales.chunks_exact(half * 2 / BLOCK));
    for (index, (codes, scales)) in rows.enumerate() {
        let (start, end) = (index * half * 2, (index + 1) * half * 2);
        pages.open(out, end);
        let out = &mut out[start..end];
        let parts = codes.chunks(PART / 2).zip(scales.chunks(PART / BLOCK));
        for ((codes, scales), out) in parts.zip(out.chunks_mut(PART)) {
            kernels.prefetch(codes, AHEAD);
            kernels.decode_mxfp4(codes, scales, out);
        }
    }
    kernels.finish();
}
