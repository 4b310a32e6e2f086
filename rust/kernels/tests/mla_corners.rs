//! Latent attention where numbers are not finite, far apart or all the same, and calls that are refused.

#![allow(clippy::unwrap_used, reason = "a test may fail")]

use abyssal_kernels::Tier;
use abyssal_kernels::mla::{Error, Latents};
use abyssal_quant::{Bf16, Element};
use mla_case::bits::{bits_of, sizes, tiers};
use mla_case::{Case, Kind, whole};

#[allow(dead_code, reason = "each file of tests uses a part")]
mod mla_case;

#[test]
fn scores_far_apart_leave_one_key_and_equal_ones_the_mean() {
    for tier in tiers() {
        let mut case = Case::random(sizes(2, 32, 8, 16, 24), 500, Kind::F32, false, 2);
        case.scale = 1e6;
        let out = case.step(tier, 499, 500, 0, 1);
        assert!(out.iter().all(|value| value.is_finite()));
        case.check(tier, 499, &out);
        let narrow = Case::random(sizes(2, 32, 8, 16, 24), 500, Kind::Fp8, true, 2);
        for mut case in [case, narrow.with_narrow_query()] {
            case.scale = 0.0;
            for expanded in [0, 500] {
                let out = case.step(tier, 499, 500, expanded, 1);
                case.check(tier, 499, &out);
            }
        }
    }
}

#[test]
fn weights_sum_to_one_however_they_are_rounded() {
    for tier in tiers() {
        let sizes = sizes(3, 64, 8, 16, 24);
        let mut case = Case::random(sizes, 300, Kind::Fp8, true, 4).with_narrow_query();
        // Equal values, so that only a wrong sum of the weights moves their mean; scores differ by the rotary part.
        let first = case.rows[..64].to_vec();
        for row in case.rows.chunks_mut(72) {
            row[..64].copy_from_slice(&first);
        }
        for expanded in [0, 300] {
            for (number, value) in whole(&case, tier, expanded).into_iter().enumerate() {
                let row = number / 24 % 3 * 40 + 16 + number % 24;
                let up = &case.up.values[row * 64..][..64];
                let terms = up.iter().zip(&first).map(|(a, b)| f64::from(a * b));
                let exact: f64 = terms.clone().sum();
                let size: f64 = terms.map(f64::abs).sum();
                // In float32 some 500 operations; of the expanded form's values alone one rounding to bfloat16.
                let bound = 500.0 * 6e-8 * size;
                let nearest = Bf16::store(exact as f32).load();
                let close = |other: f64| (f64::from(value) - other).abs() <= bound;
                let rounded = close(f64::from(Bf16::store(value).load()))
                    && (f64::from(value) - f64::from(nearest)).abs() <= exact.abs() / 128.0;
                assert!(
                    close(exact) || expanded > 0 && tier.name() == "avx512-bf16" && rounded,
                    "{} {expanded} {number}: {value}, not {exact}",
                    tier.name()
                );
            }
        }
    }
}

#[test]
fn what_is_not_finite_stays_in_its_token_and_with_the_tokens_that_see_it() {
    let tokens = 110;
    for tier in tiers() {
        for expanded in [0, tokens] {
            let case = Case::random(sizes(5, 64, 8, 16, 24), tokens, Kind::Bf16, false, 2);
            what_is_not_finite_stays(&case, tier, expanded, 60);
            // Either one of two keys that are multiplied together.
            let case = Case::random(sizes(5, 64, 8, 16, 24), tokens, Kind::Bf16, true, 2);
            let case = case.with_narrow_query();
            what_is_not_finite_stays(&case, tier, expanded, 60);
            what_is_not_finite_stays(&case, tier, expanded, 61);
        }
    }
}

fn what_is_not_finite_stays(case: &Case, tier: Tier, expanded: usize, broken: usize) {
    let expected = whole(case, tier, expanded);
    let size = case.sizes.heads * case.sizes.v;
    for value in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let mut of_query = case.clone();
        let key = case.sizes.nope + case.sizes.rope;
        // The first number of head 2.
        of_query.query[(broken * case.sizes.heads + 2) * key] = value;
        let out = whole(&of_query, tier, expanded);
        for (place, (&found, &expected)) in out.iter().zip(&expected).enumerate() {
            if place / size == broken && place % size / case.sizes.v == 2 {
                assert!(found.is_nan());
            } else {
                assert_eq!(found.to_bits(), expected.to_bits());
            }
        }
        let mut of_row = case.clone();
        of_row.rows[broken * 72 + 5] = value;
        let out = whole(&of_row, tier, expanded);
        let (before, after) = (broken * size, (broken + 1) * size);
        assert_eq!(bits_of(&out[..before]), bits_of(&expected[..before]));
        if value.is_nan() {
            assert!(out[after..].iter().all(|value| value.is_nan()));
        } else {
            assert!(out[after..].iter().any(|value| value.is_nan()));
        }
    }
}

