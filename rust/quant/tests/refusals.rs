//! Calls that do not fit.
#![allow(clippy::expect_used, reason = "a test may fail")]

use abyssal_quant::{Error, Rows, ScaleFormat, Tier, quantize_fp8, quantize_mxfp4};

#[test]
fn calls_that_do_not_fit_are_refused_with_their_numbers() {
    let tier = Tier::best();
    let message = |result: Result<(), Error>| result.expect_err("a refusal").to_string();
    let fp8 = |values: usize, columns: usize, block: (usize, usize), scales: usize| {
        let x = vec![0.0_f32; values];
        let (mut codes, mut scales) = (vec![0; 6], vec![0.0; scales]);
        let x = Rows::strided(&x, [1, 2, columns], [0, columns])?;
        quantize_fp8(tier, x, block, ScaleFormat::F32, &mut codes, &mut scales)
    };
    assert_eq!(fp8(6, 3, (1, 2), 4), Ok(()));
    assert_eq!(
        message(fp8(6, 3, (1, 2), 3)),
        "scales has 3 elements; it must have 4"
    );
    assert_eq!(
        message(fp8(5, 3, (1, 2), 4)),
        "x has 5 elements; it must have 6"
    );
    assert_eq!(
        message(fp8(8, 4, (1, 2), 4)),
        "codes has 6 elements; it must have 8"
    );
    assert_eq!(
        message(fp8(6, 3, (0, 2), 4)),
        "block is (0, 2); it must hold two sizes of at least 1"
    );
    assert_eq!(
        message(fp8(6, 0, (1, 2), 4)),
        "x has 0 columns; at least 1 is needed"
    );
    let steps = Rows::strided(&[0_u8; 4], [usize::MAX, 2, 2], [usize::MAX, 2]);
    assert!(steps.is_err());
    let mxfp4 = |x: &[f32], columns: usize, codes: &mut [u8]| {
        quantize_mxfp4(tier, Rows::contiguous(x, columns)?, codes, &mut [7; 1])
    };
    assert_eq!(
        message(mxfp4(&[0.0; 33], 33, &mut [0; 16])),
        "x has 33 columns; a positive multiple of 32 is needed"
    );
    let mut untouched = [7; 16];
    assert_eq!(
        message(mxfp4(&[f32::NAN; 32], 32, &mut untouched)),
        "x holds 32 NaN; MXFP4 has no code for it"
    );
    assert_eq!(untouched, [7; 16]);
}
