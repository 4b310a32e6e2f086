"""A decoder layer over a paged latent cache in plain PyTorch.

The definition of ``abyssal.ops.DecoderLayer``, up to the order of the sums within a product.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from .attention import mla_attention, write_latents
from .experts import Expert, Weight, dense, experts
from .gate import gate_route
from .norm import rms_norm

#: A norm's weight and its epsilon.
Norm = tuple[Tensor, float]


class RouterWeights(Protocol):
    """What chooses a token's experts: the arguments of ``gate_route``."""

    weight: Any  # a tensor, or a parameter as a module has it
    correction_bias: Tensor | None
    top_k: int
    scoring: str
    num_groups: int
    top_groups: int
    group_score: str
    normalize: bool
    scale: float


@dataclass(frozen=True)
class LayerWeights:
    """What a decoder layer is made of. A weight is a pair: values, and scales if it is packed.

    Attributes:
        input_norm: Before attention.
        query_down: The projection to the query's latent and that latent's norm; None for none.
        query: ``[heads * (nope + rope), ...]``.
        kv_down: ``[kv_lora + rope, hidden_size]``.
        kv_norm: Of the latent.
        kv_up: ``[heads * (nope + v), kv_lora]``, per head the key rows, then the value rows.
        output: ``[hidden_size, heads * v]``.
        num_heads: Query heads.
        rope_dim: Width of a head's rotated part.
        nope_dim: Width of a head's part without position.
        v_dim: Width of a head's value.
        scale: Multiplies the scores before the softmax.
        post_norm: Before the feed-forward part.
        router: Chooses experts; None where there is the shared one alone.
        routed: Experts to choose from.
        shared: The expert of every token.
        limit: As for ``ops.Experts``.
    """

    input_norm: Norm
    query_down: tuple[Weight, Norm] | None
    query: Weight
    kv_down: Weight
    kv_norm: Norm
    kv_up: Weight
    output: Weight
    num_heads: int
    rope_dim: int
    nope_dim: int
    v_dim: int
    scale: float
    post_norm: Norm
    router: RouterWeights | None
    routed: Sequence[Expert]
    shared: Expert | None
    limit: float | None = None


def decoder_layer(
    weights: LayerWeights,
    hidden: Tensor,
    cos: Tensor,
    sin: Tensor,
    cache: Tensor,
    slots: Tensor,
    spans: Tensor,
    block_tables: Tensor,
    *,
    page_size: int,
    dtype: torch.dtype,
) -> Tensor:
    """Map the stream before a layer to the stream after it; this step's rows are cached.

    Args:
        weights: the layer.
        hidden: float32 ``[tokens, hidden_size]``.
        cos: float32 ``[tokens, rope / 2]``, of each token's position.
        sin: like ``cos``.
        cache: as for ``write_latents``, written in place.
        slots: int64 ``[tokens]``, each token's row of the cache, each its own.
        spans: as for ``mla_attention``.
        block_tables: as for ``mla_attention``.
        page_size: tokens in a page.
        dtype: of what goes from one part to the next.

    Returns:
        float32 ``[tokens, hidden_size]``.

    Guarantees: the sums of products are float32; other rows of the cache stay as they are.

    Source: DeepSeek-V2 (arXiv 2405.04434), DeepSeek-V3 (arXiv 2412.19437).
    """
    x = rms_norm(hidden, *weights.input_norm, dtype=dtype)
    norm, eps = weights.kv_norm
    write_latents(_product(x, weights.kv_down), norm, cos, sin, cache, slots, eps=eps)
    query = x
    if weights.query_down is not None:
        down, query_norm = weights.query_down
        query = rms_norm(_product(x, down), *query_norm, dtype=dtype)
    attended = mla_attention(
        _product(query, weights.query).view(x.shape[0], weights.num_heads, -1),
        cos,
        sin,
        cache,
        spans,
        block_tables,
        *weights.kv_up,
        page_size=page_size,
        scale=weights.scale,
    )
    hidden = hidden + _product(attended.flatten(1), weights.output)
    x = rms_norm(hidden, *weights.post_norm, dtype=dtype)
    chosen: tuple[Tensor | None, Tensor | None] = (None, None)
    if weights.router is not None:
        router = weights.router
        chosen = gate_route(
            x,
            router.weight,
            top_k=router.top_k,
            scoring=router.scoring,
            correction_bias=router.correction_bias,
            num_groups=router.num_groups,
            top_groups=router.top_groups,
            group_score=router.group_score,
            normalize=router.normalize,
            scale=router.scale,
        )
    routed, shared, limit = weights.routed, weights.shared, weights.limit
    return hidden + experts(x, chosen[0], chosen[1], routed, shared, limit=limit)


def _product(x: Tensor, weight: Weight) -> Tensor:
    return (x.float() @ dense(weight).t()).to(x.dtype)
