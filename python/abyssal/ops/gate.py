"""The router's matrix product and the choice of experts in one call.

The work is done by the Rust crate ``abyssal-kernels``; ``abyssal.reference.gate`` is the same in
plain PyTorch, bit for bit.
"""

import torch
from torch import Tensor
from torch.compiler import is_dynamo_compiling

from abyssal._core import gate_direct, get_num_threads
from abyssal.reference.checks import check_gate

from .native import core, is_direct, plain
from .outputs import add, contiguous, count, deliver, results


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
    """Compute the router's logits of hidden states and route them, without keeping the logits.

    Args:
        x: ``[num_tokens, hidden_size]`` float32 or bfloat16.
        weight: ``[num_experts, hidden_size]`` float32 or bfloat16, read where it lies.
        top_k: experts per token, ``1 <= top_k <= top_groups * num_experts / num_groups``.
        scoring: ``"softmax"``, ``"sigmoid"`` or ``"sqrtsoftplus"``.
        correction_bias: ``[num_experts]`` float32, added to the scores for the selection alone.
        num_groups: number of equal groups of consecutive experts; it divides ``num_experts``.
        top_groups: groups kept per token, ``1 <= top_groups <= num_groups``.
        group_score: ``"max"``, a group's best key, or ``"top2_sum"``, the sum of its two best.
        normalize: divide the weights by their sum plus 1e-20.
        scale: factor on the weights, last.
        out: tensors for the two results: float32 and int32, ``[num_tokens, top_k]``. They may not
            share memory with each other or an input.
        load: ``[num_experts]`` int64; the number of tokens each expert got is added to it.
        logits: ``[num_tokens, num_experts]`` float32; the logits are written to it.

    Returns:
        ``(weights, indices)``: float32 and int32, both ``[num_tokens, top_k]``, best first.

    Raises:
        TypeError: a wrong dtype.
        ValueError: a wrong shape, a number out of range, overlapping outputs, or ``out`` while a
            gradient is recorded.

    Guarantees: products and sums are float32, rounded one by one, in an order that follows from
    ``hidden_size`` alone: a row depends neither on its neighbors nor on the number of threads. What
    holds for the logits' routing is said at ``route``. Zero tokens give empty results. Weights are
    differentiable with respect to ``x`` and ``weight``. Bits are equal on every machine, and equal
    to ``abyssal.reference.gate_route``.

    Source: DeepSeek-V2 and DeepSeek-V3 reports, section 2.1.2.
    """
    selection = (correction_bias, num_groups, top_groups, group_score)
    if not is_dynamo_compiling():
        # The usual call, checked where it runs; everything else is looked at below.
        rule = (top_k, scoring, *selection, normalize, scale)
        direct = gate_direct(x, weight, *rule, out, load, logits, get_num_threads())
        if direct is not None:
            return direct
    check_gate(x, weight, top_k, scoring, selection, out, load, logits)
    if not (is_direct(x) and is_direct(weight)):
        weights, indices, values = torch.ops.abyssal.gate_route(
            x, weight, top_k, scoring, *selection, normalize, scale
        )
        if logits is not None:
            logits.copy_(values.detach())
        count(load, weights, indices)
        return deliver((weights, indices), out)
    routed = results(x.shape[0], top_k, out)
    counter, place = contiguous(load), contiguous(logits)
    core().gate_route(
        plain(x),
        plain(weight),
        *routed,
        top_k=top_k,
        scoring=scoring,
        correction_bias=None if correction_bias is None else plain(correction_bias),
        num_groups=num_groups,
        top_groups=top_groups,
        group_score=group_score,
        normalize=normalize,
        scale=scale,
        load=counter,
        logits=place,
        num_threads=get_num_threads(),
    )
    add(load, counter)
    if logits is not None and place is not None and place is not logits:
        logits.copy_(place)
    return deliver(routed, out)
