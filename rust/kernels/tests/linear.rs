//! Products of every packing and tier with sums in float64, and a row's independence of everything around it.

#![allow(clippy::unwrap_used, reason = "a test may fail")]

use abyssal_kernels::{Error, Matrix, Tier, Weights, linear};
use abyssal_quant::{Bf16, Element, Scales, e4m3_to_f32, e8m0_to_f32};
use proptest::prelude::*;

const E2M1: [f32; 8] = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0];

/// The tiers to test: all of this machine, or under emulation the one that is emulated. The plain one, which any machine
/// runs, does fused multiply-adds in software there.
fn tiers() -> Vec<Tier> {
    match std::env::var("ABYSSAL_TEST_PROFILE").as_deref() {
        Ok("emulated") => vec![Tier::best()],
        _ => Tier::available(),
    }
}

/// A tier, and whether activations are bfloat16.
#[derive(Clone, Copy)]
struct Way {
    tier: Tier,
    halves: bool,
}

impl Way {
    /// Whether products are those of pairs.
    fn pairs(self) -> bool {
        self.halves && self.tier.name() == "avx512-bf16"
    }

    fn name(self) -> String {
        let activations = if self.halves { "bfloat16" } else { "float32" };
        format!("{} with {activations}", self.tier.name())
    }
}

fn ways() -> Vec<Way> {
    let both = |tier| [false, true].map(|halves| Way { tier, halves });
    tiers().into_iter().flat_map(both).collect()
}

/// Random bits that are the same in every run.
struct Bits(u64);

impl Bits {
    fn next(&mut self) -> u64 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        self.0 >> 33
    }

    /// A number in -1 to 1.
    fn number(&mut self) -> f32 {
        (self.next() & 0xff_ffff) as f32 / 8_388_608.0 - 1.0
    }
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Kind {
    Fp8,
    Fp8PowerScales,
    Mxfp4,
    Bf16,
    F32,
}

const KINDS: [Kind; 5] = [
    Kind::Fp8,
    Kind::Fp8PowerScales,
    Kind::Mxfp4,
    Kind::Bf16,
    Kind::F32,
];

/// A stored matrix, and its values.
struct Stored {
    kind: Kind,
    rows: usize,
    columns: usize,
    bytes: Vec<u8>,
    scale_bytes: Vec<u8>,
    scales: Vec<f32>,
    halves: Vec<Bf16>,
    numbers: Vec<f32>,
    values: Vec<f32>,
}

impl Stored {
    fn random(kind: Kind, rows: usize, columns: usize, seed: u64) -> Self {
        let mut bits = Bits(seed);
        let mut stored = Self {
            kind,
            rows,
            columns,
            bytes: Vec::new(),
            scale_bytes: Vec::new(),
            scales: Vec::new(),
            halves: Vec::new(),
            numbers: Vec::new(),
            values: Vec::new(),
        };
        let across = columns.div_ceil(128);
        let blocks = rows.div_ceil(128) * across;
        match kind {
            Kind::Fp8 | Kind::Fp8PowerScales => {
                // Every code but the two of NaN.
                stored.bytes = (0..rows * columns)
                    .map(|_| (bits.next() & 0xff) as u8)
                    .map(|code| if code & 0x7f == 0x7f { code - 1 } else { code })
                    .collect();
                stored.scales = (0..blocks).map(|_| 0.01 + bits.number().abs()).collect();
                stored.scale_bytes = (0..blocks)
                    .map(|_| 110 + (bits.next() % 20) as u8)
                    .collect();
                stored.values = (0..rows * columns)
                    .map(|at| {
                        let block = at / columns / 128 * across + at % columns / 128;
                        e4m3_to_f32(stored.bytes[at]) * stored.scale(block)
                    })
                    .collect();
            }
            Kind::Mxfp4 => {
                stored.bytes = (0..rows * columns / 2)
                    .map(|_| (bits.next() & 0xff) as u8)
                    .collect();
                stored.scale_bytes = (0..rows * columns / 32)
                    .map(|_| 115 + (bits.next() % 20) as u8)
                    .collect();
                stored.values = (0..rows * columns)
                    .map(|at| {
                        let code = stored.bytes[at / 2] >> (at % 2 * 4) & 15;
                        let size = E2M1[usize::from(code & 7)];
                        let sign = if code & 8 == 0 { 1.0 } else { -1.0 };
                        sign * size * e8m0_to_f32(stored.scale_bytes[at / 32])
                    })
                    .collect();
            }
            Kind::Bf16 => {
                stored.halves = (0..rows * columns)
                    .map(|_| Bf16::store(bits.number()))
                    .collect();
                stored.values = stored.halves.iter().map(|half| half.load()).collect();
            }
            Kind::F32 => {
                stored.numbers = (0..rows * columns).map(|_| bits.number()).collect();
                stored.values.clone_from(&stored.numbers);
            }
        }
        stored
    }

