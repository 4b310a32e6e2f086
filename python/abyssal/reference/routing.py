"""Which experts see which token, in plain PyTorch.

    scores    = softmax, sigmoid or sqrt(softplus) of the logits, exact float32 (``scores.py``)
    keys      = scores + correction bias
    groups    : keep the ``top_groups`` groups of experts with the best group score
    selection : the ``top_k`` best keys of the kept groups
    weights   = scores of the selected experts, divided by their sum, times ``scale``

Sorting is done on 64-bit integers that hold the key's order in the upper half and the expert's
index, reversed, in the lower one, so that there are no ties left and an expert that may not be
chosen sorts behind all others.
"""

import torch
from torch import Tensor

from .checks import check_permute, check_range, check_route, check_route_table
from .scores import router_scores

_NEVER = -(2**31)  # below the order of -inf


def _order(key: Tensor, selectable: Tensor) -> Tensor:
    """Map float32 keys to int64: larger is better, and among equals the lower index is."""
    bits = (key + 0.0).view(torch.int32)  # adding zero makes -0 equal to +0
    ordered = torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits).to(torch.int64)
    ordered = torch.where(selectable, ordered, _NEVER)
    width = key.shape[-1]
    reversed_index = torch.arange(width - 1, -1, -1, device=key.device)
    return ordered * 2**32 + reversed_index


def _best(order: Tensor, count: int) -> Tensor:
    """Return the columns of the ``count`` largest integers, all different, of each row."""
    return order.topk(count, dim=-1).indices


def _kept_groups(
    key: Tensor, selectable: Tensor, num_groups: int, top_groups: int, group_score: str
) -> Tensor:
    """Return which experts lie in a kept group, bool ``[num_tokens, num_experts]``."""
    tokens, experts = key.shape
    size = experts // num_groups
    grouped = key.masked_fill(~selectable, float("-inf")).view(tokens, num_groups, size)
    usable = selectable.view(tokens, num_groups, size)
    if group_score == "max" or size == 1:
        score = grouped.amax(dim=-1)
    else:
        top = grouped.topk(2, dim=-1).values
        # A group with a single selectable expert is worth that expert alone.
        score = torch.where(usable.sum(dim=-1) > 1, top[..., 0] + top[..., 1], top[..., 0])
    # inf - inf: a group that cannot be ranked ranks last among those that hold a selectable expert.
    score = score.masked_fill(score.isnan(), float("-inf"))
    best = _best(_order(score, usable.any(dim=-1)), top_groups)
    kept = torch.zeros(tokens, num_groups, dtype=torch.bool, device=key.device)
    kept.scatter_(1, best, True)
    return kept.repeat_interleave(size, dim=1)


def expert_weights(
    scores: Tensor, indices: Tensor, complete: Tensor, normalize: bool, scale: float
) -> Tensor:
    """Gather, normalize and scale the scores of the chosen experts; incomplete rows become NaN.

    Args:
        scores: ``[num_tokens, num_experts]`` float32.
        indices: ``[num_tokens, top_k]`` int64.
        complete: ``[num_tokens]`` bool.
        normalize: divide by the sum plus 1e-20.
        scale: factor, last.

    Returns:
        ``[num_tokens, top_k]`` float32, differentiable with respect to ``scores``.
    """
    weights = scores.gather(1, indices)
    if normalize:
        # Infinite scores share the weight: the limit, where their quotients would be NaN.
        infinite = weights.isinf()
        weights = torch.where(infinite.any(dim=1, keepdim=True), infinite.float(), weights)
        total = weights[:, 0:1]
        for column in range(1, weights.shape[1]):  # best first: the order is part of the result
            total = total + weights[:, column : column + 1]
        weights = weights / (total + 1e-20)
    return (weights * scale).masked_fill(~complete.unsqueeze(1), float("nan"))


def _check_values(name: str, values: Tensor, count: int) -> None:
    if values.numel():
        check_range(name, int(values.min()), 0, count - 1)
        check_range(name, int(values.max()), 0, count - 1)


