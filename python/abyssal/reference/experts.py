"""A feed-forward part in plain PyTorch: chosen experts, and one that every token has.

The definition of ``abyssal.ops.Experts``, up to the order of the sums within a product.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from .quant import dequantize_fp8, dequantize_mxfp4

#: A weight, and its scales if it is packed.
Weight = tuple[Tensor, Tensor | None]
#: Gate, up and down.
Expert = Sequence[Weight]


def dense(weight: Weight) -> Tensor:
    """Return a plain or packed weight as float32."""
    values, scales = weight
    if scales is None:
        return values.to(torch.float32)
    if values.dtype == torch.float8_e4m3fn:
        return dequantize_fp8(values, scales, (128, 128), torch.float32)
    return dequantize_mxfp4(values, scales, torch.float32)


def expert_output(x: Tensor, expert: Expert, limit: float | None = None) -> Tensor:
    """Return ``down(silu(gate(x)) * up(x))`` in float32.

    Args:
        x: ``[tokens, hidden_size]`` float32.
        expert: gate and up ``[inner_size, hidden_size]``, down ``[hidden_size, inner_size]``.
        limit: bounds gate from above, and up on both sides, before they are multiplied.

    Returns:
        ``[tokens, hidden_size]`` float32.

    Guarantees: computed in float32, whatever the weights are stored as.
    """
    gate, up, down = (dense(weight) for weight in expert)
    opened, other = x @ gate.T, x @ up.T
    if limit is not None:
        opened, other = opened.clamp(max=limit), other.clamp(-limit, limit)
    return (torch.nn.functional.silu(opened) * other) @ down.T


def experts(
    x: Tensor,
    weights: Tensor | None,
    indices: Tensor | None,
    routed: Sequence[Expert],
    shared: Expert | None = None,
    *,
    limit: float | None = None,
) -> Tensor:
    """Return the weighted sum of each token's experts, and of the one that all have.

    Args:
        x: ``[tokens, hidden_size]`` float32 or bfloat16.
        weights: ``[tokens, top_k]`` float32; None if there are no routed experts.
        indices: ``[tokens, top_k]`` int32; numbers at or above ``len(routed)`` are experts that
            return their input.
        routed: the experts to choose from.
        shared: the expert of every token.
        limit: as for ``expert_output``.

    Returns:
        ``[tokens, hidden_size]`` in x's dtype.

    Guarantees: computed in float32; a token's outputs are added in ascending expert index, the
    shared one's last, and rounded once.

    Source: DeepSeek-V3 ``inference/model.py`` (MoE, Expert); the clamp is DeepSeek-V4's.
    """
    wide = x.to(torch.float32)
    total = torch.zeros_like(wide)
    if weights is not None and indices is not None:
        for index in sorted(set(indices.flatten().tolist())):
            tokens, places = (indices == index).nonzero(as_tuple=True)
            rows = wide[tokens]
            if index < len(routed):
                rows = expert_output(rows, routed[index], limit)
            total.index_add_(0, tokens, rows * weights[tokens, places].unsqueeze(1))
    if shared is not None:
        total = total + expert_output(wide, shared, limit)
    return total.to(x.dtype)
