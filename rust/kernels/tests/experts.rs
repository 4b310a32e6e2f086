//! Feed-forward parts in every tier: right to rounding, and a token's independence of everything around it.

#![allow(clippy::unwrap_used, reason = "a test may fail")]

use abyssal_kernels::{Choices, Error, Expert, Layer, Matrix, Tier, Weights, experts};
use abyssal_quant::{
    Bf16, Element, Rows, ScaleFormat, Scales, dequantize_fp8, dequantize_mxfp4, quantize_fp8,
    quantize_mxfp4,
};

const HIDDEN: usize = 160;
const COUNT: usize = 5;
const ROUTES: usize = 7;
const TOP_K: usize = 3;

fn tiers() -> Vec<Tier> {
    match std::env::var("ABYSSAL_TEST_PROFILE").as_deref() {
        Ok("emulated") => vec![Tier::best()],
        _ => Tier::available(),
    }
}

/// Numbers in -1 to 1 that are the same in every run.
fn numbers(count: usize, seed: u64) -> Vec<f32> {
    let mut state = seed;
    let mut next = || {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / 8_388_608.0 - 1.0
    };
    (0..count).map(|_| next()).collect()
}

/// A stored matrix and its values.
struct Stored {
    rows: usize,
    columns: usize,
    kind: usize,
    codes: Vec<u8>,
    scales: Vec<f32>,
    halves: Vec<Bf16>,
    values: Vec<f32>,
}

impl Stored {
    fn new(rows: usize, columns: usize, kind: usize, seed: u64) -> Self {
        let tier = abyssal_quant::Tier::best();
        let dense = numbers(rows * columns, seed);
        let x = Rows::contiguous(&dense, columns).unwrap();
        let blocks = rows.div_ceil(128) * columns.div_ceil(128);
        let mut stored = Self {
            rows,
            columns,
            kind,
            codes: Vec::new(),
            scales: vec![0.0; blocks],
            halves: Vec::new(),
            values: vec![0.0; rows * columns],
        };
        match kind {
            0 => {
                stored.codes = vec![0; rows * columns];
                let (codes, scales) = (&mut stored.codes, &mut stored.scales);
                quantize_fp8(tier, x, (128, 128), ScaleFormat::F32, codes, scales).unwrap();
                let codes = Rows::contiguous(&stored.codes, columns).unwrap();
                let scales = Scales::F32(&stored.scales);
                dequantize_fp8(tier, codes, scales, (128, 128), &mut stored.values).unwrap();
            }
            1 => {
                // Codes, and behind them the scales.
                let mut scales = vec![0; rows * columns / 32];
                stored.codes = vec![0; rows * columns / 2];
                quantize_mxfp4(tier, x, &mut stored.codes, &mut scales).unwrap();
                let codes = Rows::contiguous(&stored.codes, columns / 2).unwrap();
                dequantize_mxfp4(tier, codes, &scales, &mut stored.values).unwrap();
                stored.codes.extend(scales);
            }
            2 => {
                stored.halves = dense.iter().map(|&value| Bf16::store(value)).collect();
                stored.values = stored.halves.iter().map(|half| half.load()).collect();
            }
            _ => stored.values = dense,
        }
        stored
    }

    fn matrix(&self) -> Matrix<'_> {
        let weights = match self.kind {
            0 => Weights::Fp8 {
                codes: &self.codes,
                scales: Scales::F32(&self.scales),
            },
            1 => {
                let (codes, scales) = self.codes.split_at(self.rows * self.columns / 2);
                Weights::Mxfp4 { codes, scales }
            }
            2 => Weights::Bf16(&self.halves),
            _ => Weights::F32(&self.values),
        };
        Matrix::new(self.rows, self.columns, weights).unwrap()
    }

    /// The product in float64, and what the terms' sizes add up to.
    fn product(&self, x: &[f64]) -> Vec<(f64, f64)> {
        let terms = |row: &[f32]| {
            row.iter().zip(x).fold((0.0, 0.0), |(sum, size), (&w, &x)| {
                let term = f64::from(w) * x;
                (sum + term, size + term.abs())
            })
        };
        self.values.chunks(self.columns).map(terms).collect()
    }
}

