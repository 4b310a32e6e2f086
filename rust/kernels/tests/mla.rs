//! Latent attention in both forms, on every tier: against float64, and a token's independence of everything around it.

#![allow(clippy::unwrap_used, reason = "a test may fail")]

use abyssal_kernels::Tier;
use abyssal_kernels::mla::{Cache, Latents, Rotary, Sizes, Written, fp8_row_bytes, write_latents};
use abyssal_quant::{Bf16, Element};
use mla_case::bits::{Bits, bits_of, emulated, sizes, tiers};
use mla_case::{Case, KINDS, Kind, whole};
use proptest::prelude::*;

#[allow(dead_code, reason = "each file of tests uses a part")]
mod mla_case;

/// V2's and V3's, GLM's, Mistral's, small ones, and ones that fit no register.
const SIZES: [Sizes; 6] = [
    sizes(5, 512, 64, 128, 128),
    sizes(2, 512, 64, 192, 256),
    sizes(3, 256, 64, 64, 128),
    sizes(3, 32, 8, 16, 24),
    sizes(1, 96, 2, 1, 1),
    sizes(35, 64, 6, 7, 9),
];

#[test]
fn both_forms_are_right_for_published_and_odd_sizes_and_every_packing() {
    for tier in tiers() {
        for (index, sizes) in SIZES.into_iter().enumerate() {
            for (number, kind) in KINDS.into_iter().enumerate() {
                for (turn, narrow) in [false, true, true].into_iter().enumerate() {
                    if emulated() && (index + number + turn) % 7 != 0 {
                        continue;
                    }
                    let most = if emulated() { 7 } else { 53 };
                    let tokens = [most, 7][usize::from(narrow)] + index;
                    let mut case = Case::random(sizes, tokens, kind, narrow, number as u64);
                    if turn == 2 {
                        case = case.with_narrow_query();
                    }
                    case.check(tier, 0, &whole(&case, tier, 0));
                    case.check(tier, 0, &whole(&case, tier, tokens));
                }
            }
        }
    }
}

#[test]
fn ragged_latents_are_right() {
    for tier in tiers() {
        for kv_lora in [1, 31, 33, 100, 129, 200] {
            for kind in [Kind::F32, Kind::Bf16, Kind::Fp8] {
                if emulated() && (kind != Kind::Fp8 || kv_lora > 100) {
                    continue;
                }
                let case = Case::random(sizes(4, kv_lora, 10, 12, 17), 50, kind, true, 3);
                case.check(tier, 0, &whole(&case, tier, 20));
                let case = case.with_narrow_query();
                case.check(tier, 0, &whole(&case, tier, 20));
            }
        }
    }
}

#[test]
fn a_cache_in_fp8_is_right_for_published_and_ragged_sizes() {
    let odd = [1, 31, 127, 129, 200].map(|kv_lora| sizes(3, kv_lora, 6, 12, 17));
    for tier in tiers() {
        for (index, sizes) in SIZES.into_iter().chain(odd).enumerate() {
            for (number, kind) in KINDS.into_iter().enumerate() {
                if kind == Kind::Mxfp4 && sizes.kv_lora % 32 != 0 {
                    continue;
                }
                if emulated() && (index + number) % 5 != 0 {
                    continue;
                }
                let tokens = if emulated() { 7 } else { 40 };
                let case = Case::random(sizes, tokens, kind, false, number as u64);
                for case in [case.clone(), case.with_narrow_query()] {
                    let case = case.with_packed_cache();
                    case.check(tier, 0, &whole(&case, tier, tokens / 2));
                }
            }
        }
        let case = Case::random(sizes(2, 160, 8, 16, 24), 450, Kind::Fp8, false, 9);
        for case in [case.clone(), case.with_narrow_query()] {
            let case = case.with_packed_cache();
            case.check(tier, 447, &case.step(tier, 447, 450, 0, 2));
            case.check(tier, 447, &case.step(tier, 447, 450, 450, 2));
        }
    }
}

