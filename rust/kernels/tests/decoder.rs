//! A decoder layer in every tier: a token's bits are its own, and what does not fit is refused.

#![allow(clippy::unwrap_used, reason = "a test may fail")]

#[path = "mla_case/bits.rs"]
mod bits;

use abyssal_kernels::decoder::{
    DecoderLayer, Error, Norm, NormWeight, Projections, Router, Step, decoder_layer,
};
use abyssal_kernels::gate::Values;
use abyssal_kernels::mla::{Cache, Rotary, Sizes};
use abyssal_kernels::{Expert, Layer, Matrix, Result, Tier, Weights};
use abyssal_quant::{Bf16, Element};
use abyssal_routing::{GroupScore, Rule, Scoring, Weighting};
use bits::{Bits, bits_of, sizes, tiers};

const HIDDEN: usize = 64;
const INNER: usize = 32;
const LATENT: usize = 24;
const EXPERTS: usize = 6;
const TOKENS: usize = 21;
const PAGE: usize = 8;
const SIZES: Sizes = sizes(3, 32, 8, 16, 12);
const RULE: Rule = Rule {
    num_experts: EXPERTS,
    top_k: 2,
    scoring: Scoring::Sigmoid,
    num_groups: 2,
    top_groups: 1,
    group_score: GroupScore::TopTwoSum,
    weighting: Weighting {
        normalize: true,
        scale: 2.5,
    },
};

/// A matrix of bfloat16 numbers.
struct Stored {
    rows: usize,
    columns: usize,
    numbers: Vec<Bf16>,
}

impl Stored {
    fn random(rows: usize, columns: usize, bits: &mut Bits) -> Self {
        let size = 1.0 / (columns as f32).sqrt();
        let numbers = bits.numbers(rows * columns);
        Self {
            rows,
            columns,
            numbers: numbers.iter().map(|x| Bf16::store(x * size)).collect(),
        }
    }

    fn matrix(&self) -> Matrix<'_> {
        Matrix::new(self.rows, self.columns, Weights::Bf16(&self.numbers)).unwrap()
    }
}

/// The weights of a layer, and a prompt's stream and angles.
struct Case {
    /// The two projections to queries, those to latents and from them, and the output's.
    attention: [Stored; 5],
    /// Gate, up and down of each expert, the shared one's last.
    experts: Vec<[Stored; 3]>,
    gate: Vec<f32>,
    bias: Vec<f32>,
    norms: [Vec<f32>; 4],
    hidden: Vec<f32>,
    cos: Vec<f32>,
    sin: Vec<f32>,
}

impl Case {
    fn new() -> Self {
        let mut bits = Bits(7);
        let Sizes {
            heads,
            kv_lora,
            rope,
            nope,
            v,
        } = SIZES;
        let shapes = [
            (LATENT, HIDDEN),
            (heads * (nope + rope), LATENT),
            (kv_lora + rope, HIDDEN),
            (heads * (nope + v), kv_lora),
            (HIDDEN, heads * v),
        ];
        let attention = shapes.map(|(rows, columns)| Stored::random(rows, columns, &mut bits));
        let mut expert = || {
            [(INNER, HIDDEN), (INNER, HIDDEN), (HIDDEN, INNER)]
                .map(|(rows, columns)| Stored::random(rows, columns, &mut bits))
        };
        let experts = (0..=EXPERTS).map(|_| expert()).collect();
        Self {
            attention,
            experts,
            gate: bits.numbers(EXPERTS * HIDDEN),
            bias: bits.numbers(EXPERTS),
            norms: [HIDDEN, LATENT, kv_lora, HIDDEN].map(|size| bits.numbers(size)),
            hidden: bits.numbers(TOKENS * HIDDEN),
            cos: bits.numbers(TOKENS * rope / 2),
            sin: bits.numbers(TOKENS * rope / 2),
        }
    }