struct Parts([Stored; 3]);

impl Parts {
    fn new(inner: usize, kind: usize, seed: u64) -> Self {
        Self([
            Stored::new(inner, HIDDEN, kind % 4, seed),
            Stored::new(inner, HIDDEN, (kind + 1) % 4, seed + 1),
            Stored::new(HIDDEN, inner, (kind + 2) % 4, seed + 2),
        ])
    }

    fn expert(&self) -> Expert<'_> {
        let [gate, up, down] = self.0.each_ref().map(Stored::matrix);
        Expert::new(gate, up, down).unwrap()
    }

    /// The output in float64, and a bound of what float32 adds to it.
    fn output(&self, x: &[f32], limit: f64) -> Vec<(f64, f64)> {
        let [gate, up, down] = &self.0;
        let x: Vec<f64> = x.iter().map(|&x| f64::from(x)).collect();
        let unit = f64::from(f32::EPSILON) / 2.0;
        // One rounding for each term, and four each for halving the lanes and for scales.
        let error = |columns: usize, size: f64| (columns + 8) as f64 * unit * size;
        let (gates, ups) = (gate.product(&x), up.product(&x));
        let (inner, errors): (Vec<f64>, Vec<f64>) = gates
            .iter()
            .zip(&ups)
            .map(|(&(g, g_size), &(u, u_size))| {
                let (g, u) = (g.min(limit), u.clamp(-limit, limit));
                let silu = g / (1.0 + (-g).exp());
                // silu's slope is at most 1.1 in size; it is right to six roundings, its product to one.
                let silu_error = 1.1 * error(HIDDEN, g_size) + 6.0 * unit * silu.abs();
                let up_error = error(HIDDEN, u_size);
                let value = silu * u;
                let spread = silu_error * (u.abs() + up_error) + silu.abs() * up_error;
                (value, spread + unit * value.abs())
            })
            .unzip();
        let sizes: Vec<f64> = inner
            .iter()
            .zip(&errors)
            .map(|(v, e)| v.abs() + e)
            .collect();
        let bound = |row: &[f32]| {
            row.iter()
                .zip(errors.iter().zip(&sizes))
                .map(|(&w, (e, size))| f64::from(w).abs() * (e + error(inner.len(), *size)))
                .sum::<f64>()
        };
        let bounds = down.values.chunks(inner.len()).map(bound);
        down.product(&inner)
            .into_iter()
            .map(|(value, _)| value)
            .zip(bounds)
            .collect()
    }
}

struct Case {
    routed: Vec<Parts>,
    shared: Parts,
    x: Vec<f32>,
    indices: Vec<i32>,
    weights: Vec<f32>,
}

impl Case {
    fn new(tokens: usize) -> Self {
        let weights = numbers(tokens * TOP_K, 4);
        Self {
            routed: (0..COUNT)
                .map(|number| Parts::new(96, number, number as u64 * 3))
                .collect(),
            shared: Parts::new(224, 0, 99),
            x: numbers(tokens * HIDDEN, 7),
            // Distinct for a token, in no order.
            indices: (0..tokens * TOP_K)
                .map(|at| ((at / TOP_K * 5 + at % TOP_K * 2) % ROUTES) as i32)
                .collect(),
            weights: weights.iter().map(|weight| weight.abs()).collect(),
        }
    }

    fn tokens(&self) -> usize {
        self.x.len() / HIDDEN
    }

    fn run(
        &self,
        tier: Tier,
        tokens: std::ops::Range<usize>,
        limit: Option<f32>,
        threads: usize,
    ) -> Vec<f32> {
        let layer = Layer {
            hidden_size: HIDDEN,
            num_experts: COUNT,
            num_routes: ROUTES,
            expert: &|number| Ok(self.routed[number].expert()),
            shared: Some(self.shared.expert()),
            limit,
        };
        let choices = Choices {
            indices: &self.indices[tokens.start * TOP_K..tokens.end * TOP_K],
            weights: &self.weights[tokens.start * TOP_K..tokens.end * TOP_K],
            top_k: TOP_K,
        };
        let x = &self.x[tokens.start * HIDDEN..tokens.end * HIDDEN];
        let mut out = vec![f32::NAN; x.len()];
        experts(tier, layer, choices, x, &mut out, threads).unwrap();
        out
    }
}

