"""Which weights of a checkpoint are packed, and how.

    fp8                   projections of attention and of all feed-forward parts, as DeepSeek-V3
                          publishes them: e4m3 in blocks of 128x128, ``X.weight_scale_inv`` f32
    mxfp4                 the same and the prediction layers' joins: e2m1 in blocks of 32,
                          ``X.weight_scale`` e8m0
    mxfp4, experts alone  routed experts as MXFP4, the other projections as FP8, the mix of
                          DeepSeek-V4
    head                  the output head too, with any of them

Embedding, norms, routers and their correction bias stay as they are. Fused experts are written one
by one. A projection whose width is no multiple of 32 cannot be MXFP4 and becomes FP8.

Source: DeepSeek-V3 ``README_WEIGHTS.md``; the OCP Microscaling formats, version 1.0.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from abyssal.models.checkpoint import Checkpoint
from abyssal.models.mapped import Entry

METHODS = ("fp8", "mxfp4")
BLOCK = (128, 128)
#: What ``quantization_config`` says of FP8 weights.
FP8_CONFIG = {
    "activation_scheme": "dynamic",
    "fmt": "e4m3",
    "quant_method": "fp8",
    "weight_block_size": list(BLOCK),
}
_PROJECTION = re.compile(r"(_proj|_with_mqa|lm_head)\.weight$")
_EXPERT = re.compile(r"\.experts\.\d+\.")
_FUSED = re.compile(r"(.*\.experts)\.(gate_up_proj|down_proj)$")


@dataclass(frozen=True)
class Packing:
    """How to pack.

    Attributes:
        method: ``"fp8"`` or ``"mxfp4"``.
        head: Whether the output head is packed too.
        experts_only: With ``"mxfp4"``, routed experts alone; the other projections become FP8.
    """

    method: str
    head: bool = False
    experts_only: bool = False

    def of(self, name: str, columns: int) -> str | None:
        """Return how a weight is stored: ``"fp8"``, ``"mxfp4"``, or None for as it is."""
        if not _PROJECTION.search(name) or (name == "lm_head.weight" and not self.head):
            return None
        fp8 = None if name.endswith("eh_proj.weight") else "fp8"
        if self.method == "fp8" or (self.experts_only and not _EXPERT.search(name)):
            return fp8
        return "mxfp4" if columns % 32 == 0 else fp8


@dataclass(frozen=True)
class Weight:
    """A tensor to write.

    Attributes:
        name: Its name in the new checkpoint.
        source: The tensor that it is taken from.
        rows: The part of the source, flattened to rows.
        shape: Its shape before packing.
        packing: As ``Packing.of``.
    """

    name: str
    source: Entry
    rows: range
    shape: tuple[int, ...]
    packing: str | None

    def stored(self) -> list[tuple[str, torch.dtype, tuple[int, ...]]]:
        """Return name, type and shape of what the file holds for it."""
        if self.packing is None:
            return [(self.name, self.source.dtype, self.shape)]
        rows, columns = self.shape
        if self.packing == "mxfp4":
            return [
                (self.name, torch.uint8, (rows, columns // 2)),
                (f"{self.name}_scale", torch.uint8, (rows, columns // 32)),
            ]
        return [
            (self.name, torch.float8_e4m3fn, (rows, columns)),
            (f"{self.name}_scale_inv", torch.float32, (-(-rows // 128), -(-columns // 128))),
        ]

    def num_bytes(self) -> int:
        """Return the bytes that it takes in the file."""
        return sum(num_bytes_of(dtype, shape) for _, dtype, shape in self.stored())


def weights_of(checkpoint: Checkpoint, packing: Packing) -> Iterator[Weight]:
    """List what to write, in the order of the source."""
    for name, entry in checkpoint.entries.items():
        if name.endswith("_scale_inv"):
            continue
        fused = _FUSED.fullmatch(name)
        if fused:
            yield from _parts(fused[1], fused[2], entry, packing)
            continue
        rows = entry.shape[0] if len(entry.shape) == 2 else 1
        stored = packing.of(name, entry.shape[1]) if len(entry.shape) == 2 else None
        if entry.dtype == torch.float8_e4m3fn:
            stored = stored or "fp8"
        yield Weight(name, entry, range(rows), entry.shape, stored)


def _parts(prefix: str, kind: str, entry: Entry, packing: Packing) -> Iterator[Weight]:
    """Take fused experts apart: gates above ups, one expert behind the other."""
    count, rows, columns = entry.shape
    parts = ("gate_proj", "up_proj") if kind == "gate_up_proj" else ("down_proj",)
    size = rows // len(parts)
    for expert in range(count):
        for place, part in enumerate(parts):
            name = f"{prefix}.{expert}.{part}.weight"
            start = expert * rows + place * size
            stored = packing.of(name, columns)
            yield Weight(name, entry, range(start, start + size), (size, columns), stored)


def num_bytes_of(dtype: torch.dtype, shape: tuple[int, ...]) -> int:
    """Return the bytes of a tensor."""
    count = dtype.itemsize
    for size in shape:
        count *= size
    return count
