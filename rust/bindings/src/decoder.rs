//! Python binding of the decoder layer of `abyssal-kernels`: weights held from call to call, and the call.
#![allow(
    clippy::needless_pass_by_value,
    reason = "arguments are extracted by value"
)]

use abyssal_kernels::decoder::{
    DecoderLayer as Layer, Error, Norm, NormWeight, Projections, Router, Step,
    decoder_layer as compute,
};
use abyssal_kernels::gate::Values;
use abyssal_kernels::mla::Sizes;
use abyssal_kernels::{Expert, Result as KernelResult, pool};
use abyssal_quant::Bf16;
use abyssal_routing::{Rule, Weighting};
use pyo3::prelude::*;

use crate::dtype::Dtype;
use crate::error::BindError;
use crate::experts::Experts;
use crate::linear::ACTIVATIONS;
use crate::mla::{expect_cache, rotary, rows_of, sequences, sizes};
use crate::routing::{group_score_from, scoring_from};
use crate::run;
use crate::tensor::{Held, Tensor, reject_overlap};
use crate::tier::tier;
use crate::weight::{Given, Weight, held, reject_weight_overlap};

impl From<Error> for BindError {
    fn from(error: Error) -> Self {
        Self::value_error(error)
    }
}

/// A norm's weight and epsilon.
type GivenNorm<'py> = (Bound<'py, PyAny>, f32);

/// A normalization that is held.
struct HeldNorm {
    weight: Held,
    eps: f32,
}

impl HeldNorm {
    fn new(name: &str, (weight, eps): &GivenNorm<'_>) -> Result<Self, BindError> {
        Ok(Self {
            weight: plain(name, weight)?,
            eps: *eps,
        })
    }

    fn norm(&self) -> Norm<'_> {
        let weight = match self.weight.dtype() {
            Dtype::F32 => NormWeight::F32(self.weight.as_slice()),
            _ => NormWeight::Bf16(Bf16::from_bits(self.weight.as_slice())),
        };
        Norm {
            weight,
            eps: self.eps,
        }
    }
}

/// Holds float32 or bfloat16 numbers.
fn plain(name: &str, tensor: &Bound<'_, PyAny>) -> Result<Held, BindError> {
    let view: Tensor<'_> = tensor.extract()?;
    view.expect_dtype(name, &ACTIVATIONS)?;
    held(name, tensor)
}

/// How experts are chosen, and by which weights.
struct HeldRouter {
    weight: Held,
    correction_bias: Option<Held>,
    rule: Rule,
}

impl HeldRouter {
    fn router(&self) -> Router<'_> {
        let weight = match self.weight.dtype() {
            Dtype::F32 => Values::F32(self.weight.as_slice()),
            _ => Values::Bf16(self.weight.as_slice()),
        };
        Router {
            weight,
            correction_bias: self.correction_bias.as_ref().map(Held::as_slice),
            rule: &self.rule,
        }
    }
}

/// What `abyssal.nn.Router` knows: the weight, the bias, and the rule without the number of experts.
#[derive(FromPyObject)]
struct GivenRouter<'py> {
    weight: Bound<'py, PyAny>,
    correction_bias: Option<Bound<'py, PyAny>>,
    top_k: usize,
    scoring: String,
    num_groups: usize,
    top_groups: usize,
    group_score: String,
    normalize: bool,
    scale: f32,
}

impl GivenRouter<'_> {
    fn hold(&self) -> Result<HeldRouter, BindError> {
        let view: Tensor<'_> = self.weight.extract()?;
        let [num_experts, _] = sizes("the router's weight", &view)?;
        let bias = self.correction_bias.as_ref();
        Ok(HeldRouter {
            weight: plain("the router's weight", &self.weight)?,
            correction_bias: bias
                .map(|bias| Held::new::<f32>("correction_bias", bias))
                .transpose()?,
            rule: Rule {
                num_experts,
                top_k: self.top_k,
                scoring: scoring_from(&self.scoring)?,
                num_groups: self.num_groups,
                top_groups: self.top_groups,
                group_score: group_score_from(&self.group_score)?,
                weighting: Weighting {
                    normalize: self.normalize,
                    scale: self.scale,
                },
            },
        })
    }
}

/// The weights of a decoder layer, read where they lie.
#[pyclass(frozen, module = "abyssal._core")]
pub(crate) struct DecoderLayer {
    input_norm: HeldNorm,
    query_down: Option<(Weight, HeldNorm)>,
    query: Weight,
    kv_down: Weight,
    kv_norm: HeldNorm,
    kv_up: Weight,
    output: Weight,
    sizes: Sizes,
    scale: f32,
    post_norm: HeldNorm,
    router: Option<HeldRouter>,
    experts: Py<Experts>,
}