#[test]
fn scores_of_negative_infinity_weigh_nothing() {
    for tier in tiers() {
        for narrow in [false, true] {
            let mut case = Case::random(sizes(1, 32, 8, 16, 24), 500, Kind::F32, narrow, 2);
            if narrow {
                case = Case::random(case.sizes, 500, Kind::Fp8, true, 2).with_narrow_query();
                case.up.codes[..16 * 32].fill(0);
            }
            // The rotary part alone decides, and the keys of the first chunk are out of reach of the last query.
            let width = 40;
            case.up.values[..16 * 32].fill(0.0);
            for query in case.query.chunks_mut(24) {
                query[16..].fill(0.0);
                query[16] = 1e30;
            }
            case.cos.fill(1.0);
            case.sin.fill(0.0);
            for (token, row) in case.rows.chunks_mut(width).enumerate() {
                row[32..].fill(0.0);
                row[32] = if token < 400 { -1e30 } else { 0.0 };
            }
            for expanded in [0, 500] {
                let out = case.step(tier, 499, 500, expanded, 1);
                let mut near = case.clone();
                near.rows.drain(..400 * width);
                near.query.drain(..400 * 24);
                near.cos.drain(..400 * 4);
                near.sin.drain(..400 * 4);
                near.check(tier, 99, &out);
            }
        }
    }
}

#[test]
fn codes_of_nan_and_tiny_scales_of_the_up_projection() {
    for tier in tiers() {
        for narrow in [false, true] {
            let mut case = Case::random(sizes(3, 64, 8, 16, 24), 20, Kind::Fp8, narrow, 2);
            if narrow {
                case = case.with_narrow_query();
            }
            let plain = case.clone();
            let expected = whole(&case, tier, 10);
            // Value row 3 of head 1.
            case.up.codes[(40 + 16 + 3) * 64 + 9] = 0x7f;
            let out = whole(&case, tier, 10);
            for (place, (found, expected)) in out.iter().zip(expected).enumerate() {
                if place % 72 == 24 + 3 {
                    assert!(found.is_nan());
                } else {
                    assert_eq!(found.to_bits(), expected.to_bits());
                }
            }
            for scale in [0.0, 1e-45, 1e-38, 1e-23] {
                let mut case = plain.clone();
                case.up.scales.fill(scale);
                let out = whole(&case, tier, 10);
                assert!(
                    out.iter()
                        .all(|value| value.is_finite() && value.abs() <= scale * 3e4)
                );
            }
        }
    }
}

#[test]
fn a_step_without_tokens_gives_nothing() {
    let case = Case::random(sizes(3, 32, 8, 16, 24), 4, Kind::F32, false, 2);
    let out = case
        .attend(Tier::best(), Latents::F32(&[]), &[], &[], (0, 0), 2)
        .unwrap();
    assert!(out.is_empty());
}

#[test]
#[allow(clippy::too_many_lines, reason = "a list of calls")]
fn a_call_that_does_not_fit_says_why_and_writes_nothing() {
    let case = Case::random(sizes(3, 32, 8, 16, 24), 20, Kind::F32, false, 2);
    let cache = vec![0.0; 2 * 16 * 40];
    let message = |spans: &[i32], tables: &[i32], rows: usize| {
        case.attend(
            Tier::best(),
            Latents::F32(&cache[..rows * 40]),
            spans,
            tables,
            (0, 20),
            1,
        )
        .unwrap_err()
        .to_string()
    };
    for (spans, tables, rows, expected) in [
        (
            &[0, 20, 0, 0][..],
            &[0, 2][..],
            32,
            "page 1 of span 0 is 2; it must lie in 0..2, that one excluded",
        ),
        (
            &[0, 20, 0, 0],
            &[-1, 1],
            32,
            "page 0 of span 0 is -1; it must lie in 0..2, that one excluded",
        ),
        (
            &[0, 20, 0, 0],
            &[0],
            32,
            "the block table of span 0 has 1 pages; it needs 2",
        ),
        (
            &[0, 20, 13, 0],
            &[0, 1],
            32,
            "the block table of span 0 has 2 pages; it needs 3",
        ),
        (
            &[0, 20, i32::MAX, 0],
            &[0, 1],
            32,
            "the block table of span 0 has 2 pages; it needs 134217730",
        ),
        (
            &[0, 19, 0, 0],
            &[0, 1],
            32,
            "the spans cover 19 tokens; there are 20",
        ),
        (
            &[0, 21, 0, 0],
            &[0, 1],
            32,
            "the length of span 0 is 21; it must lie in 1..20",
        ),
        (
            &[0, 0, 0, 0],
            &[0, 1],
            32,
            "the length of span 0 is 0; it must lie in 1..20",
        ),
        (
            &[1, 19, 0, 0],
            &[0, 1],
            32,
            "the start of span 0 is 1; it must lie in 0..0",
        ),
        (
            &[0, 20, -1, 0],
            &[0, 1],
            32,
            "the position of span 0 is -1; it must lie in 0..2147483647",
        ),
        (
            &[0, 20, 0, 21],
            &[0, 1],
            32,
            "the number of expanded tokens of span 0 is 21; it must lie in 0..20",
        ),
        (
            &[0, 20, 0],
            &[0, 1],
            32,
            "spans has 3 elements; it must have 0",
        ),
        (&[], &[], 32, "the spans cover 0 tokens; there are 20"),
        (
            &[0, 20, 0, 0],
            &[0, 1],
            31,
            "the cache has 1240 elements; it must have 640",
        ),
        (
            &[0, 10, 0, 0, 10, 10, 0, 0],
            &[0, 1, 1],
            32,
            "block tables has 3 elements; it must have 2",
        ),
    ] {
        assert_eq!(message(spans, tables, rows), expected);
    }
    let mut odd = case.clone();
    odd.sizes.v = 0;
    let error = odd.attend(
        Tier::best(),
        Latents::F32(&cache),
        &[0, 20, 0, 0],
        &[0, 1],
        (0, 20),
        1,
    );
    assert_eq!(error, Err(Error::Zero { name: "v" }));
}
