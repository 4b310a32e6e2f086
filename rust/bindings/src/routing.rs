//! Python binding of `abyssal-routing`.
#![allow(
    clippy::needless_pass_by_value,
    reason = "arguments are extracted by value"
)]

use abyssal_routing::{
    self as routing, Error, GroupScore, Output, Rule, Scoring, Table, Tier, Weighting,
};
use pyo3::prelude::*;

use crate::dtype::Dtype;
use crate::error::BindError;
use crate::tensor::{Tensor, reject_overlap};
use crate::{guard, run};

/// Below this many logits a call is shorter than releasing the interpreter is worth.
const SHORT: usize = 1024;

impl From<Error> for BindError {
    fn from(error: Error) -> Self {
        Self::value_error(error)
    }
}

fn scoring_from(name: &str) -> Result<Scoring, BindError> {
    match name {
        "softmax" => Ok(Scoring::Softmax),
        "sigmoid" => Ok(Scoring::Sigmoid),
        "sqrtsoftplus" => Ok(Scoring::SqrtSoftplus),
        _ => Err(BindError::value_error(format!(
            "scoring is '{name}'; it must be one of 'softmax', 'sigmoid', 'sqrtsoftplus'"
        ))),
    }
}

fn group_score_from(name: &str) -> Result<GroupScore, BindError> {
    match name {
        "max" => Ok(GroupScore::Max),
        "top2_sum" => Ok(GroupScore::TopTwoSum),
        _ => Err(BindError::value_error(format!(
            "group_score is '{name}'; it must be one of 'max', 'top2_sum'"
        ))),
    }
}

/// The two sizes of a matrix.
pub(crate) fn matrix(name: &str, tensor: &Tensor<'_>) -> Result<(usize, usize), BindError> {
    match *tensor.shape() {
        [rows, columns] => Ok((rows, columns)),
        _ => Err(BindError::value_error(format!(
            "{name}: expected 2 dimensions, got {}",
            tensor.shape().len()
        ))),
    }
}

fn execute<T: Send>(
    py: Python<'_>,
    size: usize,
    work: impl FnOnce() -> Result<T, BindError> + Send,
) -> Result<T, BindError> {
    if size < SHORT {
        guard(work)
    } else {
        run(py, work)
    }
}

/// The tensors that a routing call writes.
struct Results<'a, 'py> {
    weights: &'a mut Tensor<'py>,
    indices: &'a mut Tensor<'py>,
    load: Option<&'a mut Tensor<'py>>,
}

impl Results<'_, '_> {
    /// Checks shapes and that nothing overlaps.
    fn check(
        &self,
        shape: [usize; 2],
        num_experts: usize,
        inputs: &[(&str, &Tensor<'_>)],
    ) -> Result<(), BindError> {
        self.weights.expect_shape("weights", &shape)?;
        self.indices.expect_shape("indices", &shape)?;
        let mut outputs = vec![("weights", &*self.weights), ("indices", &*self.indices)];
        if let Some(load) = &self.load {
            load.expect_shape("load", &[num_experts])?;
            outputs.push(("load", load));
        }
        reject_overlap(&outputs, inputs)
    }

    fn output(&mut self) -> Result<Output<'_>, BindError> {
        Ok(Output {
            weights: self.weights.as_mut_slice("weights")?,
            indices: self.indices.as_mut_slice("indices")?,
            load: self
                .load
                .as_mut()
                .map(|load| load.as_mut_slice("load"))
                .transpose()?,
        })
    }
}

/// Selects and weighs experts; returns how many rows had fewer than `top_k` experts to choose from.
#[pyfunction]
#[pyo3(signature = (logits, weights, indices, *, top_k, scoring, correction_bias=None, num_groups=1, top_groups=1,
    group_score="top2_sum", normalize=true, scale=1.0, load=None))]
