//! A model of two layers, assembled from the kernels, against logits that the reference computed in float64.
//!
//! `scripts/two_layers_fixture.py` wrote the file. Its first layer is dense, its second has experts.

#![allow(clippy::unwrap_used, reason = "a test may fail")]

#[path = "mla_case/bits.rs"]
#[allow(dead_code, reason = "each file of tests uses a part")]
mod bits;

use abyssal_kernels::decoder::{
    Activation, DecoderLayer, Norm, NormWeight, Projections, Router, Step, decoder_layer,
};
use abyssal_kernels::gate::Values;
use abyssal_kernels::mla::{Cache, Rotary, Sizes};
use abyssal_kernels::{Expert, Layer, Matrix, Result, Tier, Weights, linear, rms_norm};
use abyssal_quant::{Bf16, Element, Rows, ScaleFormat, Scales, dequantize_fp8, quantize_fp8};
use abyssal_routing::{GroupScore, Rule, Scoring, Weighting};
use bits::{sizes, tiers};

const FIXTURE: &[u8] = include_bytes!("two_layers.bin");
const HIDDEN: usize = 64;
const LATENT: usize = 24;
const DENSE: usize = 96;
const INNER: usize = 32;
const EXPERTS: usize = 8;
const VOCABULARY: usize = 32;
const EPS: f32 = 1e-6;
const PAGE: usize = 8;
const SIZES: Sizes = sizes(4, 32, 8, 16, 16);
const RULE: Rule = Rule {
    num_experts: EXPERTS,
    top_k: 4,
    scoring: Scoring::Sigmoid,
    num_groups: 4,
    top_groups: 2,
    group_score: GroupScore::TopTwoSum,
    weighting: Weighting {
        normalize: true,
        scale: 2.5,
    },
};

/// What is left of the file.
struct Reader(&'static [u8]);

impl Reader {
    fn array<const N: usize>(&mut self) -> Vec<[u8; N]> {
        let (count, rest) = self.0.split_first_chunk().unwrap();
        let (array, rest) = rest.split_at(u32::from_le_bytes(*count) as usize * N);
        self.0 = rest;
        array.as_chunks().0.to_vec()
    }

    fn halves(&mut self) -> Vec<Bf16> {
        let bits = self.array().into_iter().map(u16::from_le_bytes);
        bits.map(Bf16).collect()
    }

    fn floats(&mut self) -> Vec<f32> {
        self.array().into_iter().map(f32::from_le_bytes).collect()
    }

    fn matrix(&mut self, rows: usize, columns: usize) -> Stored {
        Stored::new(rows, columns, self.halves())
    }

    /// Down, gate and up, as names sort; gate, up and down are returned.
    fn expert(&mut self, inner: usize) -> [Stored; 3] {
        let down = self.matrix(HIDDEN, inner);
        [self.matrix(inner, HIDDEN), self.matrix(inner, HIDDEN), down]
    }
}

/// The same matrix in bfloat16 and in FP8, whose scales are powers of two.
struct Stored {
    rows: usize,
    columns: usize,
    halves: Vec<Bf16>,
    codes: Vec<u8>,
    scales: Vec<f32>,
}

impl Stored {
    fn new(rows: usize, columns: usize, halves: Vec<Bf16>) -> Self {
        assert_eq!(halves.len(), rows * columns);
        let tier = abyssal_quant::Tier::best();
        let blocks = rows.div_ceil(128) * columns.div_ceil(128);
        let (mut codes, mut scales) = (vec![0; halves.len()], vec![0.0; blocks]);
        let values = Rows::contiguous(&halves, columns).unwrap();
        let format = ScaleFormat::Ue8m0;
        quantize_fp8(tier, values, (128, 128), format, &mut codes, &mut scales).unwrap();
        Self {
            rows,
            columns,
            halves,
            codes,
            scales,
        }
    }

    /// Whether FP8 holds the very values.
    fn is_packed(&self) -> bool {
        let mut back = vec![0.0_f32; self.codes.len()];
        let codes = Rows::contiguous(&self.codes, self.columns).unwrap();
        let tier = abyssal_quant::Tier::best();
        dequantize_fp8(
            tier,
            codes,
            Scales::F32(&self.scales),
            (128, 128),
            &mut back,
        )
        .unwrap();
        let mut pairs = self.halves.iter().zip(back);
        pairs.all(|(half, back)| half.load().to_bits() == back.to_bits())
    }

    fn matrix(&self, packed: bool) -> Matrix<'_> {
        let weights = if packed {
            Weights::Fp8 {
                codes: &self.codes,
                scales: Scales::F32(&self.scales),
            }
        } else {
            Weights::Bf16(&self.halves)
        };
        Matrix::new(self.rows, self.columns, weights).unwrap()
    }
}