#[test]
fn sums_of_experts_are_right_to_rounding() {
    let case = Case::new(12);
    let unit = f64::from(f32::EPSILON) / 2.0;
    for limit in [None, Some(0.25)] {
        let outs: Vec<_> = tiers()
            .into_iter()
            .map(|tier| (tier, case.run(tier, 0..case.tokens(), limit, 2)))
            .collect();
        for token in 0..case.tokens() {
            let x = &case.x[token * HIDDEN..][..HIDDEN];
            let bounded = limit.map_or(f64::INFINITY, f64::from);
            let mut terms = vec![(1.0, case.shared.output(x, bounded))];
            for choice in token * TOP_K..(token + 1) * TOP_K {
                let index = case.indices[choice] as usize;
                let output = match case.routed.get(index) {
                    Some(parts) => parts.output(x, bounded),
                    None => x.iter().map(|&x| (f64::from(x), 0.0)).collect(),
                };
                terms.push((f64::from(case.weights[choice]), output));
            }
            for column in 0..HIDDEN {
                let (mut exact, mut bound) = (0.0, 0.0);
                for (weight, output) in &terms {
                    let (value, error) = output[column];
                    exact += weight * value;
                    // Its product with the weight, and at most four additions.
                    bound += weight * (error + 5.0 * unit * (value.abs() + error));
                }
                for (tier, out) in &outs {
                    let value = f64::from(out[token * HIDDEN + column]);
                    assert!(
                        (value - exact).abs() <= bound * 1.01,
                        "{}: {value}, not {exact}, bound {bound}",
                        tier.name()
                    );
                }
            }
        }
    }
}

#[test]
fn a_token_has_the_same_bits_alone_in_every_batch_and_on_every_number_of_threads() {
    let case = Case::new(33);
    let bits = |values: Vec<f32>| -> Vec<u32> { values.iter().map(|v| v.to_bits()).collect() };
    for tier in tiers() {
        let alone: Vec<u32> = (0..case.tokens())
            .flat_map(|token| bits(case.run(tier, token..token + 1, None, 1)))
            .collect();
        for size in [2, 5, 8, 33] {
            for threads in [1, 2, 3] {
                for first in (0..case.tokens()).step_by(size) {
                    let here = first..case.tokens().min(first + size);
                    let expected = &alone[here.start * HIDDEN..here.end * HIDDEN];
                    assert!(bits(case.run(tier, here, None, threads)) == expected);
                }
            }
        }
    }
}

#[test]
fn calls_that_do_not_fit_are_refused_and_nothing_is_written() {
    let case = Case::new(2);
    let layer = Layer {
        hidden_size: HIDDEN,
        num_experts: COUNT,
        num_routes: ROUTES,
        expert: &|number| Ok(case.routed[number].expert()),
        shared: None,
        limit: None,
    };
    let refused = |indices: &[i32], weights: &[f32], x: &[f32]| {
        let choices = Choices {
            indices,
            weights,
            top_k: TOP_K,
        };
        let mut out = [7.0; 2 * HIDDEN];
        let error = experts(Tier::best(), layer, choices, x, &mut out, 1).unwrap_err();
        assert_eq!(out, [7.0; 2 * HIDDEN]);
        error.to_string()
    };
    assert_eq!(
        refused(&[0, 1, 2, 0, 1, 7], &case.weights, &case.x),
        "expert is 7; it must lie in 0..6"
    );
    assert_eq!(
        refused(&case.indices, &case.weights[1..], &case.x),
        "weights has 5 elements; it must have 6"
    );
    assert_eq!(
        refused(&case.indices, &case.weights, &case.x[1..]),
        "x has 319 elements; it must have 160"
    );
    let [gate, up, _] = case.routed[0].0.each_ref().map(Stored::matrix);
    let error = Expert::new(gate, up, up).unwrap_err();
    assert!(matches!(
        error,
        Error::Expert {
            down: (96, 160),
            ..
        }
    ));
    assert_eq!(
        error.to_string(),
        "gate is (96, 160), up (96, 160) and down (96, 160); up must be as gate, down its transpose"
    );
}
