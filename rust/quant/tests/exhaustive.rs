//! Small domains, whole: every code, and every two-byte number, at several scales, in every tier.
#![allow(clippy::expect_used, reason = "a test may fail")]

mod common;

use abyssal_quant::{
    Bf16, Blocks, Element, F16, Rows, ScaleFormat, Scales, e4m3_to_f32, e8m0_to_f32,
};
use common::{dequantized, fast_tiers, key, packed, quantized, scalar, unpacked};

const SCALES: [f32; 12] = [
    1.0,
    0.37,
    -2.5,
    1e-4 / 448.0,
    1e30,
    3e38,
    1e-38,
    1e-42,
    0.0,
    f32::INFINITY,
    f32::NEG_INFINITY,
    f32::NAN,
];

/// One row of blocks of 256.
fn row(count: usize) -> Blocks {
    Blocks {
        matrices: 1,
        rows: 1,
        columns: count * 256,
        block_rows: 1,
        block_columns: 256,
    }
}

fn every_code_to<T: Element>() {
    let codes: Vec<u8> = (0..SCALES.len()).flat_map(|_| 0..=u8::MAX).collect();
    let expected: Vec<u32> = SCALES
        .iter()
        .flat_map(|&scale| (0..=u8::MAX).map(move |code| key(T::store(e4m3_to_f32(code) * scale))))
        .collect();
    for tier in fast_tiers().into_iter().chain([scalar()]) {
        let actual = dequantized::<T>(tier, &codes, Scales::F32(&SCALES), row(SCALES.len()));
        assert_eq!(actual, expected, "{}", tier.name());
    }
    let exponents: Vec<u8> = (0..=u8::MAX).collect();
    let codes: Vec<u8> = (0..256).flat_map(|_| 0..=u8::MAX).collect();
    for tier in fast_tiers() {
        let of = |tier| dequantized::<T>(tier, &codes, Scales::E8m0(&exponents), row(256));
        assert_eq!(of(tier), of(scalar()), "{}", tier.name());
    }
}

#[test]
fn every_e4m3_code_at_many_scales_has_its_value() {
    every_code_to::<f32>();
    every_code_to::<Bf16>();
    every_code_to::<F16>();
}

fn every_pair_to<T: Element>() {
    let codes: Vec<u8> = (0..=u8::MAX).collect();
    for scale in 0..=u8::MAX {
        let scales = [scale; 16];
        let expected = unpacked::<T>(scalar(), &codes, &scales);
        if scale == 127 {
            let six = key(T::store(6.0));
            assert_eq!(
                (expected[2 * 0x17], expected[2 * 0x17 + 1]),
                (six, key(T::store(0.5)))
            );
        }
        if scale == 255 {
            assert!(expected.iter().all(|&key| key == u32::MAX));
        }
        for tier in fast_tiers() {
            assert_eq!(
                unpacked::<T>(tier, &codes, &scales),
                expected,
                "{} {scale}",
                tier.name()
            );
        }
    }
}

#[test]
fn every_mxfp4_byte_at_every_scale_has_its_values() {
    every_pair_to::<f32>();
    every_pair_to::<Bf16>();
    every_pair_to::<F16>();
}

/// Each of the 65,536 numbers beside a larger one that sets the scale, and beside others of its size.
fn every_number<T: Element>(of: impl Fn(u16) -> T) {
    let all: Vec<T> = (0..=u16::MAX).map(of).collect();
    let mut sets: Vec<Vec<T>> = vec![all.clone()];
    for largest in [448.0, 1.0, 3e-3, 7777.0, 6.1e4] {
        // 31 numbers and the largest; smaller ones than the largest decide nothing else.
        let held = |value: T| {
            if value.load().abs() > largest {
                T::store(0.0)
            } else {
                value
            }
        };
        let blocks = all.chunks(31).flat_map(|numbers| {
            let mut block: Vec<T> = numbers.iter().map(|&value| held(value)).collect();
            block.resize(31, T::store(0.0));
            block.push(T::store(largest));
            block
        });
        sets.push(blocks.collect());
    }
    for mut set in sets {
        let count = set.len();
        let blocks = Blocks {
            matrices: 1,
            rows: 1,
            columns: count,
            block_rows: 1,
            block_columns: 32,
        };
        for format in [ScaleFormat::F32, ScaleFormat::Ue8m0] {
            let of = |tier| {
                quantized(
                    tier,
                    Rows::contiguous(&set, count).expect("a row"),
                    blocks,
                    format,
                )
            };
            let expected = of(scalar());
            for tier in fast_tiers() {
                assert!(of(tier) == expected, "{} {format:?}", tier.name());
            }
        }
        set.iter_mut()
            .filter(|value| value.load().is_nan())
            .for_each(|value| *value = T::store(0.0));
        let x = Rows::contiguous(&set, count).expect("a row");
        let expected = packed(scalar(), x, count);
        for tier in fast_tiers() {
            assert!(packed(tier, x, count) == expected, "{}", tier.name());
        }
    }
}

#[test]
fn every_two_byte_number_at_several_scales_gets_its_code() {
    every_number(Bf16);
    every_number(F16);
}

#[test]
fn e8m0_scales_mean_powers_of_two() {
    for code in 0..255_u8 {
        assert_eq!(
            f64::from(e8m0_to_f32(code)),
            2.0_f64.powi(i32::from(code) - 127)
        );
    }
    assert!(e8m0_to_f32(255).is_nan());
}
