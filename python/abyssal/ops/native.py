"""The compiled module, and when it may be called directly."""

import functools
import importlib
from collections.abc import Mapping
from types import ModuleType

import torch
from torch import Tensor


@functools.cache
def core() -> ModuleType:
    """Return the compiled module, imported on first use."""
    return importlib.import_module("abyssal._core")


def is_direct(tensor: Tensor) -> bool:
    """Return whether an operation on ``tensor`` may bypass PyTorch's dispatcher.

    That is the case for a plain tensor in CPU memory, when nothing is traced and no gradient of it
    is recorded. Everything else goes through ``torch.ops.abyssal``.
    """
    return (
        (type(tensor) is Tensor or type(tensor) is torch.nn.Parameter)
        and tensor.device.type == "cpu"
        and not (tensor.requires_grad and torch.is_grad_enabled())
        and not torch.compiler.is_compiling()
    )


def unchanged(homes: list[Mapping[str, object]], names: list[str], values: list[object]) -> bool:
    """Return whether each mapping still has the very object under its name."""
    same: bool = core().unchanged(homes, names, values)
    return same


def plain(tensor: Tensor) -> Tensor:
    """Return the tensor as contiguous memory without gradient."""
    return tensor.detach().contiguous()