#[test]
fn contexts_of_several_chunks_are_right() {
    let tokens = if emulated() { 790 } else { 1000 };
    for tier in tiers() {
        let case = Case::random(sizes(2, 32, 8, 16, 24), tokens, Kind::Bf16, true, 9);
        for case in [case.clone(), case.with_narrow_query()] {
            for start in [383, 384, 768, tokens - 3] {
                let out = case.step(tier, start, start + 3, 0, 2);
                case.check(tier, start, &out);
                let out = case.step(tier, start, start + 3, tokens, 2);
                case.check(tier, start, &out);
            }
        }
    }
}

#[test]
fn a_token_has_the_same_bits_in_every_cut_of_a_prompt_and_on_every_number_of_threads() {
    let (tokens, expanded) = if emulated() { (300, 256) } else { (600, 512) };
    for tier in tiers() {
        let case = Case::random(sizes(3, 64, 8, 16, 24), tokens, Kind::Fp8, true, 5);
        bits_are_those_of_the_whole(tier, case.clone(), expanded);
        bits_are_those_of_the_whole(tier, case.with_narrow_query(), expanded);
        // Rows that are no whole registers, and no pairs.
        let odd = Case::random(sizes(3, 33, 6, 15, 23), tokens, Kind::Fp8, true, 5);
        bits_are_those_of_the_whole(tier, odd.with_narrow_query(), expanded);
        let packed = Case::random(sizes(2, 130, 6, 15, 23), tokens, Kind::Fp8, false, 5);
        let packed = packed.with_narrow_query().with_packed_cache();
        bits_are_those_of_the_whole(tier, packed, expanded);
    }
}

fn bits_are_those_of_the_whole(tier: Tier, mut case: Case, expanded: usize) {
    let tokens = case.tokens();
    let expected = bits_of(&whole(&case, tier, expanded));
    for (cut, page_size, threads) in [
        (7, 64, 1),
        (64, 16, 2),
        (256, 1, 2),
        (512, 48, 1),
        (1, 64, 2),
    ] {
        case.page_size = page_size;
        // Single tokens at some places only: each expands all before it.
        let starts: Vec<_> = (0..tokens)
            .step_by(cut)
            .filter(|start| {
                cut > 1 || start % 37 == 0 || (expanded - 2..expanded + 2).contains(start)
            })
            .step_by(if emulated() { 7 } else { 1 })
            .collect();
        for start in starts {
            let end = tokens.min(start + cut);
            let out = bits_of(&case.step(tier, start, end, expanded, threads));
            let size = case.sizes.heads * case.sizes.v;
            assert!(
                out == expected[start * size..end * size],
                "{} {cut} {start}",
                tier.name()
            );
        }
    }
}

/// Several sequences in one step, their pages interleaved.
fn together(cases: &[Case], lengths: &[(usize, usize)], tier: Tier, threads: usize) -> Vec<f32> {
    let (first, page_size) = (&cases[0], cases[0].page_size);
    let width = first.sizes.kv_lora + first.sizes.rope;
    let across = lengths
        .iter()
        .map(|&(_, end)| end.div_ceil(page_size))
        .max()
        .unwrap();
    let mut cache = vec![f32::NAN; cases.len() * across * page_size * width];
    let mut tables = vec![-1; cases.len() * across];
    let mut spans = Vec::new();
    let mut all = first.clone();
    (all.query, all.cos, all.sin) = (Vec::new(), Vec::new(), Vec::new());
    let mut covered = 0;
    for (number, (case, &(start, end))) in cases.iter().zip(lengths).enumerate() {
        for page in 0..end.div_ceil(page_size) {
            tables[number * across + page] = (page * cases.len() + number) as i32;
        }
        for token in 0..end {
            let page = tables[number * across + token / page_size] as usize;
            let slot = page * page_size + token % page_size;
            cache[slot * width..][..width].copy_from_slice(&case.rows[token * width..][..width]);
        }
        let half = case.sizes.rope / 2;
        let key = case.sizes.heads * (case.sizes.nope + case.sizes.rope);
        all.query.extend(&case.query[start * key..end * key]);
        all.cos.extend(&case.cos[start * half..end * half]);
        all.sin.extend(&case.sin[start * half..end * half]);
        spans.extend([covered, end - start, start, 0].map(|value| value as i32));
        covered += end - start;
    }
    let halves: Vec<_> = cache.iter().map(|&value| Bf16::store(value)).collect();
    let latents = if first.narrow {
        Latents::Bf16(&halves)
    } else {
        Latents::F32(&cache)
    };
    all.attend(tier, latents, &spans, &tables, (0, covered), threads)
        .unwrap()
}

