"""The DeepSeek model family in PyTorch, on the computer people have.

Three doors, each usable alone: operations and modules (`abyssal.ops`, `abyssal.nn`), the engine
(`abyssal.LLM`) and the command line (``abyssal --help``). `abyssal.Tokenizer`,
`abyssal.chat` and `abyssal.kvcache` work without torch installed.

Importing this package imports nothing else: a name is looked up when it is first used, so that a
program which only counts tokens never loads torch. Importing starts no thread, changes no
environment variable and installs no signal handler.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from abyssal import chat, kvcache, nn, ops, reference
    from abyssal._core import (
        OutOfPages,
        __version__,
        get_num_threads,
        kernel_tier,
        kernel_tiers,
        set_kernel_tier,
        set_num_threads,
    )
    from abyssal.engine import LLM, CompletionOutput, RequestOutput, SamplingParams
    from abyssal.tokenizer import Tokenizer

# Public name -> module that defines it; None means that the name is itself a module.
_HOMES: dict[str, str | None] = {
    "LLM": "abyssal.engine",
    "CompletionOutput": "abyssal.engine",
    "OutOfPages": "abyssal._core",
    "RequestOutput": "abyssal.engine",
    "SamplingParams": "abyssal.engine",
    "Tokenizer": "abyssal.tokenizer",
    "__version__": "abyssal._core",
    "chat": None,
    "get_num_threads": "abyssal._core",
    "kernel_tier": "abyssal._core",
    "kernel_tiers": "abyssal._core",
    "kvcache": None,
    "nn": None,
    "ops": None,
    "reference": None,
    "set_kernel_tier": "abyssal._core",
    "set_num_threads": "abyssal._core",
}

__all__ = [
    "LLM",
    "CompletionOutput",
    "OutOfPages",
    "RequestOutput",
    "SamplingParams",
    "Tokenizer",
    "__version__",
    "chat",
    "get_num_threads",
    "kernel_tier",
    "kernel_tiers",
    "kvcache",
    "nn",
    "ops",
    "reference",
    "set_kernel_tier",
    "set_num_threads",
]


def __getattr__(name: str) -> object:
    """Import a public name on first use."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home = _HOMES[name]
    if home is None:
        value: object = importlib.import_module(f"{__name__}.{name}")
    else:
        value = getattr(importlib.import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """List the public names, imported or not."""
    return sorted({*globals(), *__all__})
