"""Write the two-layer model that the kernels' tests assemble: weights, a prompt, and exact logits.

Usage: python scripts/two_layers_fixture.py FILE

Weights are FP8 values with scales that are powers of two, which bfloat16 holds as well, so that one
file serves every packing. The logits are those of ``abyssal.reference.model`` in float64. The file
is a list of arrays, each a little-endian uint32 count and its elements, in the order of ``arrays``.
"""

import sys
import tempfile
from pathlib import Path

import torch
from torch import Tensor

from abyssal.cli.measure import plain_weights
from abyssal.models import load_model
from abyssal.reference.model import forward, rotary_tables
from abyssal.testing.checkpoints import write_checkpoint

TOKENS = 24


def arrays() -> list[Tensor]:
    """Return bfloat16 weights and ids, float32 angles and bias, float64 logits."""
    with tempfile.TemporaryDirectory() as folder:
        write_checkpoint(
            folder,
            family="v3",
            packing="ue8m0",
            seed=5,
            num_hidden_layers=2,
            vocab_size=32,
            n_routed_experts=8,
            rope_scaling=None,
            torch_dtype="bfloat16",
        )
        model, shape = load_model(folder, dtype="float32")
        weights = {name: value.clone() for name, value in plain_weights(model).items()}
    ids = (torch.arange(TOKENS) * 7 + 3) % 32
    cos, sin = rotary_tables(shape, TOKENS)
    logits = forward(weights, shape, ids, dtype=torch.float64)
    names = sorted(name for name in weights if name.endswith("weight"))
    halves = [weights[name].to(torch.bfloat16) for name in names]
    for name, half in zip(names, halves, strict=True):
        if not torch.equal(half.float(), weights[name]):
            raise ValueError(f"{name} has values that bfloat16 does not hold")
    return [
        *halves,
        weights["layers.1.moe.router.correction_bias"],
        ids.to(torch.int32),
        cos,
        sin,
        logits,
    ]


def encoded(tensors: list[Tensor]) -> bytes:
    """Return the arrays as the file has them."""
    parts = []
    for tensor in tensors:
        parts.append(tensor.numel().to_bytes(4, "little"))
        parts.append(tensor.contiguous().view(torch.uint8).numpy().tobytes())
    return b"".join(parts)


if __name__ == "__main__":
    Path(sys.argv[1]).write_bytes(encoded(arrays()))