#[test]
fn a_sequence_has_the_same_bits_alone_and_in_a_batch() {
    for tier in tiers() {
        for narrow in [false, true] {
            let layer = Case::random(sizes(4, 64, 8, 16, 24), 450, Kind::Bf16, narrow, 1);
            let cases: Vec<_> = (0..33)
                .map(|seed| {
                    let tokens = 3 + seed as usize * 13;
                    let mut case = Case::random(layer.sizes, tokens, Kind::F32, narrow, seed);
                    case.up = layer.up.clone();
                    if narrow {
                        case = case.with_narrow_query();
                    }
                    case
                })
                .collect();
            let last: Vec<_> = cases
                .iter()
                .map(|case| (case.tokens() - 1, case.tokens()))
                .collect();
            let alone: Vec<_> = cases
                .iter()
                .zip(&last)
                .map(|(case, &(start, end))| bits_of(&case.step(tier, start, end, 0, 1)))
                .collect();
            for size in [1, 2, 3, 8, 33] {
                if emulated() && size > 3 {
                    break;
                }
                for threads in [1, 2] {
                    let found = together(&cases[..size], &last[..size], tier, threads);
                    assert!(
                        bits_of(&found) == alone[..size].concat(),
                        "{} {size}",
                        tier.name()
                    );
                }
            }
        }
    }
}

#[test]
fn a_token_alone_has_the_bits_that_it_has_beside_others() {
    // Rows of the up projection in no whole strips, and a row of scales that ends within a head.
    let shape = sizes(6, 96, 6, 13, 11);
    let every = |tier, case: &Case| {
        let alone = |token| bits_of(&case.step(tier, token, token + 1, 0, 2));
        let together = case.step(tier, 0, case.tokens(), 0, 1);
        assert_eq!(
            (0..case.tokens()).flat_map(alone).collect::<Vec<_>>(),
            bits_of(&together)
        );
        together
    };
    for tier in tiers() {
        for (kind, narrow) in KINDS
            .into_iter()
            .flat_map(|kind| [(kind, false), (kind, true)])
        {
            let mut case = Case::random(shape, 5, kind, narrow, 3);
            if narrow {
                case = case.with_narrow_query();
            }
            let plain = every(tier, &case);
            assert!(plain.iter().all(|value| value.is_finite()));
            if kind != Kind::Fp8 {
                continue;
            }
            // A key row of head 1 and value row 9 of head 4.
            case.up.codes[(24 + 12) * 96 + 95] = 0x7f;
            case.up.codes[(4 * 24 + 13 + 9) * 96 + 40] = 0xff;
            for (place, value) in every(tier, &case).into_iter().enumerate() {
                let (head, column) = (place / 11 % 6, place % 11);
                let broken = head == 1 || (head, column) == (4, 9);
                assert_eq!(value.is_nan(), broken, "{} {place}", tier.name());
                assert!(broken || value.to_bits() == plain[place].to_bits());
            }
        }
    }
}