def add_load(load: Tensor, indices: Tensor, complete: Tensor) -> None:
    """Count the tokens of each expert, incomplete rows left out.

    Args:
        load: ``[num_experts]`` int64, added to.
        indices: ``[num_tokens, top_k]`` integers.
        complete: ``[num_tokens]`` bool.
    """
    counted = complete.unsqueeze(1).expand(indices.shape).reshape(-1)
    load.index_add_(0, indices.reshape(-1).to(torch.int64), counted.to(torch.int64))


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
        out: tensors for the two results: float32 and int32, ``[num_tokens, top_k]``.
        load: ``[num_experts]`` int64; the number of tokens each expert got is added to it.

    Returns:
        ``(weights, indices)``: float32 and int32, both ``[num_tokens, top_k]``, best first.

    Raises:
        TypeError: a wrong dtype.
        ValueError: a wrong shape, or a number out of range.

    Guarantees: ties go to the lower index, ``-0`` ties with ``+0``. Weights come from the scores
    without bias. A NaN logit counts as ``-inf`` in the scores, and it, like a NaN key, is never
    selected; experts outside the kept groups neither. A row with fewer than ``top_k`` selectable
    experts gets NaN weights, in-range indices without meaning, and adds nothing to ``load``.
    Infinite logits take their limits: the largest share the weight. All groups kept is an exact no-
    op. A row does not depend on its neighbors; zero tokens give empty results. Weights are
    differentiable with respect to ``logits``; ``correction_bias`` gets no gradient. Indices at or
    above the number of real experts (zero experts) need no special care here.

    Source: DeepSeek-V2 and DeepSeek-V3 reports, section 2.1.2; LongCat-Flash for softmax with a
    bias.
    """
    selection = (correction_bias, num_groups, top_groups, group_score)
    check_route(logits, top_k, scoring, *selection, out, load)
    given = logits.to(torch.float32)
    scores = router_scores(given, scoring)
    with torch.no_grad():
        key = scores if correction_bias is None else scores + correction_bias
        selectable = ~(given.isnan() | key.isnan())
        if top_groups < num_groups:
            selectable &= _kept_groups(key, selectable, num_groups, top_groups, group_score)
        indices = _best(_order(key, selectable), top_k)
        complete = selectable.sum(dim=1) >= top_k
        if load is not None:
            add_load(load, indices, complete)
    weights = expert_weights(scores, indices, complete, normalize, scale)
    indices = indices.to(torch.int32)
    return _deliver(weights, indices, out)


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
        table: ``[vocab_size, top_k]`` int32 or int64 expert indices, each ``0 <= index <
            num_experts``.
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
        ValueError: a wrong shape, a token id outside the table, or an index in a used row that is
            no expert.

    Guarantees: a row whose table entry names an expert with a NaN logit gets NaN weights and adds
    nothing to ``load``. Rows of the table that no token uses are not read. Weights are
    differentiable with respect to ``logits``.

    Source: DeepSeek-V4 hash layers.
    """
    check_route_table(logits, token_ids, table, scoring, out, load)
    given = logits.to(torch.float32)
    _check_values("token id", token_ids, table.shape[0])
    indices = table[token_ids.to(torch.int64)].to(torch.int64)
    _check_values("expert", indices, logits.shape[1])
    scores = router_scores(given, scoring)
    complete = ~given.isnan().gather(1, indices).any(dim=1)
    if load is not None:
        add_load(load, indices, complete)
    weights = expert_weights(scores, indices, complete, normalize, scale)
    return _deliver(weights, indices.to(torch.int32), out)


def _deliver(
    weights: Tensor, indices: Tensor, out: tuple[Tensor, Tensor] | None
) -> tuple[Tensor, Tensor]:
    if out is None:
        return weights, indices
    out[0].copy_(weights)
    out[1].copy_(indices)
    return out


def permute(indices: Tensor, num_experts: int) -> tuple[Tensor, Tensor]:
    """Group the (token, choice) pairs by expert.

    Args:
        indices: ``[num_tokens, top_k]`` int32 or int64 expert indices, each ``0 <= index <
            num_experts``.
        num_experts: number of experts, zero experts included.

    Returns:
        ``(order, offsets)``, both int32. ``order`` ``[num_tokens * top_k]`` holds positions in the
        flattened ``indices``; the pairs of expert ``e`` are ``order[offsets[e]:offsets[e + 1]]``;
        ``offsets`` has ``num_experts + 1`` elements. The token of a position is ``position //
        top_k``.

    Raises:
        TypeError: a wrong dtype.
        ValueError: a wrong shape, or an index out of range.

    Guarantees: stable: within an expert, positions ascend. No tokens give an empty order and zero
    offsets.
    """
    check_permute(indices, num_experts)
    flat = indices.reshape(-1).to(torch.int64)
    _check_values("expert", flat, num_experts)
    order = flat.argsort(stable=True).to(torch.int32)
    counts = torch.bincount(flat, minlength=num_experts)
    offsets = torch.zeros(num_experts + 1, dtype=torch.int32, device=indices.device)
    offsets[1:] = counts.cumsum(0)
    return order, offsets