    fn expert(&self, number: usize) -> Result<Expert<'_>> {
        let [gate, up, down] = self.experts[number].each_ref().map(Stored::matrix);
        Expert::new(gate, up, down)
    }

    fn norm(&self, number: usize) -> Norm<'_> {
        Norm {
            weight: NormWeight::F32(&self.norms[number]),
            eps: 1e-6,
        }
    }

    fn layer<'a>(
        &'a self,
        expert: &'a (dyn Fn(usize) -> Result<Expert<'a>> + Sync),
    ) -> DecoderLayer<'a> {
        let [query_down, query, kv_down, kv_up, output] =
            self.attention.each_ref().map(Stored::matrix);
        DecoderLayer {
            input_norm: self.norm(0),
            attention: Projections {
                sizes: SIZES,
                scale: 0.2,
                query_down: Some((query_down, self.norm(1))),
                query,
                kv_down,
                kv_norm: self.norm(2),
                kv_up,
                output,
            },
            post_norm: self.norm(3),
            router: Some(Router {
                weight: Values::F32(&self.gate),
                correction_bias: Some(&self.bias),
                rule: &RULE,
            }),
            experts: Layer {
                hidden_size: HIDDEN,
                num_experts: EXPERTS,
                num_routes: EXPERTS,
                expert,
                shared: Some(self.expert(EXPERTS).unwrap()),
                limit: None,
            },
        }
    }

    /// The stream after the layer and the cache, the prompt cut into steps of so many tokens.
    fn run(&self, tier: Tier, each: usize, num_threads: usize) -> (Vec<u32>, Vec<u16>) {
        let expert = |number| self.expert(number);
        let layer = self.layer(&expert);
        let half = SIZES.rope / 2;
        // Pages in another order than positions.
        let tables = [2, 0, 1];
        let mut cache = vec![Bf16::default(); 3 * PAGE * (SIZES.kv_lora + SIZES.rope)];
        let mut out = vec![0.0; TOKENS * HIDDEN];
        for first in (0..TOKENS).step_by(each) {
            let end = TOKENS.min(first + each);
            let slots: Vec<i64> = (first..end)
                .map(|place| i64::from(tables[place / PAGE]) * PAGE as i64 + (place % PAGE) as i64)
                .collect();
            let step = Step {
                rotary: Rotary {
                    cos: &self.cos[first * half..end * half],
                    sin: &self.sin[first * half..end * half],
                },
                slots: &slots,
                spans: &[0, (end - first) as i32, first as i32, 0],
                tables: &tables,
                page_size: PAGE,
            };
            let cells = first * HIDDEN..end * HIDDEN;
            let hidden = &self.hidden[cells.clone()];
            let mut cache = Cache::Bf16(&mut cache);
            let out = &mut out[cells];
            decoder_layer::<Bf16>(tier, &layer, &step, hidden, &mut cache, out, num_threads)
                .unwrap();
        }
        (bits_of(&out), Bf16::to_bits(&cache).to_vec())
    }
}

#[test]
fn a_token_has_the_same_bits_in_every_cut_and_on_every_number_of_threads() {
    let case = Case::new();
    for tier in tiers() {
        let want = case.run(tier, TOKENS, 1);
        assert!(want.0.iter().all(|&bits| f32::from_bits(bits).is_finite()));
        assert_ne!(want.0, bits_of(&case.hidden));
        for (each, threads) in [(TOKENS, 3), (8, 1), (1, 2)] {
            assert!(case.run(tier, each, threads) == want, "{}", tier.name());
        }
    }
}

#[test]
fn weights_that_do_not_fit_are_refused_and_nothing_is_written() {
    let case = Case::new();
    let expert = |number| case.expert(number);
    let mut layer = case.layer(&expert);
    layer.attention.sizes.v += 1;
    assert!(matches!(layer.check(), Err(Error::Product(_))));
    let mut cache = [1.0; 40];
    let mut out = [1.0; HIDDEN];
    let step = Step {
        rotary: Rotary {
            cos: &[1.0; 4],
            sin: &[0.0; 4],
        },
        slots: &[0],
        spans: &[0, 1, 0, 0],
        tables: &[0],
        page_size: 1,
    };
    let hidden = &case.hidden[..HIDDEN];
    let mut rows = Cache::F32(&mut cache);
    let refused = decoder_layer::<f32>(Tier::best(), &layer, &step, hidden, &mut rows, &mut out, 1);
    assert!(matches!(refused, Err(Error::Product(_))));
    assert!(cache.iter().chain(&out).all(|&number| number == 1.0));
}
