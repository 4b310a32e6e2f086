"""Normalization and the likeliest token, in plain PyTorch."""

import torch
from torch import Tensor


def rms_norm(x: Tensor, weight: Tensor, eps: float, *, dtype: torch.dtype | None = None) -> Tensor:
    """Return ``x / sqrt(mean(x^2) + eps) * weight``; see ``abyssal.ops.rms_norm``."""
    wide = x.float()
    wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)
    normalized = weight * wide.to(x.dtype)
    return normalized.to(dtype or x.dtype)


def greedy(logits: Tensor) -> list[int]:
    """Return the likeliest token of each row; see ``abyssal.ops.greedy``."""
    finite = logits.isfinite().all(-1)
    return torch.where(finite, logits.argmax(-1), -1).tolist()
