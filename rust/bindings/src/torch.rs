//! What the border needs of torch: its tensor type, and how to ask a tensor for its memory.

use std::ffi::CStr;

use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyCapsule, PyDict, PyType};

use crate::dlpack;

const DLPACK_MAJOR: u32 = 1;
const CAPSULE_NAME: &CStr = c"dlpack_exchange_api";

/// What is looked up in torch, once; this module never imports it.
pub(crate) struct Torch {
    /// `torch.Tensor`.
    tensor: Py<PyType>,
    /// `torch.nn.Parameter`.
    parameter: Py<PyAny>,
    /// `torch.is_grad_enabled`.
    is_grad_enabled: Py<PyAny>,
    /// `torch.Tensor.is_neg`.
    is_neg: Py<PyAny>,
    /// How its C table describes a tensor; older versions have no such table.
    pub(crate) describe: Option<dlpack::Describe>,
    /// `new_empty` of a float32 and of an int32 tensor in CPU memory: `torch.empty` would look at the names of its
    /// arguments each time, and a device context could send it elsewhere.
    empty_f32: Py<PyAny>,
    empty_i32: Py<PyAny>,
}

impl Torch {
    /// What is needed of torch, once the program has imported it.
    pub(crate) fn get(py: Python<'_>) -> PyResult<Option<&'static Self>> {
        static TORCH: PyOnceLock<Torch> = PyOnceLock::new();
        // Looked up once: a program without torch would pay for it with every array.
        static MODULES: PyOnceLock<Py<PyDict>> = PyOnceLock::new();
        if let Some(torch) = TORCH.get(py) {
            return Ok(Some(torch));
        }
        let find = || -> PyResult<Py<PyDict>> {
            let sys = py.import(pyo3::intern!(py, "sys"))?;
            let modules = sys.getattr(pyo3::intern!(py, "modules"))?;
            Ok(modules.cast_into::<PyDict>()?.unbind())
        };
        let modules = MODULES.get_or_try_init(py, find)?.bind(py);
        let Some(torch) = modules.get_item(pyo3::intern!(py, "torch"))? else {
            return Ok(None);
        };
        // Absent while torch itself is being imported.
        let (Some(tensor), Some(empty), Some(is_grad_enabled), Some(nn)) = (
            torch.getattr_opt(pyo3::intern!(py, "Tensor"))?,
            torch.getattr_opt(pyo3::intern!(py, "empty"))?,
            torch.getattr_opt(pyo3::intern!(py, "is_grad_enabled"))?,
            torch.getattr_opt(pyo3::intern!(py, "nn"))?,
        ) else {
            return Ok(None);
        };
        let Some(parameter) = nn.getattr_opt(pyo3::intern!(py, "Parameter"))? else {
            return Ok(None);
        };
        let tensor = tensor.cast_into::<PyType>()?;
        let describe = match tensor.getattr_opt(pyo3::intern!(py, "__dlpack_c_exchange_api__"))? {
            Some(api) => describe_of(&api)?,
            None => None,
        };
        let of = |dtype: &str| -> PyResult<Py<PyAny>> {
            let arguments = PyDict::new(py);
            arguments.set_item("dtype", torch.getattr(dtype)?)?;
            arguments.set_item("device", torch.getattr("device")?.call1(("cpu",))?)?;
            let example = empty.call((0,), Some(&arguments))?;
            Ok(example.getattr("new_empty")?.unbind())
        };
        let found = Self {
            is_neg: tensor.getattr(pyo3::intern!(py, "is_neg"))?.unbind(),
            tensor: tensor.unbind(),
            parameter: parameter.unbind(),
            is_grad_enabled: is_grad_enabled.unbind(),
            describe,
            empty_f32: of("float32")?,
            empty_i32: of("int32")?,
        };
        Ok(Some(TORCH.get_or_init(py, || found)))
    }

    /// The same, if the object is a tensor of torch.
    pub(crate) fn of(object: &Bound<'_, PyAny>) -> PyResult<Option<&'static Self>> {
        let Some(torch) = Self::get(object.py())? else {
            return Ok(None);
        };
        let tensor = torch.tensor.bind(object.py()).as_type_ptr();
        // SAFETY: both are types that live as long as this call. Unlike `isinstance`, this asks no Python code.
        let is_tensor = torch.is_exact(object)
            || unsafe { pyo3::ffi::PyType_IsSubtype(object.get_type_ptr(), tensor) } != 0;
        Ok(is_tensor.then_some(torch))
    }

    pub(crate) fn is_parameter(&self, object: &Bound<'_, PyAny>) -> bool {
        object.get_type_ptr().cast() == self.parameter.as_ptr()
    }

    pub(crate) fn is_exact(&self, object: &Bound<'_, PyAny>) -> bool {
        object.get_type_ptr() == self.tensor.bind(object.py()).as_type_ptr()
    }

    /// Whether gradients are recorded.
    pub(crate) fn is_grad_enabled(&self, py: Python<'_>) -> PyResult<bool> {
        self.is_grad_enabled.bind(py).call0()?.is_truthy()
    }

    /// Whether a tensor is a lazily negated view.
    pub(crate) fn is_neg(&self, tensor: &Bound<'_, PyAny>) -> PyResult<bool> {
        let end = std::ptr::null_mut::<pyo3::ffi::PyObject>();
        // SAFETY: a callable, its argument and the end of the arguments, alive and attached; unlike `call1`, this makes no
        // tuple.
        let answer = unsafe {
            pyo3::ffi::PyObject_CallFunctionObjArgs(self.is_neg.as_ptr(), tensor.as_ptr(), end)
        };
        // SAFETY: a new reference, or null with an exception set.
        unsafe { Bound::from_owned_ptr_or_err(tensor.py(), answer) }?.is_truthy()
    }

    /// A new float32 matrix in CPU memory, not set to anything.
    pub(crate) fn empty_f32<'py>(
        &self,
        py: Python<'py>,
        shape: (usize, usize),
    ) -> PyResult<Bound<'py, PyAny>> {
        self.empty_f32.bind(py).call1(shape)
    }

    /// A new int32 matrix in CPU memory, not set to anything.
    pub(crate) fn empty_i32<'py>(
        &self,
        py: Python<'py>,
        shape: (usize, usize),
    ) -> PyResult<Bound<'py, PyAny>> {
        self.empty_i32.bind(py).call1(shape)
    }
}

/// The function of the C table that describes a tensor; `None` when the table is of another major version.
fn describe_of(api: &Bound<'_, PyAny>) -> PyResult<Option<dlpack::Describe>> {
    let api: *const dlpack::ExchangeApi = api
        .cast::<PyCapsule>()?
        .pointer_checked(Some(CAPSULE_NAME))?
        .as_ptr()
        .cast();
    // SAFETY: a capsule of this name holds a table that lives as long as the process; the version comes first in
    // every version of it.
    if unsafe { (*api).version }.major != DLPACK_MAJOR {
        return Ok(None);
    }
    // SAFETY: major version 1, so the table has this layout; the field may be null, hence the Option.
    Ok(unsafe { (*api).dltensor_from_py_object })
}