#[test]
#[cfg(target_arch = "x86_64")]
fn plain_lanes_give_the_bits_of_the_tier_with_as_many() {
    let found: Vec<_> = Tier::available()
        .into_iter()
        .filter(|tier| ["scalar", "avx2"].contains(&tier.name()))
        .map(|tier| {
            let case = Case::random(sizes(5, 96, 10, 16, 24), 90, Kind::Fp8, true, 5);
            bits_of(&whole(&case, tier, 70))
        })
        .collect();
    assert!(found.iter().all(|bits| *bits == found[0]));
}

#[test]
fn large_and_small_activations_keep_their_precision() {
    for tier in tiers() {
        for size in [1e4_f32, 1e-30] {
            let mut case = Case::random(sizes(3, 64, 8, 16, 24), 60, Kind::Bf16, false, 2);
            // Queries and rows change together, scores stay where they are.
            for value in &mut case.query {
                *value *= size;
            }
            case.scale /= size.min(1e30);
            let out = whole(&case, tier, 30);
            if size > 1.0 {
                // The bound takes a rotated query to be at most 1.
                assert!(out.iter().all(|value| value.is_finite()));
                let mut plain = Case::random(sizes(3, 64, 8, 16, 24), 60, Kind::Bf16, false, 2);
                plain.page_size = 64;
                plain.check(tier, 0, &out);
            } else {
                case.check(tier, 0, &out);
            }
        }
    }
}

#[test]
fn rows_are_normalized_rotated_and_written_to_their_slots() {
    let (tokens, latent, rope) = (70, 50, 6);
    let mut bits = Bits(8);
    let values = bits.numbers(tokens * (latent + rope));
    let norm = bits.numbers(latent);
    let angles = bits.numbers(tokens * rope / 2);
    let cos: Vec<_> = angles.iter().map(|angle| angle.cos()).collect();
    let sin: Vec<_> = angles.iter().map(|angle| angle.sin()).collect();
    let slots: Vec<_> = (0..tokens as i64)
        .map(|token| (token * 3 + 5) % 211)
        .collect();
    let written = |values, slots| Written {
        values,
        norm: &norm[..],
        eps: 1e-6,
        rotary: Rotary {
            cos: &cos,
            sin: &sin,
        },
        slots,
    };
    let write = |written: &Written<'_, f32, f32>, cache: &mut [f32], threads| {
        write_latents(written, &mut Cache::F32(cache), threads)
    };
    let mut cache = vec![9.0_f32; 211 * 56];
    write(&written(&values[..], &slots[..]), &mut cache, 2).unwrap();
    for (slot, row) in cache.chunks(56).enumerate() {
        let Some(token) = slots.iter().position(|&taken| taken == slot as i64) else {
            assert!(row.iter().all(|&value| value == 9.0));
            continue;
        };
        let from: Vec<_> = values[token * 56..][..56]
            .iter()
            .map(|&x| f64::from(x))
            .collect();
        let mean = from[..50].iter().map(|x| x * x).sum::<f64>() / 50.0;
        for (place, &value) in row.iter().enumerate() {
            let exact = if place < 50 {
                from[place] / (mean + 1e-6).sqrt() * f64::from(norm[place])
            } else {
                let (pair, at) = (place / 2 * 2, token * 3 + (place - 50) / 2);
                let (cos, sin) = (f64::from(cos[at]), f64::from(sin[at]));
                match place % 2 {
                    0 => from[pair] * cos - from[pair + 1] * sin,
                    _ => from[pair + 1] * cos + from[pair] * sin,
                }
            };
            // A dozen roundings of numbers below 2.
            assert!((f64::from(value) - exact).abs() < 12.0 * 1.2e-7 * exact.abs().max(2.0));
        }
    }
    let mut again = vec![9.0_f32; 211 * 56];
    write(&written(&values[..], &slots[..]), &mut again, 1).unwrap();
    assert_eq!(bits_of(&cache), bits_of(&again));
    let halves: Vec<_> = values.iter().map(|&value| Bf16::store(value)).collect();
    let mut narrow = vec![Bf16(0); 211 * 56];
    let narrow_norm: Vec<_> = norm.iter().map(|&value| Bf16::store(value)).collect();
    let of_halves = Written {
        values: &halves[..],
        norm: &narrow_norm[..],
        eps: 1e-6,
        rotary: Rotary {
            cos: &cos,
            sin: &sin,
        },
        slots: &slots[..],
    };
    write_latents(&of_halves, &mut Cache::Bf16(&mut narrow), 1).unwrap();
    for (&slot, _) in slots.iter().zip(0..) {
        for place in 0..56 {
            let at = slot as usize * 56 + place;
            // Four roundings to eight bits on the way.
            assert!(
                (narrow[at].load() - cache[at]).abs() <= 4.0 * 0.004 * cache[at].abs().max(1.0)
            );
        }
    }
    let mut outside = slots.clone();
    outside[3] = 211;
    let error = write(&written(&values[..], &outside[..]), &mut again, 1).unwrap_err();
    assert_eq!(
        error.to_string(),
        "the slot of token 3 is 211; it must lie in 0..211, that one excluded"
    );
    let error = write(&written(&values[1..], &slots[..]), &mut again, 1).unwrap_err();
    assert_eq!(
        error.to_string(),
        "the down projection has 3919 elements; it must have 3920"
    );
    assert_eq!(bits_of(&cache), bits_of(&again));
}

