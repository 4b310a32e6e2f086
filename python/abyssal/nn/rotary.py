"""Rotary positions with YaRN scaling, on the interleaved pairs of DeepSeek's checkpoints."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import nn

#: Positions are computed for the next multiple of so many.
TOGETHER = 1024


@dataclass(frozen=True)
class YarnScaling:
    """YaRN's parameters.

    Attributes:
        factor: How many times longer the context is than the pretrained one.
        original_max_position: Pretrained context in tokens.
        beta_fast: Rotations above which a frequency is kept.
        beta_slow: Rotations below which a frequency is divided by ``factor``.
        attention_factor: Multiplies cosine and sine.
        truncate: Whether the borders of the ramp are rounded outwards to whole dimensions.
    """

    factor: float
    original_max_position: int
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float = 1.0
    truncate: bool = True


def yarn_mscale(factor: float, mscale: float = 1.0) -> float:
    """YaRN's magnitude correction ``0.1 * mscale * ln(factor) + 1`` (1 for factors up to 1)."""
    return 1.0 if factor <= 1 else 0.1 * mscale * math.log(factor) + 1.0


def inverse_frequencies(dim: int, theta: float, yarn: YarnScaling | None = None) -> torch.Tensor:
    """Angle per position of each pair of dimensions.

    Args:
        dim: Number of rotated dimensions, even.
        theta: Base of the geometric series.
        yarn: Scaling for long contexts.

    Returns:
        f32 ``[dim / 2]``.

    Source: YaRN (arXiv 2309.00071), section 3.2.
    """
    base = theta ** (torch.arange(0, dim, 2, dtype=torch.float32) / dim)
    kept = 1.0 / base
    if yarn is None:
        return kept

    def dimension_of(rotations: float) -> float:
        return (
            dim
            * math.log(yarn.original_max_position / (rotations * 2 * math.pi))
            / (2 * math.log(theta))
        )

    low, high = dimension_of(yarn.beta_fast), dimension_of(yarn.beta_slow)
    if yarn.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dim - 1)
    if low == high:
        high += 0.001  # a ramp of no width would divide by zero (beta_fast == beta_slow)
    ramp = ((torch.arange(dim // 2, dtype=torch.float32) - low) / (high - low)).clamp(0, 1)
    share = 1 - ramp  # written as the published models do, to round as they do
    return (1.0 / (yarn.factor * base)) * (1 - share) + kept * share


def apply_rotary(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotate the interleaved pairs ``(2i, 2i + 1)`` of the last dimension.

    Args:
        x: ``[..., dim]``.
        cos: f32, broadcastable to ``[..., dim / 2]``.
        sin: Like ``cos``.

    Returns:
        A new tensor like ``x``, computed in f32 and rounded once.
    """
    even, odd = x[..., 0::2].float(), x[..., 1::2].float()
    return (
        torch.stack((even * cos - odd * sin, odd * cos + even * sin), dim=-1)
        .flatten(-2)
        .to(x.dtype)
    )


class RotaryEmbedding(nn.Module):
    """Cosine and sine of every position.

    Args:
        dim: Number of rotated dimensions.
        theta: Base of the frequencies.
        yarn: Scaling for long contexts.

    Guarantees: on a CPU a position's numbers are computed once, with those around it, and looked up
    from then on; so they do not depend on the call.
    """

    def __init__(self, dim: int, theta: float, yarn: YarnScaling | None = None) -> None:
        super().__init__()
        self.factor = 1.0 if yarn is None else yarn.attention_factor
        self.inverse_frequencies: torch.Tensor
        self.register_buffer(
            "inverse_frequencies", inverse_frequencies(dim, theta, yarn), persistent=False
        )
        self._tables = self._compute(torch.arange(0))

    def forward(self, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return cosine and sine, f32 ``[..., dim / 2]``, of int64 ``positions [...]``."""
        if positions.device.type != "cpu" or torch.compiler.is_compiling():
            return self._compute(positions)
        end = int(positions.max()) + 1 if positions.numel() else 0
        if end > self._tables[0].shape[0]:
            with torch.inference_mode(False), torch.no_grad():
                every = torch.arange(-(-end // TOGETHER) * TOGETHER, device="cpu")
                self._tables = self._compute(every)
        # Looked up as an embedding is: other ways wake threads of torch, which spin beside ours.
        cos, sin = (nn.functional.embedding(positions, table) for table in self._tables)
        return cos, sin

    def _compute(self, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        angles = positions[..., None].float() * self.inverse_frequencies
        return angles.cos() * self.factor, angles.sin() * self.factor
