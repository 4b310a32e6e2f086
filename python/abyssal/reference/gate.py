"""The router's matrix product and the choice of experts, in plain PyTorch.

    lanes[l] = 0 + x[l] w[l] + x[l + 16] w[l + 16] + ...    each product and sum rounded to float32
    logit    = lanes added in halves: 8 apart, 4, 2, 1

The order follows from the width of a row alone, so the bits of a token's logits depend neither on
the machine nor on the other tokens, where those of a library's product may.
"""

import torch
from torch import Tensor

from .checks import check_gate
from .routing import route

_LANES = 16
# Products that exist at the same time.
_CELLS = 1 << 22


def gate_logits(x: Tensor, weight: Tensor) -> Tensor:
    """Return ``x @ weight.T`` in float32, added up in a fixed order.

    Args:
        x: ``[num_tokens, hidden_size]`` float32 or bfloat16.
        weight: ``[num_experts, hidden_size]`` float32 or bfloat16.

    Returns:
        ``[num_tokens, num_experts]`` float32.

    Guarantees: the bits are the same on every machine, equal to the Rust crate's, and those of a
    row do not depend on the other rows. Differentiable with respect to both.
    """
    tokens, width = x.shape
    experts = weight.shape[0]
    steps = -(-width // _LANES)
    filled = (0, steps * _LANES - width)
    rows = torch.nn.functional.pad(x.to(torch.float32), filled).view(tokens, steps, _LANES)
    columns = torch.nn.functional.pad(weight.to(torch.float32), filled)
    columns = columns.view(experts, steps, _LANES)
    parts = []
    together = max(1, _CELLS // max(1, experts * _LANES))
    for start in range(0, tokens, together):
        part = rows[start : start + together]
        lanes = x.new_zeros((part.shape[0], experts, _LANES), dtype=torch.float32)
        for step in range(steps):
            lanes = lanes + part[:, None, step] * columns[None, :, step]
        half = _LANES
        while half > 1:
            half //= 2
            lanes = lanes[..., :half] + lanes[..., half : 2 * half]
        parts.append(lanes[..., 0])
    return torch.cat(parts) if parts else x.new_zeros((0, experts), dtype=torch.float32)


def gate_route(
    x: Tensor,
    weight: Tensor,
    *,
    top_k: int,
    scoring: str,
    correction_bias: Tensor | None = None,
    num_groups: int = 1,
    top_groups: int = 1,
    group_score: str = "top2_sum",
    normalize: bool = True,
    scale: float = 1.0,
    out: tuple[Tensor, Tensor] | None = None,
    load: Tensor | None = None,
    logits: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Compute the router's logits of hidden states and route them.

    Args:
        x: ``[num_tokens, hidden_size]`` float32 or bfloat16.
        weight: ``[num_experts, hidden_size]`` float32 or bfloat16.
        top_k: experts per token, ``1 <= top_k <= top_groups * num_experts / num_groups``.
        scoring: ``"softmax"``, ``"sigmoid"`` or ``"sqrtsoftplus"``.
        correction_bias: ``[num_experts]`` float32, added to the scores for the selection alone.
        num_groups: number of equal groups of consecutive experts; it divides ``num_experts``.
        top_groups: groups kept per token, ``1 <= top_groups <= num_groups``.
        group_score: ``"max"``, a group's best key, or ``"top2_sum"``, the sum of its two best.
        normalize: divide the weights by their sum plus 1e-20.
        scale: factor on the weights, last.
        out: tensors for the two results: float32 and int32, ``[num_tokens, top_k]``.
        load: ``[num_experts]`` int64; the number of tokens each expert got is added to it.
        logits: ``[num_tokens, num_experts]`` float32; the logits are written to it.

    Returns:
        ``(weights, indices)``: float32 and int32, both ``[num_tokens, top_k]``, best first.

    Raises:
        TypeError: a wrong dtype.
        ValueError: a wrong shape, or a number out of range.

    Guarantees: equal to ``route`` of ``gate_logits``, whose order of additions is fixed: a row does
    not depend on its neighbors. Zero tokens give empty results. Weights are differentiable with
    respect to ``x`` and ``weight``.

    Source: DeepSeek-V2 and DeepSeek-V3 reports, section 2.1.2.
    """
    selection = (correction_bias, num_groups, top_groups, group_score)
    check_gate(x, weight, top_k, scoring, selection, out, load, logits)
    values = gate_logits(x, weight)
    if logits is not None:
        logits.copy_(values.detach())
    return route(
        values,
        top_k=top_k,
        scoring=scoring,
        correction_bias=correction_bias,
        num_groups=num_groups,
        top_groups=top_groups,
        group_score=group_score,
        normalize=normalize,
        scale=scale,
        out=out,
        load=load,
    )
