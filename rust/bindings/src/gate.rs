//! Python binding of the gate of `abyssal-kernels`: the router's product and its routing in one call.

use abyssal_kernels::gate::{Error, Gate, Values, gate_route as compute};
use abyssal_routing::{Output, Rule, Tier, Weighting};
use pyo3::prelude::*;

use crate::dtype::Dtype;
use crate::error::BindError;
use crate::routing::{Results, execute, group_score_from, matrix, scoring_from};
use crate::tensor::Tensor;

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

/// Computes logits and routes them; returns how many rows had fewer than `top_k` experts to choose from.
#[pyfunction]
#[pyo3(signature = (x, weight, weights, indices, *, top_k, scoring, correction_bias=None, num_groups=1, top_groups=1,
    group_score="top2_sum", normalize=true, scale=1.0, load=None, logits=None, num_threads=1))]
#[allow(
    clippy::too_many_arguments,
    clippy::needless_pass_by_value,
    reason = "the keyword arguments of the Python function, extracted by value"
)]
pub(crate) fn gate_route<'py>(
    py: Python<'py>,
    x: Tensor<'py>,
    weight: Tensor<'py>,
    mut weights: Tensor<'py>,
    mut indices: Tensor<'py>,
    top_k: usize,
    scoring: &str,
    correction_bias: Option<Tensor<'py>>,
    num_groups: usize,
    top_groups: usize,
    group_score: &str,
    normalize: bool,
    scale: f32,
    mut load: Option<Tensor<'py>>,
    mut logits: Option<Tensor<'py>>,
    num_threads: usize,
) -> Result<usize, BindError> {
    let (tokens, hidden_size) = matrix("x", &x)?;
    let (num_experts, _) = matrix("weight", &weight)?;
    weight.expect_shape("weight", &[num_experts, hidden_size])?;
    let rule = Rule {
        num_experts,
        top_k,
        scoring: scoring_from(scoring)?,
        num_groups,
        top_groups,
        group_score: group_score_from(group_score)?,
        weighting: Weighting { normalize, scale },
    };
    let mut results = Results {
        weights: &mut weights,
        indices: &mut indices,
        load: load.as_mut(),
    };
    let mut inputs = vec![("x", &x), ("weight", &weight)];
    if let Some(bias) = &correction_bias {
        bias.expect_shape("correction_bias", &[num_experts])?;
        inputs.push(("correction_bias", bias));
    }
    if let Some(logits) = &logits {
        logits.expect_shape("logits", &[tokens, num_experts])?;
        inputs.push(("logits", logits));
    }
    results.check([tokens, top_k], num_experts, &inputs)?;
    if let Some(logits) = &logits {
        inputs.pop();
        crate::tensor::reject_overlap(&[("logits", logits)], &inputs)?;
    }
    let output: Output<'_> = results.output()?;
    let gate = Gate {
        x: values("x", &x)?,
        weight: values("weight", &weight)?,
        hidden_size,
    };
    let bias = correction_bias
        .as_ref()
        .map(|bias| bias.as_slice("correction_bias"))
        .transpose()?;
    let logits = logits
        .as_mut()
        .map(|logits| logits.as_mut_slice("logits"))
        .transpose()?;
    execute(py, tokens.saturating_mul(weight.len()), || {
        let tier = Tier::best();
        Ok(compute(
            tier,
            &rule,
            gate,
            bias,
            output,
            logits,
            num_threads,
        )?)
    })
}