#[test]
fn rows_in_fp8_are_the_plain_ones_quantized() {
    for (latent, rope) in [(50, 6), (512, 64), (130, 2), (2500, 4)] {
        let (tokens, width) = (40, latent + rope);
        let mut bits = Bits(latent as u64);
        let values = bits.numbers(tokens * width);
        let norm = bits.numbers(latent);
        let angles = bits.numbers(tokens * rope / 2);
        let slots: Vec<_> = (0..tokens as i64)
            .map(|token| (token * 3 + 5) % 71)
            .collect();
        let written = Written {
            values: &values[..],
            norm: &norm[..],
            eps: 1e-6,
            rotary: Rotary {
                cos: &angles,
                sin: &angles,
            },
            slots: &slots,
        };
        let bytes = fp8_row_bytes(latent, rope);
        let (mut plain, mut packed) = (vec![0.0; 71 * width], vec![9; 71 * bytes]);
        write_latents(&written, &mut Cache::F32(&mut plain), 2).unwrap();
        write_latents(&written, &mut Cache::Fp8(&mut packed), 2).unwrap();
        for (slot, row) in packed.chunks(bytes).enumerate() {
            if slots.contains(&(slot as i64)) {
                let plain = &mut plain[slot * width..][..width];
                assert_eq!(row, mla_case::packed::pack(plain, latent));
            } else {
                assert!(row.iter().all(|&byte| byte == 9));
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn results_are_right_for_random_sizes(
        kind in 0..KINDS.len(),
        heads in 1..7_usize,
        kv_lora in 1..150_usize,
        half in 1..10_usize,
        nope in 1..40_usize,
        v in 1..40_usize,
        tokens in 1..120_usize,
        expanded in 0..120_usize,
        narrow in any::<bool>(),
        narrow_query in any::<bool>(),
        seed in any::<u64>(),
    ) {
        let kind = KINDS[kind];
        let kv_lora = if kind == Kind::Mxfp4 { kv_lora.next_multiple_of(32) } else { kv_lora };
        let sizes = sizes(heads, kv_lora, 2 * half, nope, v);
        let mut case = Case::random(sizes, tokens, kind, narrow, seed);
        if narrow_query {
            case = case.with_narrow_query();
        }
        for tier in tiers() {
            case.check(tier, 0, &case.step(tier, 0, tokens, expanded, 2));
        }
    }
}
