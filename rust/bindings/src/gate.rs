//! Python binding of the gate of `abyssal-kernels`: the router's product and its routing in one call.

use abyssal_kernels::gate::{Error, Gate, Values, gate_route as compute};
use abyssal_routing::{Output, Rule, Tier, Weighting};
use pyo3::prelude::*;

use crate::dtype::Dtype;
use crate::error::BindError;
use crate::routing::{Choice, Results, execute, group_score_from, matrix, scoring_from, settled};
use crate::tensor::{Tensor, Usual, reject_overlap};

impl From<Error> for BindError {
    fn from(error: Error) -> Self {
        Self::value_error(error)
    }
}

fn values<'a>(name: &str, tensor: &'a Tensor<'_>) -> Result<Values<'a>, BindError> {
    Ok(
        match tensor.expect_dtype(name, &[Dtype::F32, Dtype::BF16])? {
            Dtype::BF16 => Values::Bf16(tensor.as_slice(name)?),
            _ => Values::F32(tensor.as_slice(name)?),
        },
    )
}

/// The tensors of a call of `gate_route`.
struct Call<'py> {
    x: Tensor<'py>,
    weight: Tensor<'py>,
    correction_bias: Option<Tensor<'py>>,
    weights: Tensor<'py>,
    indices: Tensor<'py>,
    load: Option<Tensor<'py>>,
    logits: Option<Tensor<'py>>,
}

impl Call<'_> {
    /// Checks all tensors, then computes and routes; nothing is written by a call that is refused.
    fn run(mut self, py: Python<'_>, rule: &Rule, num_threads: usize) -> Result<usize, BindError> {
        let (tokens, hidden_size) = matrix("x", &self.x)?;
        let num_experts = rule.num_experts;
        self.weight
            .expect_shape("weight", &[num_experts, hidden_size])?;
        let mut results = Results {
            weights: &mut self.weights,
            indices: &mut self.indices,
            load: self.load.as_mut(),
        };
        let mut inputs = vec![("x", &self.x), ("weight", &self.weight)];
        if let Some(bias) = &self.correction_bias {
            bias.expect_shape("correction_bias", &[num_experts])?;
            inputs.push(("correction_bias", bias));
        }
        if let Some(logits) = &self.logits {
            logits.expect_shape("logits", &[tokens, num_experts])?;
            reject_overlap(&[("logits", logits)], &inputs)?;
            inputs.push(("logits", logits));
        }
        results.check([tokens, rule.top_k], num_experts, &inputs)?;
        let output: Output<'_> = results.output()?;
        let gate = Gate {
            x: values("x", &self.x)?,
            weight: values("weight", &self.weight)?,
            hidden_size,
        };
        let bias = self
            .correction_bias
            .as_ref()
            .map(|bias| bias.as_slice("correction_bias"))
            .transpose()?;
        let logits = self
            .logits
            .as_mut()
            .map(|logits| logits.as_mut_slice("logits"))
            .transpose()?;
        execute(py, tokens.saturating_mul(self.weight.len()), || {
            let tier = Tier::best();
            Ok(compute(
                tier,
                rule,
                gate,
                bias,
                output,
                logits,
                num_threads,
            )?)
        })
    }
}

/// Computes logits and routes them; returns how many rows had fewer than `top_k` experts to choose from.
#[pyfunction]
#[pyo3(signature = (x, weight, weights, indices, *, top_k, scoring, correction_bias=None, num_groups=1, top_groups=1,
    group_score="top2_sum", normalize=true, scale=1.0, load=None, logits=None, num_threads=1))]
#[allow(
    clippy::too_many_arguments,
    reason = "the keyword arguments of the Python function"
)]
pub(crate) fn gate_route<'py>(
    py: Python<'py>,
    x: Tensor<'py>,
    weight: Tensor<'py>,
    weights: Tensor<'py>,
    indices: Tensor<'py>,
    top_k: usize,
    scoring: &str,
    correction_bias: Option<Tensor<'py>>,
    num_groups: usize,
    top_groups: usize,
    group_score: &str,
    normalize: bool,
    scale: f32,
    load: Option<Tensor<'py>>,
    logits: Option<Tensor<'py>>,
    num_threads: usize,
) -> Result<usize, BindError> {
    let rule = Rule {
        num_experts: matrix("weight", &weight)?.0,
        top_k,
        scoring: scoring_from(scoring)?,
        num_groups,
        top_groups,
        group_score: group_score_from(group_score)?,
        weighting: Weighting { normalize, scale },
    };
    let call = Call {
        x,
        weight,
        correction_bias,
        weights,
        indices,
        load,
        logits,
    };
    call.run(py, &rule, num_threads)
}

/// As `abyssal.ops.gate_route`, for the usual call alone; see `route_direct`.
#[pyfunction]
#[allow(
    clippy::too_many_arguments,
    reason = "positions of the arguments of the Python function"
)]
pub(crate) fn gate_direct<'py>(
    py: Python<'py>,
    x: &Bound<'py, PyAny>,
    weight: &Bound<'py, PyAny>,
    top_k: &Bound<'py, PyAny>,
    scoring: &Bound<'py, PyAny>,
    correction_bias: &Bound<'py, PyAny>,
    num_groups: &Bound<'py, PyAny>,
    top_groups: &Bound<'py, PyAny>,
    group_score: &Bound<'py, PyAny>,
    normalize: &Bound<'py, PyAny>,
    scale: &Bound<'py, PyAny>,
    out: &Bound<'py, PyAny>,
    load: &Bound<'py, PyAny>,
    logits: &Bound<'py, PyAny>,
    num_threads: usize,
) -> Result<Option<Bound<'py, PyAny>>, BindError> {
    let prepared = (|| {
        let usual = Usual::new(py)?;
        let (x, weight) = (usual.tensor(x)?, usual.tensor(weight)?);
        let (&[tokens, _], &[num_experts, _]) = (x.shape(), weight.shape()) else {
            return None;
        };
        let rule = Choice {
            top_k,
            scoring,
            num_groups,
            top_groups,
            group_score,
            normalize,
            scale,
        };
        let rule = rule.rule(num_experts)?;
        let [out, weights, indices] = usual.outputs(out, (tokens, rule.top_k))?;
        let call = Call {
            x,
            weight,
            correction_bias: usual.tensor_or_none(correction_bias)?,
            weights: usual.tensor(&weights)?,
            indices: usual.tensor(&indices)?,
            load: usual.tensor_or_none(load)?,
            logits: usual.tensor_or_none(logits)?,
        };
        Some((rule, call, out))
    })();
    let Some((rule, call, out)) = prepared else {
        return Ok(None);
    };
    settled(call.run(py, &rule, num_threads), out)
}