#[allow(
    clippy::too_many_arguments,
    reason = "the keyword arguments of the Python function"
)]
pub(crate) fn route<'py>(
    py: Python<'py>,
    logits: Tensor<'py>,
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
) -> Result<usize, BindError> {
    let (tokens, num_experts) = matrix("logits", &logits)?;
    let rule = Rule {
        num_experts,
        top_k,
        scoring: scoring_from(scoring)?,
        num_groups,
        top_groups,
        group_score: group_score_from(group_score)?,
        weighting: Weighting { normalize, scale },
    };
    let mut inputs = vec![("logits", &logits)];
    if let Some(bias) = &correction_bias {
        bias.expect_shape("correction_bias", &[num_experts])?;
        inputs.push(("correction_bias", bias));
    }
    let mut results = Results {
        weights: &mut weights,
        indices: &mut indices,
        load: load.as_mut(),
    };
    results.check([tokens, top_k], num_experts, &inputs)?;
    let output = results.output()?;
    let bias = correction_bias
        .as_ref()
        .map(|bias| bias.as_slice("correction_bias"))
        .transpose()?;
    let logits: &[f32] = logits.as_slice("logits")?;
    execute(py, logits.len(), || {
        Ok(routing::route(Tier::best(), &rule, logits, bias, output)?)
    })
}

/// Looks experts up and weighs them; returns how many rows name an expert with a NaN logit.
#[pyfunction]
#[pyo3(signature = (logits, token_ids, table, weights, indices, *, scoring, normalize=true, scale=1.0, load=None))]
#[allow(
    clippy::too_many_arguments,
    reason = "the keyword arguments of the Python function"
)]
pub(crate) fn route_table<'py>(
    py: Python<'py>,
    logits: Tensor<'py>,
    token_ids: Tensor<'py>,
    table: Tensor<'py>,
    mut weights: Tensor<'py>,
    mut indices: Tensor<'py>,
    scoring: &str,
    normalize: bool,
    scale: f32,
    mut load: Option<Tensor<'py>>,
) -> Result<usize, BindError> {
    let (tokens, num_experts) = matrix("logits", &logits)?;
    let (_, top_k) = matrix("table", &table)?;
    token_ids.expect_shape("token_ids", &[tokens])?;
    let how = (scoring_from(scoring)?, Weighting { normalize, scale });
    let mut results = Results {
        weights: &mut weights,
        indices: &mut indices,
        load: load.as_mut(),
    };
    let inputs = [
        ("logits", &logits),
        ("token_ids", &token_ids),
        ("table", &table),
    ];
    results.check([tokens, top_k], num_experts, &inputs)?;
    let output = results.output()?;
    let logits: &[f32] = logits.as_slice("logits")?;
    let long_ids = token_ids.expect_dtype("token_ids", &[Dtype::I32, Dtype::I64])? == Dtype::I64;
    let long_table = table.expect_dtype("table", &[Dtype::I32, Dtype::I64])? == Dtype::I64;
    macro_rules! call {
        ($id:ty, $expert:ty) => {{
            let ids: &[$id] = token_ids.as_slice("token_ids")?;
            let table = Table {
                experts: table.as_slice::<$expert>("table")?,
                top_k,
            };
            execute(py, logits.len(), || {
                let tier = Tier::best();
                Ok(routing::route_table(
                    tier,
                    how,
                    num_experts,
                    logits,
                    ids,
                    table,
                    output,
                )?)
            })
        }};
    }
    match (long_ids, long_table) {
        (false, false) => call!(i32, i32),
        (false, true) => call!(i32, i64),
        (true, false) => call!(i64, i32),
        (true, true) => call!(i64, i64),
    }
}

/// Groups positions of `indices` by expert.
#[pyfunction]
pub(crate) fn permute(
    py: Python<'_>,
    indices: Tensor<'_>,
    num_experts: usize,
    mut order: Tensor<'_>,
    mut offsets: Tensor<'_>,
) -> Result<(), BindError> {
    reject_overlap(
        &[("order", &order), ("offsets", &offsets)],
        &[("indices", &indices)],
    )?;
    let long = indices.expect_dtype("indices", &[Dtype::I32, Dtype::I64])? == Dtype::I64;
    let size = indices.len();
    let order = order.as_mut_slice("order")?;
    let offsets = offsets.as_mut_slice("offsets")?;
    if long {
        let indices: &[i64] = indices.as_slice("indices")?;
        execute(py, size, || {
            Ok(routing::permute(indices, num_experts, order, offsets)?)
        })
    } else {
        let indices: &[i32] = indices.as_slice("indices")?;
        execute(py, size, || {
            Ok(routing::permute(indices, num_experts, order, offsets)?)
        })
    }
}