    fn scale(&self, block: usize) -> f32 {
        match self.kind {
            Kind::Fp8 => self.scales[block],
            _ => e8m0_to_f32(self.scale_bytes[block]),
        }
    }

    fn weights(&self) -> Weights<'_> {
        match self.kind {
            Kind::Fp8 => Weights::Fp8 {
                codes: &self.bytes,
                scales: Scales::F32(&self.scales),
            },
            Kind::Fp8PowerScales => Weights::Fp8 {
                codes: &self.bytes,
                scales: Scales::E8m0(&self.scale_bytes),
            },
            Kind::Mxfp4 => Weights::Mxfp4 {
                codes: &self.bytes,
                scales: &self.scale_bytes,
            },
            Kind::Bf16 => Weights::Bf16(&self.halves),
            Kind::F32 => Weights::F32(&self.numbers),
        }
    }

    fn product(&self, way: Way, x: &[f32], threads: usize) -> Vec<f32> {
        let matrix = Matrix::new(self.rows, self.columns, self.weights()).unwrap();
        let mut out = vec![f32::NAN; x.len() / self.columns * self.rows];
        if way.halves {
            let x: Vec<Bf16> = x.iter().map(|&value| Bf16::store(value)).collect();
            linear(way.tier, &matrix, &x, &mut out, threads).unwrap();
        } else {
            linear(way.tier, &matrix, x, &mut out, threads).unwrap();
        }
        out
    }

    /// The product in float64, and the sum of the terms' sizes.
    fn exact(&self, token: &[f32], row: usize) -> (f64, f64) {
        let weights = &self.values[row * self.columns..][..self.columns];
        weights
            .iter()
            .zip(token)
            .fold((0.0, 0.0), |(sum, size), (&w, &x)| {
                let term = f64::from(w) * f64::from(x);
                (sum + term, size + term.abs())
            })
    }

    /// Requires products within rounding of the exact ones.
    fn check(&self, way: Way, x: &[f32], out: &[f32]) {
        for (token, products) in x.chunks(self.columns).zip(out.chunks(self.rows)) {
            for (row, &product) in products.iter().enumerate() {
                let (exact, size) = self.exact(token, row);
                // A chain over a quarter of the columns or less (of pairs over a sixteenth, and one for each block), four
                // halvings, one rounding of the activation times its scale and one at the end, each half a unit of what
                // has been summed so far; and one rounding of the exact weight's own value in this test.
                let roundings = (self.columns / 4 + 8) as f64;
                let mut bound = roundings * f64::from(f32::EPSILON) / 2.0 * size + 1e-44;
                if way.pairs() && self.kind == Kind::Fp8 {
                    // Each code times its scale is rounded to bfloat16.
                    bound += size / 256.0;
                }
                assert!(
                    (f64::from(product) - exact).abs() <= bound,
                    "{} {:?}: row {row} is {product}, not {exact}, bound {bound}",
                    way.name(),
                    self.kind
                );
            }
        }
    }
}

/// Numbers that bfloat16 has too.
fn tokens(count: usize, columns: usize, size: f32, seed: u64) -> Vec<f32> {
    let mut bits = Bits(seed ^ 0x5555);
    (0..count * columns)
        .map(|_| Bf16::store(bits.number() * size).load())
        .collect()
}