#[pymethods]
impl DecoderLayer {
    #[new]
    #[pyo3(signature = (*, input_norm, query_down, query, kv_down, kv_norm, kv_up, output, sizes, scale, post_norm,
        router, experts))]
    #[allow(
        clippy::too_many_arguments,
        reason = "the keyword arguments of the Python class"
    )]
    fn new(
        input_norm: GivenNorm<'_>,
        query_down: Option<(Given<'_>, GivenNorm<'_>)>,
        query: Given<'_>,
        kv_down: Given<'_>,
        kv_norm: GivenNorm<'_>,
        kv_up: Given<'_>,
        output: Given<'_>,
        sizes: [usize; 5],
        scale: f32,
        post_norm: GivenNorm<'_>,
        router: Option<GivenRouter<'_>>,
        experts: Bound<'_, Experts>,
    ) -> Result<Self, BindError> {
        let [heads, kv_lora, rope, nope, v] = sizes;
        let query_down = match &query_down {
            None => None,
            Some((weight, norm)) => Some((
                Weight::new("query_down", weight)?,
                HeldNorm::new("query_norm", norm)?,
            )),
        };
        let layer = Self {
            input_norm: HeldNorm::new("input_norm", &input_norm)?,
            query_down,
            query: Weight::new("query", &query)?,
            kv_down: Weight::new("kv_down", &kv_down)?,
            kv_norm: HeldNorm::new("kv_norm", &kv_norm)?,
            kv_up: Weight::new("kv_up", &kv_up)?,
            output: Weight::new("output", &output)?,
            sizes: Sizes {
                heads,
                kv_lora,
                rope,
                nope,
                v,
            },
            scale,
            post_norm: HeldNorm::new("post_norm", &post_norm)?,
            router: router.as_ref().map(GivenRouter::hold).transpose()?,
            experts: experts.clone().unbind(),
        };
        let held = experts.get();
        layer.layer(held, &|number| held.expert(number))?.check()?;
        Ok(layer)
    }

    /// Maps the stream before the layer to the stream after it, and writes the step's rows of the cache.
    #[pyo3(signature = (hidden, cos, sin, cache, slots, spans, block_tables, out, *, page_size, dtype))]
    #[allow(
        clippy::too_many_arguments,
        reason = "the arguments of the Python function"
    )]
    fn forward(
        &self,
        py: Python<'_>,
        hidden: Tensor<'_>,
        cos: Tensor<'_>,
        sin: Tensor<'_>,
        mut cache: Tensor<'_>,
        slots: Tensor<'_>,
        spans: Tensor<'_>,
        block_tables: Tensor<'_>,
        mut out: Tensor<'_>,
        page_size: usize,
        dtype: &str,
    ) -> Result<(), BindError> {
        let [tokens, _] = sizes("hidden", &hidden)?;
        let (rotary, _) = rotary(&cos, &sin, tokens)?;
        let Sizes { kv_lora, rope, .. } = self.sizes;
        expect_cache(&cache, kv_lora, rope)?;
        slots.expect_shape("slots", &[tokens])?;
        let (ranges, tables) = sequences(&spans, &block_tables)?;
        out.expect_shape("out", hidden.shape())?;
        let inputs = [
            ("hidden", &hidden),
            ("cos", &cos),
            ("sin", &sin),
            ("slots", &slots),
            ("spans", &spans),
            ("block_tables", &block_tables),
        ];
        reject_overlap(&[("cache", &cache), ("out", &out)], &inputs)?;
        let experts = self.experts.get();
        for output in [("cache", &cache), ("out", &out)] {
            reject_weight_overlap(experts.memory(), output)?;
            reject_weight_overlap(self.memory(), output)?;
        }
        let step = Step {
            rotary,
            slots: slots.as_slice("slots")?,
            spans: ranges,
            tables,
            page_size,
        };
        let mut cache = rows_of(&mut cache)?;
        let (hidden, out) = (hidden.as_slice("hidden")?, out.as_mut_slice("out")?);
        let expert = |number| experts.expert(number);
        let layer = self.layer(experts, &expert)?;
        let (tier, threads) = (tier(), pool::num_threads());
        run(py, || {
            if dtype == "float32" {
                compute::<f32>(tier, &layer, &step, hidden, &mut cache, out, threads)?;
            } else {
                compute::<Bf16>(tier, &layer, &step, hidden, &mut cache, out, threads)?;
            }
            Ok(())
        })
    }
}

impl DecoderLayer {
    /// The memory that weights are read from, those of the experts left out.
    fn memory(&self) -> impl Iterator<Item = &Held> {
        let (down, norm) = self
            .query_down
            .as_ref()
            .map(|(down, norm)| (down, norm))
            .unzip();
        let matrices = [&self.query, &self.kv_down, &self.kv_up, &self.output];
        let norms = [&self.input_norm, &self.kv_norm, &self.post_norm];
        let router = self.router.iter();
        let router =
            router.flat_map(|router| router.correction_bias.iter().chain([&router.weight]));
        matrices
            .into_iter()
            .chain(down)
            .flat_map(Weight::memory)
            .chain(norms.into_iter().chain(norm).map(|norm| &norm.weight))
            .chain(router)
    }

    fn layer<'a>(
        &'a self,
        experts: &'a Experts,
        expert: &'a (dyn Fn(usize) -> KernelResult<Expert<'a>> + Sync),
    ) -> KernelResult<Layer<'a>> {
        let query_down = match &self.query_down {
            None => None,
            Some((weight, norm)) => Some((weight.matrix()?, norm.norm())),
        };
        Ok(Layer {
            input_norm: self.input_norm.norm(),
            attention: Projections {
                sizes: self.sizes,
                scale: self.scale,
                query_down,
                query: self.query.matrix()?,
                kv_down: self.kv_down.matrix()?,
                kv_norm: self.kv_norm.norm(),
                kv_up: self.kv_up.matrix()?,
                output: self.output.matrix()?,
            },
            post_norm: self.post_norm.norm(),
            router: self.router.as_ref().map(HeldRouter::router),
            experts: experts.layer(expert)?,
        })
    }
}
