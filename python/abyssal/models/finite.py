"""Scan a checkpoint's tensors for values that are not finite."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from abyssal.models.checkpoint import Progress, open_checkpoint

_CHUNK = 1 << 24


@dataclass(frozen=True)
class NonFinite:
    """A tensor with values that are not finite.

    Attributes:
        name: The tensor.
        num_nan: How many of its values are not numbers.
        num_infinite: How many are infinite.
        num_values: How many it has.
    """

    name: str
    num_nan: int
    num_infinite: int
    num_values: int


def check_finite(path: str | Path, progress: Progress | None = None) -> list[NonFinite]:
    """Read every tensor of a checkpoint and count what is not finite.

    Args:
        path: The folder.
        progress: Called as ``progress("scan", done_bytes, total_bytes)`` after each tensor.

    Returns:
        The tensors that hold NaN or infinity, in the order of the files; none for a sound
        checkpoint.

    Raises:
        CheckpointError: as ``open_checkpoint``.

    Guarantees: reads in chunks, so that a checkpoint larger than memory can be scanned; packed
        weights are judged by their codes (e4m3 NaN) and their scales (e8m0 255 is NaN, in MXFP4's
        byte scales too).
    """
    checkpoint = open_checkpoint(path)
    found = []
    done, total = 0, checkpoint.num_bytes
    for name, entry in checkpoint.entries.items():
        num_nan = num_infinite = 0
        for chunk in torch.split(checkpoint.tensor(name).flatten(), _CHUNK):
            if chunk.dtype is torch.uint8 and name.endswith("_scale"):
                num_nan += int((chunk == 255).sum())
            elif chunk.is_floating_point():
                # The narrow formats have no arithmetic of their own.
                wide = chunk if chunk.itemsize > 1 else chunk.float()
                num_nan += int(wide.isnan().sum())
                num_infinite += int(wide.isinf().sum())
        if num_nan or num_infinite:
            found.append(NonFinite(name, num_nan, num_infinite, entry.num_values))
        done += entry.num_bytes
        if progress:
            progress("scan", done, total)
    return found
