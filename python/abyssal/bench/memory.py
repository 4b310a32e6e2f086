"""The memory speed of this machine: what no operation on large tensors can exceed."""

from __future__ import annotations

from typing import Any

import torch

from abyssal.bench.timing import measure
from abyssal.machine import processor_name

#: Far larger than any cache, small enough for any machine.
BYTES = 512 * 2**20


def read_speed() -> float:
    """Return the bytes per second at which torch sums a large tensor, on its threads."""
    numbers = torch.ones(BYTES // 4)
    return BYTES / measure(numbers.sum, samples=5)


def describe() -> dict[str, Any]:
    """Return a benchmark's header: processor, instructions, threads, memory speed, versions."""
    import abyssal
    from abyssal._core import cpu_tier, kernel_tier

    return {
        "processor": processor_name(),
        "tier": cpu_tier(),
        "kernel_tier": kernel_tier(),
        "threads": torch.get_num_threads(),
        "read_gb_per_s": round(read_speed() / 1e9, 2),
        "torch": torch.__version__,
        "abyssal": abyssal.__version__,
    }
