"""The whole forward pass in plain PyTorch: one sequence, no cache, no packed weights, one dtype.

    h = embed[token]
    for each layer:
        h = h + attention(rms_norm(h))
        h = h + feed_forward(rms_norm(h))        dense, or  sum_e w_e * expert_e(x) + shared(x)
    logits = head(rms_norm(h))

Written to be read and to be compared with: each token's experts are evaluated one by one, keys and
values are expanded, positions start at 0. Weights come as a mapping with the parameter names of
``abyssal.models``; a packed weight is dequantized by the caller.

Source: DeepSeek-V2 (arXiv 2405.04434), DeepSeek-V3 (arXiv 2412.19437); YaRN (arXiv 2309.00071),
section 3.2.
"""

import math
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .attention import rotate
from .norm import rms_norm
from .routing import route

Weights = Mapping[str, Tensor]


def forward(
    weights: Weights,
    shape: Any,  # noqa: ANN401
    token_ids: Tensor,
    *,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Compute the logits after every position of one sequence.

    Args:
        weights: tensors by parameter name: ``embed.weight``,
            ``layers.0.attention.kv_down.weight``, ...
        shape: the architecture, with the attributes of ``abyssal.models.ModelConfig``.
        token_ids: int64 ``[tokens]``, at least one.
        dtype: of all arithmetic but the experts' scores and the rotary angles: float32 or float64.

    Returns:
        ``[tokens, vocab_size]`` of that dtype.

    Raises:
        KeyError: a parameter is missing.
        ValueError: no tokens.

    Guarantees: deterministic for one number of torch threads; changes none of its arguments.
    """
    if token_ids.ndim != 1 or token_ids.shape[0] == 0:
        raise ValueError(
            f"token_ids must be [tokens] with at least one, got {tuple(token_ids.shape)}"
        )
    hidden = weights["embed.weight"].to(dtype)[token_ids]
    cos, sin = rotary_tables(shape, token_ids.shape[0])
    for number, sparse in enumerate(shape.moe_layers):
        layer = _Scope(weights, f"layers.{number}.", dtype)
        normalized = rms_norm(hidden, layer["input_norm.weight"], shape.rms_eps)
        hidden = hidden + attention(layer.inside("attention."), shape, normalized, cos, sin)
        normalized = rms_norm(hidden, layer["post_norm.weight"], shape.rms_eps)
        if sparse:
            hidden = hidden + experts(layer.inside("moe."), shape, normalized)
        else:
            hidden = hidden + gated(layer.inside("mlp."), normalized)
    last = rms_norm(hidden, weights["norm.weight"].to(dtype), shape.rms_eps)
    return last @ weights["head.weight"].to(dtype).t()


def rotary_tables(shape: Any, tokens: int) -> tuple[Tensor, Tensor]:  # noqa: ANN401
    """Return cosine and sine, f32 ``[tokens, rope_dim / 2]``, of positions 0, 1, ...

    With YaRN, a pair of dimensions that turns more than ``beta_fast`` times within the pretrained
    context keeps its frequency, one that turns less than ``beta_slow`` times has it divided by the
    factor, with a ramp between.
    """
    dim, theta, yarn = shape.rope_dim, shape.rope_theta, shape.yarn
    # In f32 from the first step, as every implementation of the family does: at position 4,000 the
    # difference to exact frequencies is already larger than the rounding of everything else.
    base = theta ** (torch.arange(0, dim, 2, dtype=torch.float32) / dim)
    frequencies = 1 / base
    if yarn is not None:
        low, high = (
            _turns_at(dim, theta, yarn, yarn.beta_fast),
            _turns_at(dim, theta, yarn, yarn.beta_slow),
        )
        if yarn.truncate:
            low, high = math.floor(low), math.ceil(high)
        low, high = max(low, 0), min(high, dim - 1)
        width = high - low if high > low else 0.001
        ramp = ((torch.arange(dim // 2, dtype=torch.float32) - low) / width).clamp(0, 1)
        frequencies = ramp / (yarn.factor * base) + (1 - ramp) * frequencies
    positions = torch.arange(tokens, dtype=torch.float32)
    angles = positions[:, None] * frequencies
    factor = 1.0 if yarn is None else yarn.attention_factor
    return angles.cos() * factor, angles.sin() * factor


def attention(layer: "_Scope", shape: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:  # noqa: ANN401
    """Latent attention with expanded keys and values: f32 like ``x [tokens, hidden]``."""
    tokens, heads = x.shape[0], shape.num_heads
    if shape.q_lora_rank is None:
        query = layer.linear("q", x)
    else:
        latent = rms_norm(layer.linear("q_down", x), layer["q_norm.weight"], shape.latent_eps)
        query = layer.linear("q_up", latent)
    query = query.view(tokens, heads, shape.nope_dim + shape.rope_dim)
    query_nope, query_rope = query[..., : shape.nope_dim], query[..., shape.nope_dim :]

    down = layer.linear("kv_down", x)
    content, key_rope = down[:, : shape.kv_lora_rank], down[:, shape.kv_lora_rank :]
    content = rms_norm(content, layer["kv_norm.weight"], shape.latent_eps)
    expanded = layer.linear("kv_up", content).view(tokens, heads, shape.nope_dim + shape.v_dim)
    key_nope, value = expanded[..., : shape.nope_dim], expanded[..., shape.nope_dim :]

    scores = torch.einsum("qhd,khd->hqk", query_nope, key_nope)
    scores = scores + torch.einsum(
        "qhd,kd->hqk", rotate(query_rope, cos, sin), rotate(key_rope, cos, sin)
    )
    future = torch.ones(tokens, tokens, dtype=torch.bool).triu(1)
    probabilities = (scores * shape.softmax_scale).masked_fill(future, float("-inf")).softmax(-1)
    return layer.linear("output", torch.einsum("hqk,khd->qhd", probabilities, value).flatten(1))


def experts(layer: "_Scope", shape: Any, x: Tensor) -> Tensor:  # noqa: ANN401
    """The chosen experts of each token, weighted, and the shared one: f32 like ``x``."""
    chosen_weights, chosen = route(
        (x @ layer["router.weight"].t()).float(),
        top_k=shape.top_k,
        scoring=shape.scoring,
        correction_bias=layer["router.correction_bias"].float() if shape.correction_bias else None,
        num_groups=shape.num_groups,
        top_groups=shape.top_groups,
        group_score=shape.group_score,
        normalize=shape.normalize,
        scale=shape.routed_scale,
    )
    total = torch.zeros_like(x)
    for index in range(shape.num_experts):
        rows, places = (chosen == index).nonzero(as_tuple=True)
        if rows.numel():
            output = gated(layer.inside(f"experts.{index}."), x[rows])
            total[rows] += output * chosen_weights[rows, places].unsqueeze(1)
    if shape.num_shared_experts:
        total = total + gated(layer.inside("shared."), x)
    return total


def gated(layer: "_Scope", x: Tensor) -> Tensor:
    """``down(silu(gate(x)) * up(x))``."""
    return layer.linear("down", F.silu(layer.linear("gate", x)) * layer.linear("up", x))


def _turns_at(dim: int, theta: float, yarn: Any, turns: float) -> float:  # noqa: ANN401
    """Return the pair of dimensions that turns this often within the pretrained context."""
    return (
        dim * math.log(yarn.original_max_position / (turns * 2 * math.pi)) / (2 * math.log(theta))
    )


class _Scope:
    """The weights whose names begin with a prefix."""

    def __init__(self, weights: Weights, prefix: str, dtype: torch.dtype) -> None:
        self._weights, self._prefix, self._dtype = weights, prefix, dtype

    def __getitem__(self, name: str) -> Tensor:
        return self._weights[self._prefix + name].to(self._dtype)

    def inside(self, prefix: str) -> "_Scope":
        """Go one level down."""
        return _Scope(self._weights, self._prefix + prefix, self._dtype)

    def linear(self, name: str, x: Tensor) -> Tensor:
        """Multiply by the transposed weight and add the bias, where there is one."""
        result = x @ self[f"{name}.weight"].t()
        bias = self._weights.get(f"{self._prefix}{name}.bias")
        return result if bias is None else result + bias.to(self._dtype)
