//! The instruction tier of products, experts and attention.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};

use abyssal_kernels::Tier;
use pyo3::prelude::*;

use crate::error::BindError;

/// Number of the tier of all calls, among those of the machine.
static CHOSEN: AtomicUsize = AtomicUsize::new(usize::MAX);

/// The tiers of this machine, the slowest first.
fn tiers() -> &'static [Tier] {
    static TIERS: OnceLock<Vec<Tier>> = OnceLock::new();
    TIERS.get_or_init(Tier::available)
}

/// The tier of all calls: the fastest, or the one that was set.
pub(crate) fn tier() -> Tier {
    let chosen = tiers().get(CHOSEN.load(Ordering::Relaxed));
    chosen.copied().unwrap_or_else(Tier::best)
}

/// The instruction tier of products, experts and attention.
#[pyfunction]
pub(crate) fn kernel_tier() -> &'static str {
    tier().name()
}

/// The names of this machine's tiers, the slowest first.
#[pyfunction]
pub(crate) fn kernel_tiers() -> Vec<&'static str> {
    tiers().iter().map(|tier| tier.name()).collect()
}

/// Sets the tier of the calls that begin from now on.
#[pyfunction]
pub(crate) fn set_kernel_tier(name: &str) -> Result<(), BindError> {
    let Some(number) = tiers().iter().position(|tier| tier.name() == name) else {
        return Err(BindError::value_error(format!(
            "the tier is {name:?}; this machine has {}",
            kernel_tiers().join(", ")
        )));
    };
    CHOSEN.store(number, Ordering::Relaxed);
    Ok(())
}