fn bits_of(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

#[test]
fn products_are_right_for_every_packing_tier_and_number_of_tokens() {
    for way in ways() {
        for kind in KINDS {
            for (rows, columns) in [
                (1, 32),
                (5, 64),
                (70, 160),
                (130, 288),
                (64, 1152),
                (19, 4320),
            ] {
                let stored = Stored::random(kind, rows, columns, 7);
                for count in [1, 2, 3, 4, 5, 7, 9] {
                    let x = tokens(count, columns, 1.0, count as u64);
                    stored.check(way, &x, &stored.product(way, &x, 1));
                }
            }
        }
    }
}

#[test]
fn ragged_columns_are_right() {
    for way in ways() {
        for kind in KINDS {
            for columns in [1, 2, 31, 33, 100, 127, 129, 200, 1025] {
                if kind == Kind::Mxfp4 {
                    continue;
                }
                let stored = Stored::random(kind, 9, columns, columns as u64);
                for count in [1, 6] {
                    let x = tokens(count, columns, 1.0, 3);
                    stored.check(way, &x, &stored.product(way, &x, 1));
                }
            }
        }
    }
}

#[test]
fn a_row_has_the_same_bits_alone_in_every_batch_and_on_every_number_of_threads() {
    // Rows of the second are read eight at once by some tiers, and twice with more than four tokens.
    for (rows, columns) in [(70, 1120), (19, 4320)] {
        for way in ways() {
            for kind in KINDS {
                let stored = Stored::random(kind, rows, columns, 11);
                let x = tokens(9, columns, 1.0, 5);
                let alone: Vec<_> = x
                    .chunks(columns)
                    .flat_map(|token| bits_of(&stored.product(way, token, 1)))
                    .collect();
                for (size, threads) in (2..=9).zip([1, 2].into_iter().cycle()) {
                    let together: Vec<_> = x
                        .chunks(size * columns)
                        .flat_map(|tokens| bits_of(&stored.product(way, tokens, threads)))
                        .collect();
                    assert!(
                        alone == together,
                        "{} {kind:?} {size} {threads}",
                        way.name()
                    );
                }
            }
        }
    }
}

#[test]
fn large_and_small_activations_keep_their_precision() {
    for way in ways() {
        for kind in KINDS {
            let stored = Stored::random(kind, 20, 256, 3);
            for size in [1e4, 1e-30, 1e-38] {
                for count in [1, 5] {
                    let x = tokens(count, 256, size, 9);
                    stored.check(way, &x, &stored.product(way, &x, 1));
                }
            }
            let zeros = vec![0.0; 256];
            assert!(
                stored
                    .product(way, &zeros, 1)
                    .iter()
                    .all(|&value| value == 0.0)
            );
        }
    }
}

#[test]
fn tiny_and_zero_scales_give_tiny_and_zero_products() {
    for way in ways() {
        for scale in [0.0, 1e-45, 1e-38, 1e-23] {
            let mut stored = Stored::random(Kind::Fp8, 10, 130, 3);
            stored.scales = vec![scale; 2];
            stored.values = stored
                .bytes
                .iter()
                .map(|&code| e4m3_to_f32(code) * scale)
                .collect();
            for count in [1, 5] {
                let x = tokens(count, 130, 1.0, 9);
                let out = stored.product(way, &x, 1);
                assert!(out.iter().all(|value| value.is_finite()));
                if scale == 0.0 {
                    assert!(out.iter().all(|&value| value == 0.0));
                } else if scale > 1e-37 {
                    // Below, this test's own values are rounded as subnormal numbers.
                    stored.check(way, &x, &out);
                }
            }
        }
    }
}

/// The value of every code of four bits with every scale, in every place of a block, alone and through scratch memory.
#[test]
fn every_code_of_four_bits_with_every_scale_is_right() {
    let scales: Vec<u8> = (0..=255).collect();
    for shift in 0..16 {
        let code = |column: usize| (column + shift) % 16;
        let row = (0..16).map(|byte| (code(2 * byte) | code(2 * byte + 1) << 4) as u8);
        let codes: Vec<u8> = row.clone().cycle().take(256 * 16).collect();
        let weights = Weights::Mxfp4 {
            codes: &codes,
            scales: &scales,
        };
        let matrix = Matrix::new(256, 32, weights).unwrap();
        // A unit vector for each column.
        let x: Vec<f32> = (0..32 * 32)
            .map(|at| f32::from(u8::from(at % 33 == 0)))
            .collect();
        for tier in tiers() {
            let mut together = vec![0.0; 32 * 256];
            linear(tier, &matrix, &x, &mut together, 1).unwrap();
            for (column, (x, together)) in x.chunks(32).zip(together.chunks(256)).enumerate() {
                let mut alone = vec![0.0; 256];
                linear(tier, &matrix, x, &mut alone, 1).unwrap();
                assert_eq!(bits_of(&alone), bits_of(together));
                for (scale, &found) in alone.iter().enumerate() {
                    let value = |column: usize| {
                        let code = code(column);
                        let sign = if code & 8 == 0 { 1.0 } else { -1.0 };
                        sign * E2M1[code & 7] * e8m0_to_f32(scale as u8)
                    };
                    // An infinite weight times zero is no number.
                    let want: f32 = (0..32).zip(x).map(|(column, x)| value(column) * x).sum();
                    assert!(
                        found == want || found.is_nan() && want.is_nan(),
                        "{} column {column} scale {scale}: {found:e} {want:e}",
                        tier.name()
                    );
                }
            }
        }
    }
}

#[test]
fn nan_and_infinity_stay_in_their_rows_and_tokens() {
    let columns = 200;
    for way in ways() {
        for count in [1, 3, 6] {
            let mut stored = Stored::random(Kind::Fp8, 9, columns, 3);
            for (row, code) in [(2, 0x7f), (7, 0xff)] {
                stored.bytes[row * columns + 150 + row] = code;
            }
            let x = tokens(count, columns, 1.0, 4);
            let out = stored.product(way, &x, 1);
            for products in out.chunks(9) {
                for (row, product) in products.iter().enumerate() {
                    assert_eq!(
                        product.is_nan(),
                        row == 2 || row == 7,
                        "{} {row}",
                        way.name()
                    );
                }
            }
        }
        for kind in KINDS {
            let columns = 224;
            let stored = Stored::random(kind, 9, columns, 3);
            for (bad, count) in [(f32::NAN, 3), (f32::INFINITY, 3), (f32::NAN, 7)] {
                let mut x = tokens(count, columns, 1.0, 4);
                x[columns + 5] = bad;
                let out = stored.product(way, &x, 1);
                for (token, products) in out.chunks(9).enumerate() {
                    assert_eq!(products.iter().all(|value| !value.is_finite()), token == 1);
                }
                let clean = stored.product(way, &x[..columns], 1);
                assert_eq!(bits_of(&out[..9]), bits_of(&clean));
            }
        }
    }
}

#[test]
fn no_tokens_and_no_rows_give_nothing() {
    for way in ways() {
        for kind in KINDS {
            assert!(
                Stored::random(kind, 4, 64, 1)
                    .product(way, &[], 2)
                    .is_empty()
            );
            let none = Stored::random(kind, 0, 64, 1);
            assert!(none.product(way, &[1.0; 64], 2).is_empty());
        }
    }
}

#[test]
fn slices_that_do_not_fit_are_refused() {
    let message = |result: abyssal_kernels::Result<Matrix<'_>>| result.unwrap_err().to_string();
    assert_eq!(
        message(Matrix::new(2, 0, Weights::F32(&[]))),
        "the weight has 0 columns; at least 1 is needed"
    );
    let weights = Weights::Mxfp4 {
        codes: &[],
        scales: &[],
    };
    assert_eq!(
        message(Matrix::new(2, 48, weights)),
        "the weight has 48 columns; a positive multiple of 32 is needed"
    );
    let weights = Weights::Fp8 {
        codes: &[0; 300],
        scales: Scales::F32(&[1.0]),
    };
    assert_eq!(
        message(Matrix::new(2, 150, weights)),
        "scales has 1 elements; it must have 2"
    );
    let matrix = Matrix::new(1, 2, Weights::F32(&[1.0, 2.0])).unwrap();
    let mut out = [7.0];
    let error = linear(Tier::best(), &matrix, &[1.0; 3], &mut out, 1).unwrap_err();
    assert!(matches!(
        error,
        Error::Length {
            expected: 2,
            actual: 3,
            ..
        }
    ));
    let error = linear(Tier::best(), &matrix, &[1.0; 4], &mut out, 1).unwrap_err();
    assert!(matches!(
        error,
        Error::Length {
            expected: 2,
            actual: 1,
            ..
        }
    ));
    assert_eq!(out, [7.0]);
}

#[test]
fn bfloat16_activations_give_the_products_of_their_values() {
    // Pairs are summed in another order.
    for tier in tiers()
        .into_iter()
        .filter(|tier| tier.name() != "avx512-bf16")
    {
        let stored = Stored::random(Kind::Fp8, 30, 256, 3);
        let x: Vec<Bf16> = tokens(2, 256, 1.0, 4)
            .into_iter()
            .map(Bf16::store)
            .collect();
        let wide: Vec<f32> = x.iter().map(|value| value.load()).collect();
        let matrix = Matrix::new(30, 256, stored.weights()).unwrap();
        let mut out = vec![0.0; 60];
        linear(tier, &matrix, &x, &mut out, 1).unwrap();
        let way = Way {
            tier,
            halves: false,
        };
        assert_eq!(out, stored.product(way, &wide, 1));
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn products_are_right_for_random_sizes(
        kind in 0..KINDS.len(),
        rows in 1..150_usize,
        columns in 1..400_usize,
        count in 1..12_usize,
        seed in any::<u64>(),
    ) {
        let kind = KINDS[kind];
        let columns = if kind == Kind::Mxfp4 { columns.next_multiple_of(32) } else { columns };
        let stored = Stored::random(kind, rows, columns, seed);
        let x = tokens(count, columns, 1.0, seed);
        for way in ways() {
            stored.check(way, &x, &stored.product(way, &x, 2));
        }
    }
}
