"""Routing: which experts see which token. Checks, allocates, calls, returns.

The work is done by the Rust crate ``abyssal-routing``; ``abyssal.reference.routing`` is the same in
plain PyTorch, bit for bit.
"""

import torch
from torch import Tensor
from torch.compiler import is_dynamo_compiling

from abyssal._core import route_direct
from abyssal.reference.checks import check_permute, check_route, check_route_table

from .native import core, is_direct, plain
from .outputs import add, contiguous, count, deliver, results


def route(
    logits: Tensor,
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
) -> tuple[Tensor, Tensor]:
    """Select the experts of each token and weigh them.

    Args:
        logits: ``[num_tokens, num_experts]`` float32, bfloat16 or float16; computed in float32.
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

    Returns:
        ``(weights, indices)``: float32 and int32, both ``[num_tokens, top_k]``, best first.

    Raises:
        TypeError: a wrong dtype.
        ValueError: a wrong shape, a number out of range, overlapping outputs, or ``out`` while a
            gradient is recorded.

    Guarantees: ties go to the lower index, ``-0`` ties with ``+0``. Weights come from the scores
    without bias. A NaN logit counts as ``-inf`` in the scores, and it, like a NaN key, is never
    selected; experts outside the kept groups neither. A row with fewer than ``top_k`` selectable
    experts gets NaN weights, in-range indices without meaning, and adds nothing to ``load``.
    Infinite logits take their limits: the largest share the weight. All groups kept is an exact no-
    op. A row does not depend on its neighbors; zero tokens give empty results. Weights are
    differentiable with respect to ``logits``; ``correction_bias`` gets no gradient. Indices at or
    above the number of real experts (zero experts) need no special care here. Bits are equal on
    every machine, and equal to ``abyssal.reference.route``.

    Source: DeepSeek-V2 and DeepSeek-V3 reports, section 2.1.2; LongCat-Flash for softmax with a
    bias.
    """
    if not is_dynamo_compiling():
        # The usual call, checked where it runs; everything else is looked at below.
        direct = route_direct(
            logits,
            top_k,
            scoring,
            correction_bias,
            num_groups,
            top_groups,
            group_score,
            normalize,
            scale,
            out,
            load,
        )
        if direct is not None:
            return direct
    selection = (correction_bias, num_groups, top_groups, group_score)
    check_route(logits, top_k, scoring, *selection, out, load)
    if not is_direct(logits):
        routed = torch.ops.abyssal.route(logits, top_k, scoring, *selection, normalize, scale)
        count(load, *routed)
        return deliver(routed, out)
    weights, indices = results(logits.shape[0], top_k, out)
    counter = contiguous(load)
    core().route(
        plain(logits),
        weights,
        indices,
        top_k=top_k,
        scoring=scoring,
        correction_bias=None if correction_bias is None else plain(correction_bias),
        num_groups=num_groups,
        top_groups=top_groups,
        group_score=group_score,
        normalize=normalize,
        scale=scale,
        load=counter,
    )
    add(load, counter)
    return deliver((weights, indices), out)


def route_table(
    logits: Tensor,
    token_ids: Tensor,
    table: Tensor,
    *,
    scoring: str,
    normalize: bool = True,
    scale: float = 1.0,
    out: tuple[Tensor, Tensor] | None = None,
    load: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Look the experts of each token up in a table, and weigh them by their scores.

    Args:
        logits: ``[num_tokens, num_experts]`` float32, bfloat16 or float16; computed in float32.
        token_ids: ``[num_tokens]`` int32 or int64, each ``0 <= id < vocab_size``.
        table: ``[vocab_size, top_k]`` int32 or int64 expert indices,
            each ``0 <= index < num_experts``.
        scoring: ``"softmax"``, ``"sigmoid"`` or ``"sqrtsoftplus"``.
        normalize: divide the weights by their sum plus 1e-20.
        scale: factor on the weights, last.
        out: tensors for the two results: float32 and int32, ``[num_tokens, top_k]``.
        load: ``[num_experts]`` int64; the number of tokens each expert got is added to it.

    Returns:
        ``(weights, indices)``: float32 and int32, both ``[num_tokens, top_k]``, in the table's
        order.

    Raises:
        TypeError: a wrong dtype.
        ValueError: a wrong shape, a token id outside the table, an index in a used row that is no
            expert, overlapping outputs, or ``out`` while a gradient is recorded.

    Guarantees: a row whose table entry names an expert with a NaN logit gets NaN weights and adds
    nothing to ``load``. Rows of the table that no token uses are not read. Weights are
    differentiable with respect to ``logits``. Bits are equal to ``abyssal.reference.route_table``.

    Source: DeepSeek-V4 hash layers.
    """
    check_route_table(logits, token_ids, table, scoring, out, load)
    if not is_direct(logits):
        routed = torch.ops.abyssal.route_table(logits, token_ids, table, scoring, normalize, scale)
        count(load, *routed)
        return deliver(routed, out)
    weights, indices = results(logits.shape[0], table.shape[1], out)
    counter = contiguous(load)
    core().route_table(
        plain(logits.to(torch.float32)),
        plain(token_ids),
        plain(table),
        weights,
        indices,
        scoring=scoring,
        normalize=normalize,
        scale=scale,
        load=counter,
    )
    add(load, counter)
    return deliver((weights, indices), out)


def permute(indices: Tensor, num_experts: int) -> tuple[Tensor, Tensor]:
    """Group the (token, choice) pairs by expert.

    Args:
        indices: ``[num_tokens, top_k]`` int32 or int64 expert indices, each
            ``0 <= index < num_experts``.
        num_experts: number of experts, zero experts included.

    Returns:
        ``(order, offsets)``, both int32. ``order`` ``[num_tokens * top_k]`` holds positions in the
        flattened ``indices``; the pairs of expert ``e`` are ``order[offsets[e]:offsets[e + 1]]``;
        ``offsets`` has ``num_experts + 1`` elements. The token of a position is
        ``position // top_k``.

    Raises:
        TypeError: a wrong dtype.
        ValueError: a wrong shape, or an index out of range.

    Guarantees: stable: within an expert, positions ascend. No tokens give an empty order and zero
    offsets.
    """
    check_permute(indices, num_experts)
    if not is_direct(indices):
        grouped: tuple[Tensor, Tensor] = torch.ops.abyssal.permute(indices, num_experts)
        return grouped
    order = torch.empty(indices.numel(), dtype=torch.int32, device="cpu")
    offsets = torch.empty(num_experts + 1, dtype=torch.int32, device="cpu")
    core().permute(plain(indices), num_experts, order, offsets)
    return order, offsets
