//! Products on packed weights, and calls that do not fit.
#![allow(clippy::expect_used, reason = "a test may fail")]

use abyssal_quant::{
    Error, Layer, Rows, ScaleFormat, Scales, Tier, dequantize_mxfp4, fp8_linear, mxfp4_linear,
    quantize_fp8, quantize_mxfp4,
};
use proptest::prelude::*;

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

proptest! {
    #[test]
    fn a_row_has_the_same_product_alone_in_every_tier_and_with_any_threads(
        rows in 1_usize..40, columns in 1_usize..300, tokens in 1_usize..6, seed in any::<u64>(),
    ) {
        let mut state = seed | 1;
        let mut next = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (state >> 33) as u32
        };
        let codes: Vec<u8> = (0..rows * columns).map(|_| (next() % 0x7f) as u8 | (next() & 0x80) as u8).collect();
        let exponents: Vec<u8> =
            (0..rows.div_ceil(128) * columns.div_ceil(128)).map(|_| (next() % 20 + 110) as u8).collect();
        let x: Vec<f32> = (0..tokens * columns).map(|_| next() as f32 / 1e9 - 1.0).collect();
        let product = |tier: Tier, x: &[f32], num_threads: usize| {
            let mut out = vec![0.0; x.len() / columns * rows];
            let layer = Layer { rows, columns, num_threads };
            fp8_linear(tier, layer, x, &codes, Scales::E8m0(&exponents), &mut out).expect("fitting lengths");
            out
        };
        let together = product(Tier::best(), &x, 1);
        for tier in Tier::available() {
            prop_assert_eq!(bits(&product(tier, &x, 3)), bits(&together));
        }
        for (x, expected) in x.chunks(columns).zip(together.chunks(rows)) {
            prop_assert_eq!(bits(&product(Tier::best(), x, 1)), bits(expected));
        }
    }

    #[test]
    fn mxfp4_products_equal_those_of_the_same_numbers_in_every_tier(
        rows in 1_usize..20, blocks in 1_usize..10, tokens in 1_usize..4, seed in any::<u8>(),
    ) {
        let columns = blocks * 32;
        let weight: Vec<f32> = (0..rows * columns).map(|index| ((index * 37 + usize::from(seed)) % 19) as f32 - 9.0).collect();
        let x: Vec<f32> = (0..tokens * columns).map(|index| (index % 23) as f32 - 11.0).collect();
        let mut outs = Vec::new();
        for tier in Tier::available() {
            let (mut codes, mut scales) = (vec![0; rows * columns / 2], vec![0; rows * blocks]);
            quantize_mxfp4(tier, Rows::contiguous(&weight, columns).expect("whole rows"), &mut codes, &mut scales).expect("no NaN");
            let mut values = vec![0.0_f32; weight.len()];
            dequantize_mxfp4(tier, Rows::contiguous(&codes, 16).expect("whole blocks"), &scales, &mut values).expect("fitting lengths");
            let mut out = vec![0.0; tokens * rows];
            let layer = Layer { rows, columns, num_threads: 2 };
            mxfp4_linear(tier, layer, &x, &codes, &scales, &mut out).expect("fitting lengths");
            for (token, out) in x.chunks(columns).zip(out.chunks(rows)) {
                for (weight, &value) in values.chunks(columns).zip(out) {
                    // Small integers: every sum is exact in float32.
                    let exact: f32 = token.iter().zip(weight).map(|(x, weight)| x * weight).sum();
                    prop_assert_eq!(value, exact);
                }
            }
            outs.push(bits(&out));
        }
        prop_assert!(outs.windows(2).all(|pair| pair[0] == pair[1]));
    }
}

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
    let layer = Layer {
        rows: 1,
        columns: 4,
        num_threads: 1,
    };
    let result = fp8_linear(
        tier,
        layer,
        &[0.0_f32; 5],
        &[0; 4],
        Scales::F32(&[1.0]),
        &mut [0.0; 1],
    );
    assert_eq!(message(result), "x has 5 elements; it must have 4");
}
