//! What the tests share: numbers with corners, and calls that allocate their results.
#![allow(dead_code, reason = "each test uses some of it")]
#![allow(clippy::expect_used, reason = "a test may fail")]

use abyssal_quant::{
    Blocks, Element, Rows, ScaleFormat, Scales, Tier, dequantize_fp8, dequantize_mxfp4,
    quantize_fp8, quantize_mxfp4,
};
use proptest::prelude::*;

static SAID: std::sync::Once = std::sync::Once::new();

/// The tiers beyond the scalar one, each compared with it; says once which there are.
pub(crate) fn fast_tiers() -> Vec<Tier> {
    SAID.call_once(|| println!("tiers: {}", names().join(", ")));
    Tier::available().split_off(1)
}

pub(crate) fn names() -> Vec<&'static str> {
    Tier::available().iter().map(|tier| tier.name()).collect()
}

pub(crate) fn scalar() -> Tier {
    Tier::available()[0]
}

/// One number in a few is a corner.
pub(crate) fn number() -> impl Strategy<Value = f32> {
    let corners = vec![
        0.0,
        -0.0,
        1e-23,
        -1e-45,
        1e-40,
        448.0,
        -464.0,
        1e4,
        f32::MAX,
        f32::MIN,
        2.0_f32.powi(64),
        f32::INFINITY,
        f32::NEG_INFINITY,
        f32::NAN,
        -f32::NAN,
        f32::from_bits(0x7f80_0001),
    ];
    prop_oneof![
        24 => -500.0_f32..500.0,
        4 => any::<u32>().prop_map(f32::from_bits),
        1 => prop::sample::select(corners),
    ]
}

/// A matrix of numbers of one size, mostly; the scale of a block then lies anywhere.
pub(crate) fn numbers(count: usize) -> impl Strategy<Value = Vec<f32>> {
    let ordinary = (-1.0_f32..1.0, -130..125_i32);
    let scaled =
        (ordinary, prop::collection::vec(-1.0_f32..1.0, count)).prop_map(|((_, power), values)| {
            values
                .into_iter()
                .map(|value| value * 2.0_f32.powi(power))
                .collect()
        });
    prop_oneof![2 => prop::collection::vec(number(), count), 1 => scaled]
}

/// Bits of a value, all NaN alike.
pub(crate) fn key<T: Element>(value: T) -> u32 {
    let value = value.load();
    if value.is_nan() {
        u32::MAX
    } else {
        value.to_bits()
    }
}

pub(crate) fn keys<T: Element>(values: &[T]) -> Vec<u32> {
    values.iter().map(|&value| key(value)).collect()
}

pub(crate) fn quantized<T: Element>(
    tier: Tier,
    x: Rows<'_, T>,
    blocks: Blocks,
    format: ScaleFormat,
) -> (Vec<u8>, Vec<u32>) {
    let mut codes = vec![0; blocks.matrices * blocks.rows * blocks.columns];
    let mut scales = vec![0.0; blocks.num_scales()];
    let block = (blocks.block_rows, blocks.block_columns);
    quantize_fp8(tier, x, block, format, &mut codes, &mut scales).expect("fitting lengths");
    (codes, scales.into_iter().map(f32::to_bits).collect())
}

pub(crate) fn dequantized<T: Element>(
    tier: Tier,
    codes: &[u8],
    scales: Scales<'_>,
    blocks: Blocks,
) -> Vec<u32> {
    let mut out = vec![T::default(); codes.len()];
    let shape = [blocks.matrices, blocks.rows, blocks.columns];
    let steps = [blocks.rows * blocks.columns, blocks.columns];
    let codes = Rows::strided(codes, shape, steps).expect("enough codes");
    let block = (blocks.block_rows, blocks.block_columns);
    dequantize_fp8(tier, codes, scales, block, &mut out).expect("fitting lengths");
    keys(&out)
}

pub(crate) fn packed<T: Element>(tier: Tier, x: Rows<'_, T>, count: usize) -> (Vec<u8>, Vec<u8>) {
    let (mut codes, mut scales) = (vec![0; count / 2], vec![0; count / 32]);
    quantize_mxfp4(tier, x, &mut codes, &mut scales).expect("no NaN");
    (codes, scales)
}

pub(crate) fn unpacked<T: Element>(tier: Tier, codes: &[u8], scales: &[u8]) -> Vec<u32> {
    let mut out = vec![T::default(); codes.len() * 2];
    let codes = Rows::contiguous(codes, 16).expect("whole blocks");
    dequantize_mxfp4(tier, codes, scales, &mut out).expect("fitting lengths");
    keys(&out)
}