/// The weights of a layer, in the order of the file.
struct Parts {
    kv_down: Stored,
    kv_norm: Vec<Bf16>,
    kv_up: Stored,
    output: Stored,
    query_down: Stored,
    query_norm: Vec<Bf16>,
    query: Stored,
    input_norm: Vec<Bf16>,
    /// The shared one, or the dense part, last.
    experts: Vec<[Stored; 3]>,
    gate: Vec<Bf16>,
    post_norm: Vec<Bf16>,
}

impl Parts {
    fn read(file: &mut Reader, sparse: bool) -> Self {
        let Sizes {
            heads,
            kv_lora,
            rope,
            nope,
            v,
        } = SIZES;
        let kv_down = file.matrix(kv_lora + rope, HIDDEN);
        let kv_norm = file.halves();
        let kv_up = file.matrix(heads * (nope + v), kv_lora);
        let output = file.matrix(HIDDEN, heads * v);
        let query_down = file.matrix(LATENT, HIDDEN);
        let query_norm = file.halves();
        let query = file.matrix(heads * (nope + rope), LATENT);
        let input_norm = file.halves();
        let (mut experts, mut gate) = (Vec::new(), Vec::new());
        if sparse {
            experts.extend((0..EXPERTS).map(|_| file.expert(INNER)));
            gate = file.halves();
        }
        experts.push(file.expert(if sparse { INNER } else { DENSE }));
        Self {
            kv_down,
            kv_norm,
            kv_up,
            output,
            query_down,
            query_norm,
            query,
            input_norm,
            experts,
            gate,
            post_norm: file.halves(),
        }
    }

    fn matrices(&self) -> impl Iterator<Item = &Stored> {
        let attention = [
            &self.kv_down,
            &self.kv_up,
            &self.output,
            &self.query_down,
            &self.query,
        ];
        self.experts.iter().flatten().chain(attention)
    }

    fn expert(&self, number: usize, packed: bool) -> Result<Expert<'_>> {
        let [gate, up, down] = &self.experts[number];
        let matrices = [gate, up, down].map(|part| part.matrix(packed));
        let [gate, up, down] = matrices;
        Expert::new(gate, up, down)
    }
}

fn norm(weight: &[Bf16]) -> Norm<'_> {
    Norm {
        weight: NormWeight::Bf16(weight),
        eps: EPS,
    }
}

struct Model {
    embedding: Vec<Bf16>,
    head: Vec<Bf16>,
    layers: [Parts; 2],
    norm: Vec<Bf16>,
    correction_bias: Vec<f32>,
    ids: Vec<usize>,
    cos: Vec<f32>,
    sin: Vec<f32>,
    logits: Vec<f64>,
}

impl Model {
    fn read() -> Self {
        let mut file = Reader(FIXTURE);
        let (embedding, head) = (file.halves(), file.halves());
        let layers = [false, true].map(|sparse| Parts::read(&mut file, sparse));
        let norm = file.halves();
        let correction_bias = file.floats();
        let ids = file.array().into_iter().map(u32::from_le_bytes);
        let ids: Vec<usize> = ids.map(|id| id as usize).collect();
        let (cos, sin) = (file.floats(), file.floats());
        let logits: Vec<f64> = file.array().into_iter().map(f64::from_le_bytes).collect();
        assert!(file.0.is_empty() && logits.len() == ids.len() * VOCABULARY);
        Self {
            embedding,
            head,
            layers,
            norm,
            correction_bias,
            ids,
            cos,
            sin,
            logits,
        }
    }

