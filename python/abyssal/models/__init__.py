"""Architectures, their configurations, and the loader that fills them from a checkpoint.

Names are looked up when they are first used, so that ``abyssal.models.hub`` alone loads no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from abyssal.models.checkpoint import Checkpoint, open_checkpoint
    from abyssal.models.config import ModelConfig
    from abyssal.models.deepseek import DeepseekModel
    from abyssal.models.finite import check_finite
    from abyssal.models.loader import load_model

_HOMES = {
    "Checkpoint": "checkpoint",
    "DeepseekModel": "deepseek",
    "ModelConfig": "config",
    "check_finite": "finite",
    "load_model": "loader",
    "open_checkpoint": "checkpoint",
}

__all__ = [
    "Checkpoint",
    "DeepseekModel",
    "ModelConfig",
    "check_finite",
    "load_model",
    "open_checkpoint",
]


def __getattr__(name: str) -> object:
    """Import a public name on first use."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value: object = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value
