"""Normalization and the likeliest token, in plain PyTorch."""

import torch
from torch import Tensor


def rms_norm(x: Tensor, weight: Tensor, eps: float, *, dtype: torch.dtype | None = None) -> Tensor:
    """Return ``x / sqrt(mean(x^2) + eps) * weight`` over the last dimension.

    Args:
        x: ``[..., size]`` float64, float32, bfloat16 or float16.
        weight: ``[size]``, of any of these types.
        eps: added to the mean square.
        dtype: of the result; None for that of x.

    Returns:
        A tensor shaped like x.

    Guarantees: computed in float32 (float64 where x is) and rounded to x's type before the weight
    multiplies. Differentiable with respect to both.
    """
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)
    normalized = weight * wide.to(x.dtype)
    return normalized.to(dtype or x.dtype)


def greedy(logits: Tensor) -> list[int]:
    """Return the likeliest token of each row of logits.

    Args:
        logits: float32 ``[rows, vocab]``, ``vocab`` at least 1.

    Returns:
        A token id for each row; -1 where a value is not finite.

    Guarantees: as far as ``torch.argmax`` keeps it, ties go to the lowest id.
    """
    finite = logits.isfinite().all(-1)
    ids: list[int] = torch.where(finite, logits.argmax(-1), -1).tolist()
    return ids
