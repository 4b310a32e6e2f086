//! The Python module `abyssal._core`: argument conversion, error conversion, and nothing else.
//!
//! Leaf crates do the work on slices; `tensor.rs` turns tensors into slices; `error.rs` turns errors into
//! exceptions; each other file binds one leaf crate and contains no loop over data.

use std::panic::{AssertUnwindSafe, catch_unwind};

use pyo3::prelude::*;

use crate::error::BindError;

mod block_tables;
mod decoder;
mod dlpack;
mod dtype;
mod error;
mod experts;
mod gate;
mod integers;
mod kvcache;
mod linear;
mod map;
mod mla;
mod norm;
mod quant;
mod routing;
mod saved;
mod tensor;
mod tier;
mod tokenizer;
mod torch;
mod unchanged;
mod weight;

/// Runs `work` without holding the interpreter, and turns a panic into an ordinary Python exception.
///
/// Every binding calls the leaf crates through this. `work` must not touch Python objects.
pub(crate) fn run<T: Send>(
    py: Python<'_>,
    work: impl FnOnce() -> Result<T, BindError> + Send,
) -> Result<T, BindError> {
    py.detach(|| guard(work))
}

/// As [`run`], for work too short to be worth releasing the interpreter.
pub(crate) fn guard<T>(work: impl FnOnce() -> Result<T, BindError>) -> Result<T, BindError> {
    // Unwind safety: a panic is a bug; the outputs are then unspecified, as the message says.
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|payload| {
        let message = payload
            .downcast_ref::<String>()
            .map(String::as_str)
            .or_else(|| payload.downcast_ref::<&str>().copied())
            .unwrap_or("panic without a message");
        Err(BindError::Panic(message.to_owned()))
    })
}

/// The instruction tier that the operations choose on this machine.
#[pyfunction]
fn cpu_tier() -> &'static str {
    abyssal_routing::Tier::best().name()
}

#[pymodule(gil_used = false)]
mod _core {
    use pyo3::prelude::*;

    #[pymodule_export]
    use super::cpu_tier;
    #[pymodule_export]
    use crate::block_tables::BlockTables;
    #[pymodule_export]
    use crate::decoder::DecoderLayer;
    #[pymodule_export]
    use crate::error::OutOfPages;
    #[pymodule_export]
    use crate::experts::Experts;
    #[pymodule_export]
    use crate::gate::{gate_direct, gate_route};
    #[pymodule_export]
    use crate::kvcache::PageCache;
    #[pymodule_export]
    use crate::linear::{fp8_linear, get_num_threads, linear, mxfp4_linear, set_num_threads};
    #[pymodule_export]
    use crate::map::IdBuffer;
    #[pymodule_export]
    use crate::mla::{mla_attention, write_latents};
    #[pymodule_export]
    use crate::norm::{greedy, rms_norm};
    #[pymodule_export]
    use crate::quant::{
        dequantize_fp8, dequantize_mxfp4, prefer_large_pages, quantize_fp8, quantize_mxfp4,
    };
    #[pymodule_export]
    use crate::routing::{permute, route, route_direct, route_table};
    #[pymodule_export]
    use crate::saved::{SavedPrefix, page_identities, save_prefix};
    #[pymodule_export]
    use crate::tier::{kernel_tier, kernel_tiers, set_kernel_tier};
    #[pymodule_export]
    use crate::tokenizer::{DecodeStream, EncodeStream, Tokenizer};
    #[pymodule_export]
    use crate::unchanged::unchanged;

    #[pymodule_init]
    fn init(module: &Bound<'_, PyModule>) -> PyResult<()> {
        module.add("__version__", env!("CARGO_PKG_VERSION"))
    }
}
