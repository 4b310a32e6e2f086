//! Every tier gives the bits of the scalar code, and a row's product does not depend on how it is called.
#![allow(clippy::expect_used, reason = "a test may fail")]

use abyssal_quant::{
    Bf16, Blocks, Element, Error, F16, Layer, ScaleFormat, Scales, Tier, dequantize_fp8,
    dequantize_mxfp4, fp8_linear, mxfp4_linear, quantize_fp8, quantize_mxfp4,
};
use proptest::prelude::*;

fn number() -> impl Strategy<Value = f32> {
    prop_oneof![
        6 => -500.0_f32..500.0,
        2 => any::<u32>().prop_map(f32::from_bits),
        1 => prop::sample::select(vec![0.0, -0.0, 1e-23, f32::INFINITY, f32::NEG_INFINITY, f32::NAN]),
    ]
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

/// A matrix with blocks of some size.
fn blocked() -> impl Strategy<Value = (Blocks, Vec<f32>)> {
    (1_usize..20, 1_usize..80, 1_usize..24, 1_usize..70).prop_flat_map(
        |(rows, columns, block_rows, block_columns)| {
            let blocks = Blocks {
                rows,
                columns,
                block_rows,
                block_columns,
            };
            (
                Just(blocks),
                prop::collection::vec(number(), rows * columns),
            )
        },
    )
}

fn quantized<T: Element>(
    tier: Tier,
    x: &[T],
    blocks: Blocks,
    format: ScaleFormat,
) -> (Vec<u8>, Vec<f32>) {
    let (mut codes, mut scales) = (vec![0; x.len()], vec![0.0; blocks.num_scales()]);
    quantize_fp8(tier, x, blocks, format, &mut codes, &mut scales).expect("fitting lengths");
    (codes, scales)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn quantizing_gives_the_same_bits_in_every_tier((blocks, x) in blocked(), power in any::<bool>()) {
        let format = if power { ScaleFormat::Ue8m0 } else { ScaleFormat::F32 };
        let bf16: Vec<Bf16> = x.iter().map(|&value| Bf16::store(value)).collect();
        let f16: Vec<F16> = x.iter().map(|&value| F16::store(value)).collect();
        for tier in Tier::available() {
            let scalar = Tier::available()[0];
            let (codes, scales) = quantized(tier, &x, blocks, format);
            let expected = quantized(scalar, &x, blocks, format);
            prop_assert_eq!((&codes, bits(&scales)), (&expected.0, bits(&expected.1)));
            prop_assert_eq!(quantized(tier, &bf16, blocks, format), quantized(scalar, &bf16, blocks, format));
            let narrow = [tier, scalar].map(|tier| quantized(tier, &f16, blocks, format));
            prop_assert_eq!(&narrow[0].0, &narrow[1].0);
            prop_assert_eq!(bits(&narrow[0].1), bits(&narrow[1].1));
            let mut values = [vec![0.0; x.len()], vec![0.0; x.len()]];
            for (tier, values) in [tier, scalar].into_iter().zip(&mut values) {
                dequantize_fp8(tier, &codes, Scales::F32(&scales), blocks, values).expect("fitting lengths");
            }
            let same = values[0].iter().zip(&values[1]).all(|(left, right)| {
                left.to_bits() == right.to_bits() || (left.is_nan() && right.is_nan())
            });
            prop_assert!(same);
        }
    }

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
            quantize_mxfp4(tier, &weight, columns, &mut codes, &mut scales).expect("no NaN");
            let mut values = vec![0.0_f32; weight.len()];
            dequantize_mxfp4(tier, &codes, &scales, columns, &mut values).expect("fitting lengths");
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
    let blocks = Blocks {
        rows: 2,
        columns: 3,
        block_rows: 1,
        block_columns: 2,
    };
    let fp8 = |blocks: Blocks, scales: usize| {
        quantize_fp8(
            tier,
            &[0.0_f32; 6],
            blocks,
            ScaleFormat::F32,
            &mut [0; 6],
            &mut vec![0.0; scales],
        )
    };
    let message = |result: Result<(), Error>| result.expect_err("a refusal").to_string();
    assert_eq!(fp8(blocks, 4), Ok(()));
    assert_eq!(
        message(fp8(blocks, 3)),
        "scales has 3 elements; it must have 4"
    );
    assert_eq!(
        message(fp8(
            Blocks {
                block_rows: 0,
                ..blocks
            },
            4
        )),
        "block is (0, 2); it must hold two sizes of at least 1"
    );
    assert_eq!(
        message(fp8(
            Blocks {
                columns: 0,
                ..blocks
            },
            4
        )),
        "x has 0 columns; at least 1 is needed"
    );
    let mxfp4 =
        |x: &[f32], columns: usize| quantize_mxfp4(tier, x, columns, &mut [0; 16], &mut [0; 1]);
    assert_eq!(
        message(mxfp4(&[0.0; 33], 33)),
        "x has 33 columns; a positive multiple of 32 is needed"
    );
    assert_eq!(
        message(mxfp4(&[f32::NAN; 32], 32)),
        "x holds 32 NaN; MXFP4 has no code for it"
    );
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
