"""RMSNorm, computed in f32."""

from __future__ import annotations

import torch
from torch import nn

from abyssal import ops


class RMSNorm(nn.Module):
    """``x / sqrt(mean(x^2) + eps) * weight`` over the last dimension.

    Args:
        size: Width of the last dimension.
        eps: Added to the mean square.
        dtype: Type of the weight.

    Guarantees: computed in f32 and rounded once to the type of the input, then multiplied by the
    weight, in the order of the published models.
    Source: DeepSeek-V3 ``inference/model.py`` (RMSNorm); transformers ``LlamaRMSNorm``.
    """

    def __init__(self, size: int, eps: float = 1e-6, *, dtype: torch.dtype | None = None) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(size, dtype=dtype))

    def forward(self, x: torch.Tensor, dtype: torch.dtype | None = None) -> torch.Tensor:
        """Normalize ``x [..., size]``; the result has its type unless another one is given."""
        return ops.rms_norm(x, self.weight, self.eps, dtype=dtype)
