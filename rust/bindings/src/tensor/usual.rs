//! The usual arguments of short calls, told apart without haste being lost on the others.

use pyo3::prelude::*;
use pyo3::types::PyTuple;

use super::Tensor;
use crate::torch::Torch;

/// Reads what nearly every argument is: a `torch.Tensor` or `torch.nn.Parameter` and no other subclass, in CPU memory,
/// whose gradient is not recorded. `None` for anything else, for the caller to look at without haste.
#[derive(Clone, Copy)]
pub(crate) struct Usual {
    torch: &'static Torch,
    /// Whether gradients are recorded, asked once a call.
    recording: bool,
}

impl Usual {
    pub(crate) fn new(py: Python<'_>) -> Option<Self> {
        let torch = Torch::get(py).ok()??;
        let recording = torch.is_grad_enabled(py).ok()?;
        Some(Self { torch, recording })
    }

    #[inline(always)]
    pub(crate) fn tensor<'py>(self, object: &Bound<'py, PyAny>) -> Option<Tensor<'py>> {
        if !self.torch.is_exact(object) && !self.torch.is_parameter(object) {
            return None;
        }
        if self.recording {
            let required = object.getattr(pyo3::intern!(object.py(), "requires_grad"));
            if required.and_then(|required| required.is_truthy()).ok()? {
                return None;
            }
        }
        // The last step, so that the view is read to where it stays.
        Tensor::from_exchange_api(object, self.torch, self.torch.describe?).ok()
    }

    /// An optional tensor of the usual kind; `None` if it is of another.
    #[allow(
        clippy::option_option,
        reason = "an optional tensor, if it could be read"
    )]
    pub(crate) fn tensor_or_none<'py>(
        self,
        object: &Bound<'py, PyAny>,
    ) -> Option<Option<Tensor<'py>>> {
        if object.is_none() {
            Some(None)
        } else {
            self.tensor(object).map(Some)
        }
    }

    /// The pair of results, given or new, and its two tensors.
    pub(crate) fn outputs<'py>(
        self,
        out: &Bound<'py, PyAny>,
        shape: (usize, usize),
    ) -> Option<[Bound<'py, PyAny>; 3]> {
        if out.is_none() {
            let weights = self.torch.empty_f32(out.py(), shape).ok()?;
            let indices = self.torch.empty_i32(out.py(), shape).ok()?;
            let out = PyTuple::new(out.py(), [&weights, &indices]).ok()?;
            return Some([out.into_any(), weights, indices]);
        }
        let pair = out.cast_exact::<PyTuple>().ok()?;
        if pair.len() != 2 {
            return None;
        }
        Some([out.clone(), pair.get_item(0).ok()?, pair.get_item(1).ok()?])
    }
}