    /// The logits of the prompt, of which the first `expanded` tokens take the expanded form of attention.
    fn run<T: Activation>(&self, tier: Tier, packed: bool, expanded: usize) -> Vec<f32> {
        let tokens = self.ids.len();
        let slots: Vec<i64> = (0..tokens as i64).collect();
        let tables: Vec<i32> = (0..tokens.div_ceil(PAGE) as i32).collect();
        let step = Step {
            rotary: Rotary {
                cos: &self.cos,
                sin: &self.sin,
            },
            slots: &slots,
            spans: &[0, tokens as i32, 0, expanded as i32],
            tables: &tables,
            page_size: PAGE,
        };
        let rows = self
            .ids
            .iter()
            .flat_map(|id| &self.embedding[id * HIDDEN..][..HIDDEN]);
        let mut hidden: Vec<f32> = rows.map(|half| half.load()).collect();
        let slots = tables.len() * PAGE;
        for (parts, sparse) in self.layers.iter().zip([false, true]) {
            let expert = |number| parts.expert(number, packed);
            let count = parts.experts.len() - 1;
            let layer = DecoderLayer {
                input_norm: norm(&parts.input_norm),
                attention: Projections {
                    sizes: SIZES,
                    scale: ((SIZES.nope + SIZES.rope) as f32).sqrt().recip(),
                    query_down: Some((parts.query_down.matrix(packed), norm(&parts.query_norm))),
                    query: parts.query.matrix(packed),
                    kv_down: parts.kv_down.matrix(packed),
                    kv_norm: norm(&parts.kv_norm),
                    kv_up: parts.kv_up.matrix(packed),
                    output: parts.output.matrix(packed),
                },
                post_norm: norm(&parts.post_norm),
                router: sparse.then_some(Router {
                    weight: Values::Bf16(Bf16::to_bits(&parts.gate)),
                    correction_bias: Some(&self.correction_bias),
                    rule: &RULE,
                }),
                experts: Layer {
                    hidden_size: HIDDEN,
                    num_experts: count,
                    num_routes: count,
                    expert: &expert,
                    shared: Some(parts.expert(count, packed).unwrap()),
                    limit: None,
                },
            };
            let mut cache = vec![T::default(); slots * (SIZES.kv_lora + SIZES.rope)];
            let mut out = vec![0.0; hidden.len()];
            run_layer(tier, &layer, &step, &hidden, &mut cache, &mut out);
            hidden = out;
        }
        let mut last = vec![T::default(); hidden.len()];
        rms_norm(&hidden, &self.norm, EPS, &mut last, 1).unwrap();
        let head = Matrix::new(VOCABULARY, HIDDEN, Weights::Bf16(&self.head)).unwrap();
        let mut logits = vec![0.0; tokens * VOCABULARY];
        linear(tier, &head, &last, &mut logits, 1).unwrap();
        logits
    }
}

/// Runs a layer with a cache of float32 rows, which hold what both types of activations give.
fn run_layer<T: Activation>(
    tier: Tier,
    layer: &DecoderLayer<'_>,
    step: &Step<'_>,
    hidden: &[f32],
    cache: &mut [T],
    out: &mut [f32],
) {
    let mut rows: Vec<f32> = cache.iter().map(|number| number.load()).collect();
    decoder_layer::<T>(
        tier,
        layer,
        step,
        hidden,
        &mut Cache::F32(&mut rows),
        out,
        1,
    )
    .unwrap();
}

/// The largest error, as a part of the largest logit.
fn error(logits: &[f32], exact: &[f64]) -> f64 {
    let largest = exact
        .iter()
        .fold(0.0_f64, |most, logit| most.max(logit.abs()));
    let errors = logits
        .iter()
        .zip(exact)
        .map(|(&got, want)| (f64::from(got) - want).abs());
    errors.fold(0.0, f64::max) / largest
}

#[test]
fn the_file_holds_fp8_values() {
    let model = Model::read();
    assert!(
        model
            .layers
            .iter()
            .flat_map(Parts::matrices)
            .all(Stored::is_packed)
    );
}

#[test]
fn two_layers_are_right_in_every_tier_form_and_packing() {
    let model = Model::read();
    for tier in tiers() {
        for packed in [false, true] {
            for expanded in [0, model.ids.len()] {
                // About twenty products and norms one after the other, of rows of at most 96, each term rounded once;
                // of bfloat16 activations, each result is rounded to eight bits instead.
                let wide = error(&model.run::<f32>(tier, packed, expanded), &model.logits);
                assert!(
                    wide <= 20.0 * 96.0 / 2_f64.powi(24),
                    "{} {wide}",
                    tier.name()
                );
                let narrow = error(&model.run::<Bf16>(tier, packed, expanded), &model.logits);
                assert!(narrow <= 20.0 / 2_f64.powi(9), "{} {narrow}", tier.name());
                assert!(narrow > wide);
            }
        }
    }
}
