//! Python binding of `abyssal-routing`.
#![allow(
    clippy::needless_pass_by_value,
    reason = "arguments are extracted by value"
)]

use abyssal_routing::{
    self as routing, Error, GroupScore, Logits, Output, Rule, Scoring, Table, Tier, Weighting,
};
use pyo3::prelude::*;
use pyo3::types::PyString;

use crate::dtype::Dtype;
use crate::error::BindError;
use crate::tensor::{Tensor, Usual, reject_overlap};
use crate::{guard, run};

/// Below this many logits a call is shorter than releasing the interpreter is worth.
const SHORT: usize = 4096;

impl From<Error> for BindError {
    fn from(error: Error) -> Self {
        Self::value_error(error)
    }
}

pub(crate) fn scoring_from(name: &str) -> Result<Scoring, BindError> {
    match name {
        "softmax" => Ok(Scoring::Softmax),
        "sigmoid" => Ok(Scoring::Sigmoid),
        "sqrtsoftplus" => Ok(Scoring::SqrtSoftplus),
        _ => Err(BindError::value_error(format!(
            "scoring is '{name}'; it must be one of 'softmax', 'sigmoid', 'sqrtsoftplus'"
        ))),
    }
}

pub(crate) fn group_score_from(name: &str) -> Result<GroupScore, BindError> {
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

pub(crate) fn execute<T: Send>(
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
pub(crate) struct Results<'a, 'py> {
    pub(crate) weights: &'a mut Tensor<'py>,
    pub(crate) indices: &'a mut Tensor<'py>,
    pub(crate) load: Option<&'a mut Tensor<'py>>,
}

impl Results<'_, '_> {
    /// Checks shapes and that nothing overlaps.
    pub(crate) fn check(
        &self,
        shape: [usize; 2],
        num_experts: usize,
        inputs: &[(&str, &Tensor<'_>)],
    ) -> Result<(), BindError> {
        self.weights.expect_shape("weights", &shape)?;
        self.indices.expect_shape("indices", &shape)?;
        let mut outputs = [("weights", &*self.weights), ("indices", &*self.indices)];
        match &self.load {
            None => reject_overlap(&outputs, inputs),
            Some(load) => {
                load.expect_shape("load", &[num_experts])?;
                reject_overlap(&outputs, &[("load", &**load)])?;
                reject_overlap(&outputs, inputs)?;
                outputs[0] = ("load", &**load);
                reject_overlap(&outputs[..1], inputs)
            }
        }
    }

    pub(crate) fn output(&mut self) -> Result<Output<'_>, BindError> {
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

/// The logits of a tensor, in the format that they have.
pub(crate) fn logits_of<'a>(tensor: &'a Tensor<'_>) -> Result<Logits<'a>, BindError> {
    Ok(
        match tensor.expect_dtype("logits", &[Dtype::F32, Dtype::BF16, Dtype::F16])? {
            Dtype::BF16 => Logits::Bf16(tensor.as_slice("logits")?),
            Dtype::F16 => Logits::F16(tensor.as_slice("logits")?),
            _ => Logits::F32(tensor.as_slice("logits")?),
        },
    )
}

/// The tensors of a call of `route`.
struct Call<'a, 'py> {
    logits: &'a Tensor<'py>,
    correction_bias: Option<&'a Tensor<'py>>,
    results: Results<'a, 'py>,
}

impl Call<'_, '_> {
    /// Checks all tensors, then routes; nothing is written by a call that is refused.
    fn run(mut self, py: Python<'_>, rule: &Rule) -> Result<usize, BindError> {
        let (tokens, num_experts) = matrix("logits", self.logits)?;
        let shape = [tokens, rule.top_k];
        let inputs = [
            ("logits", self.logits),
            (
                "correction_bias",
                self.correction_bias.unwrap_or(self.logits),
            ),
        ];
        let biased = usize::from(self.correction_bias.is_some());
        self.results.check(shape, num_experts, &inputs[..=biased])?;
        let bias = match self.correction_bias {
            None => None,
            Some(bias) => {
                bias.expect_shape("correction_bias", &[num_experts])?;
                Some(bias.as_slice("correction_bias")?)
            }
        };
        let logits = logits_of(self.logits)?;
        let output = self.results.output()?;
        execute(py, logits.len(), || {
            Ok(routing::route(Tier::best(), rule, logits, bias, output)?)
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
    let rule = Rule {
        num_experts: matrix("logits", &logits)?.1,
        top_k,
        scoring: scoring_from(scoring)?,
        num_groups,
        top_groups,
        group_score: group_score_from(group_score)?,
        weighting: Weighting { normalize, scale },
    };
    let results = Results {
        weights: &mut weights,
        indices: &mut indices,
        load: load.as_mut(),
    };
    let call = Call {
        logits: &logits,
        correction_bias: correction_bias.as_ref(),
        results,
    };
    call.run(py, &rule)
}

/// As `abyssal.ops.route`, for the usual call alone: plain tensors in CPU memory, contiguous, without a gradient, and a
/// rule that fits. Any other call returns `None`, and the caller finds out what it is, or what is wrong with it.
#[pyfunction]
#[allow(
    clippy::too_many_arguments,
    reason = "positions of the arguments of the Python function"
)]
pub(crate) fn route_direct<'py>(
    py: Python<'py>,
    logits: &Bound<'py, PyAny>,
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
) -> Result<Option<Bound<'py, PyAny>>, BindError> {
    // Tensors stay where they are read to: moving them took a twenty-fifth of a call.
    let attempt = || {
        let usual = Usual::new(py)?;
        let logits = usual.tensor(logits)?;
        let &[tokens, num_experts] = logits.shape() else {
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
        let mut weights = usual.tensor(&weights)?;
        let mut indices = usual.tensor(&indices)?;
        let correction_bias = usual.tensor_or_none(correction_bias)?;
        let mut load = usual.tensor_or_none(load)?;
        let results = Results {
            weights: &mut weights,
            indices: &mut indices,
            load: load.as_mut(),
        };
        let call = Call {
            logits: &logits,
            correction_bias: correction_bias.as_ref(),
            results,
        };
        Some(settled(call.run(py, &rule), out))
    };
    attempt().unwrap_or(Ok(None))
}

/// The arguments of a rule, as Python passes them.
pub(crate) struct Choice<'a, 'py> {
    pub(crate) top_k: &'a Bound<'py, PyAny>,
    pub(crate) scoring: &'a Bound<'py, PyAny>,
    pub(crate) num_groups: &'a Bound<'py, PyAny>,
    pub(crate) top_groups: &'a Bound<'py, PyAny>,
    pub(crate) group_score: &'a Bound<'py, PyAny>,
    pub(crate) normalize: &'a Bound<'py, PyAny>,
    pub(crate) scale: &'a Bound<'py, PyAny>,
}

impl Choice<'_, '_> {
    /// The rule, if its numbers fit together.
    pub(crate) fn rule(&self, num_experts: usize) -> Option<Rule> {
        let rule = Rule {
            num_experts,
            top_k: self.top_k.extract().ok()?,
            scoring: scoring_from(self.scoring.cast::<PyString>().ok()?.to_str().ok()?).ok()?,
            num_groups: self.num_groups.extract().ok()?,
            top_groups: self.top_groups.extract().ok()?,
            group_score: group_score_from(self.group_score.cast::<PyString>().ok()?.to_str().ok()?)
                .ok()?,
            weighting: Weighting {
                normalize: self.normalize.extract().ok()?,
                scale: self.scale.extract().ok()?,
            },
        };
        rule.check().ok()?;
        Some(rule)
    }
}

/// What a call of the usual kind returns: its results, `None` where it was refused, or an error that is not its own.
pub(crate) fn settled(
    result: Result<usize, BindError>,
    out: Bound<'_, PyAny>,
) -> Result<Option<Bound<'_, PyAny>>, BindError> {
    match result {
        Ok(_) => Ok(Some(out)),
        Err(error @ (BindError::Panic(_) | BindError::Python(_))) => Err(error),
        Err(_) => Ok(None),
    }
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
