//! Every instruction tier gives the bits of the scalar one, for all shapes, steps and numbers.
#![allow(clippy::expect_used, reason = "a test may fail")]

mod common;

use abyssal_quant::{
    Bf16, Blocks, Element, F16, Rows, ScaleFormat, Scales, dequantize_fp8, dequantize_mxfp4,
    quantize_fp8,
};
use common::{dequantized, fast_tiers, keys, names, numbers, packed, quantized, scalar, unpacked};
use proptest::prelude::*;

/// Matrices whose rows and columns lie apart, and how they are cut into blocks.
#[derive(Debug, Clone)]
struct Case {
    blocks: Blocks,
    values: Vec<f32>,
    steps: [usize; 2],
    /// Elements before the first, so that memory is aligned to one element alone.
    offset: usize,
    format: ScaleFormat,
}

impl Case {
    fn rows<'a, T: Copy>(&self, values: &'a [T]) -> Rows<'a, T> {
        let shape = [self.blocks.matrices, self.blocks.rows, self.blocks.columns];
        Rows::strided(&values[self.offset..], shape, self.steps).expect("enough values")
    }
}

/// The usual block widths, and any others.
fn width() -> impl Strategy<Value = usize> {
    prop_oneof![2 => Just(128_usize), 1 => Just(32), 1 => Just(1), 2 => 1_usize..150]
}

fn case() -> impl Strategy<Value = Case> {
    let shape = (1_usize..3, 0_usize..20, 1_usize..300, 1_usize..12, width());
    let layout = (
        0_usize..40,
        0_usize..70,
        0_usize..17,
        any::<bool>(),
        any::<bool>(),
    );
    (shape, layout).prop_flat_map(|(shape, layout)| {
        let (matrices, rows, columns, block_rows, block_columns) = shape;
        let (gap, matrix_gap, offset, repeat, power) = layout;
        let blocks = Blocks {
            matrices,
            rows,
            columns,
            block_rows,
            block_columns,
        };
        // A step of zero repeats one row.
        let row_step = if repeat && gap % 4 == 0 {
            0
        } else {
            columns + gap
        };
        let matrix_step = rows * row_step + matrix_gap;
        let last = (matrices - 1) * matrix_step + rows.saturating_sub(1) * row_step;
        numbers(offset + last + columns).prop_map(move |values| Case {
            blocks,
            values,
            steps: [matrix_step, row_step],
            offset,
            format: if power {
                ScaleFormat::Ue8m0
            } else {
                ScaleFormat::F32
            },
        })
    })
}

fn assert_quantized_alike<T: Element>(case: &Case) -> Result<(), TestCaseError> {
    let values: Vec<T> = case.values.iter().map(|&value| T::store(value)).collect();
    let (x, blocks) = (case.rows(&values), case.blocks);
    let expected = quantized(scalar(), x, blocks, case.format);
    for tier in fast_tiers() {
        let actual = quantized(tier, x, blocks, case.format);
        prop_assert_eq!(&actual.1, &expected.1, "scales of {}", tier.name());
        prop_assert_eq!(&actual.0, &expected.0, "codes of {}", tier.name());
    }
    Ok(())
}

fn assert_dequantized_alike<T: Element>(
    codes: &[u8],
    scales: Scales<'_>,
    blocks: Blocks,
) -> Result<(), TestCaseError> {
    let expected = dequantized::<T>(scalar(), codes, scales, blocks);
    for tier in fast_tiers() {
        let actual = dequantized::<T>(tier, codes, scales, blocks);
        prop_assert_eq!(&actual, &expected, "{}", tier.name());
    }
    Ok(())
}

fn assert_packed_alike<T: Element>(
    values: &[f32],
    shape: [usize; 3],
    step: usize,
) -> Result<(), TestCaseError> {
    let values: Vec<T> = values.iter().map(|&value| T::store(value)).collect();
    let x = Rows::strided(&values, shape, [shape[1] * step, step]).expect("enough values");
    let count = shape.iter().product();
    let expected = packed(scalar(), x, count);
    for tier in fast_tiers() {
        prop_assert_eq!(&packed(tier, x, count), &expected, "{}", tier.name());
        let (codes, scales) = &expected;
        prop_assert_eq!(
            unpacked::<T>(tier, codes, scales),
            unpacked::<T>(scalar(), codes, scales),
            "{}",
            tier.name()
        );
    }
    Ok(())
}

