//! Threads that quantize the same matrix, and that share the memory of one result. `make test-threads` runs this with
//! ThreadSanitizer.

// A failed expectation is how these tests fail.
#![allow(clippy::unwrap_used)]

use std::thread;

use abyssal_quant::{
    Rows, ScaleFormat, Scales, Tier, dequantize_fp8, dequantize_mxfp4, quantize_fp8, quantize_mxfp4,
};

const THREADS: usize = 4;
/// Each thread's part of the matrix: one row of blocks.
const BAND: usize = 16;
const COLUMNS: usize = 256;
const BLOCK: (usize, usize) = (BAND, 128);
const SCALES: usize = COLUMNS / 128;

fn main() {
    let state = |index: usize| (index as u32).wrapping_mul(2_654_435_761) >> 8;
    let number = |index| state(index) as f32 / 8_388_608.0 - 1.0;
    let x: Vec<f32> = (0..THREADS * BAND * COLUMNS).map(number).collect();
    for tier in Tier::available() {
        let expected = results(tier, &x);
        threads_that_read_the_same_matrix_get_the_same_bits(tier, &x, &expected);
        threads_that_write_parts_of_one_result_make_the_whole(tier, &x, &expected);
    }
    println!("2 tests with {THREADS} threads passed");
}

/// FP8 codes, the bits of their scales and of the values they stand for; the same for MXFP4.
type Results = (Vec<u8>, Vec<u32>, Vec<u32>, Vec<u8>, Vec<u8>, Vec<u32>);

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

fn results(tier: Tier, x: &[f32]) -> Results {
    let rows = Rows::contiguous(x, COLUMNS).unwrap();
    let (mut codes, mut scales) = (vec![0; x.len()], vec![0.0; THREADS * SCALES]);
    let mut values = vec![0.0; x.len()];
    quantize_fp8(tier, rows, BLOCK, ScaleFormat::F32, &mut codes, &mut scales).unwrap();
    let stored = Rows::contiguous(&codes, COLUMNS).unwrap();
    dequantize_fp8(tier, stored, Scales::F32(&scales), BLOCK, &mut values).unwrap();
    let (mut pairs, mut exponents) = (vec![0; x.len() / 2], vec![0; x.len() / 32]);
    let mut small = vec![0.0_f32; x.len()];
    quantize_mxfp4(tier, rows, &mut pairs, &mut exponents).unwrap();
    let stored = Rows::contiguous(&pairs, COLUMNS / 2).unwrap();
    dequantize_mxfp4(tier, stored, &exponents, &mut small).unwrap();
    (
        codes,
        bits(&scales),
        bits(&values),
        pairs,
        exponents,
        bits(&small),
    )
}

fn threads_that_read_the_same_matrix_get_the_same_bits(tier: Tier, x: &[f32], expected: &Results) {
    thread::scope(|scope| {
        let spawn = |_| {
            scope.spawn(move || {
                for _ in 0..4 {
                    assert_eq!(&results(tier, x), expected);
                }
            })
        };
        let workers: Vec<_> = (0..THREADS).map(spawn).collect();
        // Joined one by one: the end of a scope is hidden from the sanitizer.
        for worker in workers {
            worker.join().unwrap();
        }
    });
}

fn threads_that_write_parts_of_one_result_make_the_whole(
    tier: Tier,
    x: &[f32],
    expected: &Results,
) {
    let (mut codes, mut scales) = (vec![0; x.len()], vec![0.0; THREADS * SCALES]);
    let mut values = vec![0.0; x.len()];
    let part = BAND * COLUMNS;
    thread::scope(|scope| {
        let outputs = codes
            .chunks_mut(part)
            .zip(scales.chunks_mut(SCALES))
            .zip(values.chunks_mut(part));
        let workers: Vec<_> = x
            .chunks(part)
            .zip(outputs)
            .map(|(x, ((codes, scales), values))| {
                scope.spawn(move || {
                    let x = Rows::contiguous(x, COLUMNS).unwrap();
                    quantize_fp8(tier, x, BLOCK, ScaleFormat::F32, codes, scales).unwrap();
                    let codes = Rows::contiguous(codes, COLUMNS).unwrap();
                    dequantize_fp8(tier, codes, Scales::F32(scales), BLOCK, values).unwrap();
                })
            })
            .collect();
        for worker in workers {
            worker.join().unwrap();
        }
    });
    assert_eq!(codes, expected.0);
    assert_eq!(bits(&scales), expected.1);
    assert_eq!(bits(&values), expected.2);
}
