//! Whether a PyTorch module is still made of what it was made of: hundreds of look-ups for each layer and step.

use pyo3::prelude::*;
use pyo3::types::{PyDict, PyList};

/// Whether every dictionary still has the very object under its name.
#[pyfunction]
pub(crate) fn unchanged(
    homes: &Bound<'_, PyList>,
    names: &Bound<'_, PyList>,
    values: &Bound<'_, PyList>,
) -> PyResult<bool> {
    for ((home, name), value) in homes.iter().zip(names).zip(values) {
        match home.cast::<PyDict>()?.get_item(name)? {
            Some(now) if now.is(&value) => {}
            _ => return Ok(false),
        }
    }
    Ok(true)
}
