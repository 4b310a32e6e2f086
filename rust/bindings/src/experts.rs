//! Python binding of the feed-forward part of `abyssal-kernels`: weights held from call to call, and the call.
#![allow(
    clippy::needless_pass_by_value,
    reason = "arguments are extracted by value"
)]

use abyssal_kernels::{Choices, Expert, Layer, Result as KernelResult, experts, pool};
use abyssal_quant::Bf16;
use pyo3::prelude::*;

use crate::dtype::Dtype;
use crate::error::BindError;
use crate::linear::ACTIVATIONS;
use crate::routing::{execute, matrix};
use crate::tensor::{Held, Tensor, reject_overlap};
use crate::tier::tier;
use crate::weight::{Given, Weight, reject_weight_overlap};

/// Gate, up and down.
struct Weights3([Weight; 3]);

impl Weights3 {
    fn new(given: &[Given<'_>; 3]) -> Result<Self, BindError> {
        let [gate, up, down] = given;
        let weights = Self([
            Weight::new("gate", gate)?,
            Weight::new("up", up)?,
            Weight::new("down", down)?,
        ]);
        weights.expert()?;
        Ok(weights)
    }

    fn expert(&self) -> KernelResult<Expert<'_>> {
        let [gate, up, down] = &self.0;
        Expert::new(gate.matrix()?, up.matrix()?, down.matrix()?)
    }
}

/// The weights of a layer's experts, read where they lie.
#[pyclass(frozen, module = "abyssal._core")]
pub(crate) struct Experts {
    routed: Vec<Weights3>,
    shared: Option<Weights3>,
    hidden_size: usize,
    num_routes: usize,
    limit: Option<f32>,
}

impl Experts {
    /// The layer, of which `expert` is [`Experts::expert`].
    pub(crate) fn layer<'a>(
        &'a self,
        expert: &'a (dyn Fn(usize) -> KernelResult<Expert<'a>> + Sync),
    ) -> KernelResult<Layer<'a>> {
        Ok(Layer {
            hidden_size: self.hidden_size,
            num_experts: self.routed.len(),
            num_routes: self.num_routes,
            expert,
            shared: self.shared.as_ref().map(Weights3::expert).transpose()?,
            limit: self.limit,
        })
    }

    /// An expert with weights.
    pub(crate) fn expert(&self, number: usize) -> KernelResult<Expert<'_>> {
        self.routed[number].expert()
    }

    /// The memory that weights are read from.
    pub(crate) fn memory(&self) -> impl Iterator<Item = &Held> {
        let all = self.routed.iter().chain(&self.shared);
        all.flat_map(|expert| &expert.0).flat_map(Weight::memory)
    }
}

#[pymethods]
impl Experts {
    #[new]
    #[pyo3(signature = (experts, shared=None, num_routes=None, limit=None))]
    fn new(
        experts: Vec<[Given<'_>; 3]>,
        shared: Option<[Given<'_>; 3]>,
        num_routes: Option<usize>,
        limit: Option<f32>,
    ) -> Result<Self, BindError> {
        let experts: Vec<Weights3> = experts
            .iter()
            .map(Weights3::new)
            .collect::<Result<_, _>>()?;
        let shared = shared.as_ref().map(Weights3::new).transpose()?;
        let num_routes = num_routes.unwrap_or(experts.len());
        if num_routes < experts.len() {
            return Err(BindError::value_error(format!(
                "num_routes is {num_routes}; it must be at least the {} experts",
                experts.len()
            )));
        }
        let Some(first) = experts.first().or(shared.as_ref()) else {
            return Err(BindError::value_error("there must be at least one expert"));
        };
        let hidden_size = first.expert()?.hidden_size();
        for other in experts.iter().chain(&shared) {
            let width = other.expert()?.hidden_size();
            if width != hidden_size {
                return Err(BindError::value_error(format!(
                    "experts have width {hidden_size} and {width}; all must have the same"
                )));
            }
        }
        Ok(Self {
            routed: experts,
            shared,
            hidden_size,
            num_routes,
            limit,
        })
    }

    /// Writes the weighted sum of each token's experts and the shared one.
    #[pyo3(signature = (x, weights, indices, out, num_threads=None))]
    fn forward(
        &self,
        py: Python<'_>,
        x: Tensor<'_>,
        weights: Option<Tensor<'_>>,
        indices: Option<Tensor<'_>>,
        mut out: Tensor<'_>,
        num_threads: Option<usize>,
    ) -> Result<(), BindError> {
        let (tokens, _) = matrix("x", &x)?;
        x.expect_shape("x", &[tokens, self.hidden_size])?;
        let dtype = x.expect_dtype("x", &ACTIVATIONS)?;
        out.expect_shape("out", x.shape())?;
        out.expect_dtype("out", &[dtype])?;
        let mut inputs = vec![("x", &x)];
        let choices = match (&weights, &indices) {
            (Some(weights), Some(indices)) => {
                let (_, top_k) = matrix("indices", indices)?;
                indices.expect_shape("indices", &[tokens, top_k])?;
                weights.expect_shape("weights", &[tokens, top_k])?;
                inputs.extend([("weights", weights), ("indices", indices)]);
                Choices {
                    indices: indices.as_slice("indices")?,
                    weights: weights.as_slice("weights")?,
                    top_k,
                }
            }
            _ => Choices {
                indices: &[],
                weights: &[],
                top_k: 0,
            },
        };
        reject_overlap(&[("out", &out)], &inputs)?;
        reject_weight_overlap(self.memory(), ("out", &out))?;
        let expert = |number| self.expert(number);
        let layer = self.layer(&expert)?;
        let num_threads = num_threads.unwrap_or_else(pool::num_threads);
        let tier = tier();
        macro_rules! call {
            ($x:expr, $out:expr) => {{
                let (x, out) = ($x, $out);
                let work = || Ok(experts(tier, layer, choices, x, out, num_threads)?);
                execute(py, usize::MAX, work)
            }};
        }
        if dtype == Dtype::F32 {
            call!(x.as_slice::<f32>("x")?, out.as_mut_slice::<f32>("out")?)
        } else {
            call!(
                Bf16::from_bits(x.as_slice("x")?),
                Bf16::from_bits_mut(out.as_mut_slice("out")?)
            )
        }
    }
}