proptest! {
    // No file of seeds: it cannot be written where these tests are emulated.
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn fp8_from_every_type_gets_the_same_codes_and_scales(case in case()) {
        assert_quantized_alike::<f32>(&case)?;
        assert_quantized_alike::<Bf16>(&case)?;
        assert_quantized_alike::<F16>(&case)?;
    }

    #[test]
    fn fp8_to_every_type_gets_the_same_values(
        case in case(),
        codes in prop::collection::vec(any::<u8>(), 300 * 40),
        exponents in prop::collection::vec(any::<u8>(), 300 * 40),
        number in common::number(),
        few_nan in any::<bool>(),
    ) {
        let blocks = case.blocks;
        let mut codes = codes[..blocks.matrices * blocks.rows * blocks.columns].to_vec();
        if few_nan {
            for code in &mut codes {
                *code = if *code & 0x7f == 0x7f { 1 } else { *code };
            }
        }
        let exponents = &exponents[..blocks.num_scales()];
        let any = (0..blocks.num_scales()).map(|index| case.values.get(index).map_or(number, |value| value.abs()));
        let any: Vec<f32> = any.collect();
        for scales in [Scales::F32(&any), Scales::E8m0(exponents)] {
            assert_dequantized_alike::<f32>(&codes, scales, blocks)?;
            assert_dequantized_alike::<Bf16>(&codes, scales, blocks)?;
            assert_dequantized_alike::<F16>(&codes, scales, blocks)?;
        }
    }

    #[test]
    fn mxfp4_of_every_type_gets_the_same_codes_scales_and_values(
        (rows, blocks, gap, mut values) in (0_usize..4, 1_usize..6, 0_usize..9).prop_flat_map(|(rows, blocks, gap)| {
            (Just(rows), Just(blocks), Just(gap), numbers(rows.max(1) * (blocks * 32 + gap)))
        }),
    ) {
        for value in &mut values {
            *value = if value.is_nan() { -0.0 } else { *value };
        }
        let columns = blocks * 32;
        assert_packed_alike::<f32>(&values, [1, rows, columns], columns + gap)?;
        assert_packed_alike::<Bf16>(&values, [1, rows, columns], columns + gap)?;
        assert_packed_alike::<F16>(&values, [1, rows, columns], columns + gap)?;
    }
}

/// Results too large for the caches are written past them, where their memory is aligned for that.
#[test]
fn large_results_get_the_same_bits_at_any_address() {
    let (rows, columns) = (1031, 8192 + 64);
    for block_rows in [1, 128] {
        assert_large_alike(Blocks {
            matrices: 1,
            rows,
            columns,
            block_rows,
            block_columns: 128,
        });
    }
}

fn assert_large_alike(blocks: Blocks) {
    let (columns, block) = (blocks.columns, (blocks.block_rows, blocks.block_columns));
    let count = blocks.rows * columns;
    let value = |index: usize| F16(((index * 40_503) >> 3) as u16 & 0xbbff);
    let x: Vec<F16> = (0..count).map(value).collect();
    let x = Rows::contiguous(&x, columns).expect("whole rows");
    let (codes, scales) = quantized(scalar(), x, blocks, ScaleFormat::F32);
    let scales: Vec<f32> = scales.into_iter().map(f32::from_bits).collect();
    let values = dequantized::<Bf16>(scalar(), &codes, Scales::F32(&scales), blocks);
    let pairs = unpacked::<Bf16>(
        scalar(),
        &codes[..count / 2],
        &codes[count / 2..][..count / 32],
    );
    for tier in fast_tiers() {
        // 64 elements are a line or more: some of these starts are aligned, and others not.
        for start in [0, 1, 32, 48] {
            let mut out = vec![0; count + 64];
            let mut own_scales = vec![0.0; scales.len()];
            let own = &mut out[start..start + count];
            quantize_fp8(tier, x, block, ScaleFormat::F32, own, &mut own_scales)
                .expect("fitting lengths");
            assert!(
                own == codes && own_scales == scales,
                "{} {start}",
                tier.name()
            );
            let mut out = vec![Bf16(0); count + 64];
            let own = &mut out[start..start + count];
            let given = Rows::contiguous(&codes, columns).expect("whole rows");
            dequantize_fp8(tier, given, Scales::F32(&scales), block, own).expect("fitting lengths");
            assert!(keys(own) == values, "{} {start}", tier.name());
            let given = Rows::contiguous(&codes[..count / 2], 16).expect("whole blocks");
            dequantize_mxfp4(tier, given, &codes[count / 2..][..count / 32], own)
                .expect("fitting lengths");
            assert!(keys(own) == pairs, "{} {start}", tier.name());
        }
    }
}

#[test]
#[ignore = "for machines with AVX2"]
fn this_machine_has_avx2() {
    assert!(names().contains(&"avx2"), "{:?}", names());
}

#[test]
#[ignore = "for machines with AVX-512"]
fn this_machine_has_avx512() {
    assert!(names().contains(&"avx512"), "{:?}", names());
}

#[test]
#[ignore = "for machines with NEON"]
fn this_machine_has_neon() {
    assert!(names().contains(&"neon"), "{:?}", names());
}
