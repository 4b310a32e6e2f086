"""Latent attention of one sequence in its two forms, in plain PyTorch and f32.

Both forms compute the same function of the cached latents: with ``c`` a cached latent and ``r`` its
rotated key part, head ``h`` scores ``(q_nope . (W_uk c) + q_rope . r) * scale``. The expanded form
multiplies ``c`` out to keys and values first; the absorbed form moves ``W_uk`` to the query and
``W_uv`` behind the sum, so that a query costs a product with the latents alone.

Source: DeepSeek-V2 (arXiv 2405.04434), section 2.1; DeepSeek-V3 ``inference/model.py`` (MLA,
"naive" and "absorb").
"""

from __future__ import annotations

import torch


def _causal_mask(
    queries: int, keys: int, first_position: int, device: torch.device
) -> torch.Tensor:
    """True where a query may not look: bool ``[queries, keys]``."""
    positions = torch.arange(first_position, first_position + queries, device=device)
    return torch.arange(keys, device=device)[None, :] > positions[:, None]


def mla_absorbed(
    query_nope: torch.Tensor,
    query_rope: torch.Tensor,
    latents: torch.Tensor,
    key_value_up: torch.Tensor,
    scale: float,
    first_position: int,
) -> torch.Tensor:
    """Attention on the latents themselves.

    Args:
        query_nope: ``[tokens, heads, nope]``.
        query_rope: ``[tokens, heads, rope]``, rotated.
        latents: ``[context, kv_lora + rope]``, the cached rows from position 0 on.
        key_value_up: ``[heads, nope + v, kv_lora]``: per head the key rows, then the value rows.
        scale: Multiplies the scores before the softmax.
        first_position: Position of the first query; query ``i`` sees rows ``0 ..= first_position +
            i``.

    Returns:
        f32 ``[tokens, heads, v]``.
    """
    nope, rank = query_nope.shape[-1], key_value_up.shape[-1]
    up = key_value_up.float()
    content, rotary = latents[:, :rank].float(), latents[:, rank:].float()
    query = torch.einsum("thn,hnl->htl", query_nope.float(), up[:, :nope])
    scores = query @ content.t() + query_rope.float().transpose(0, 1) @ rotary.t()
    mask = _causal_mask(query.shape[1], content.shape[0], first_position, scores.device)
    probabilities = (scores * scale).masked_fill(mask, float("-inf")).softmax(-1)
    return torch.einsum("htl,hvl->thv", probabilities @ content, up[:, nope:])


def mla_expanded(
    query_nope: torch.Tensor,
    query_rope: torch.Tensor,
    latents: torch.Tensor,
    key_value_up: torch.Tensor,
    scale: float,
    first_position: int,
) -> torch.Tensor:
    """Attention on keys and values expanded from the latents; all else as ``mla_absorbed``."""
    nope, rank = query_nope.shape[-1], key_value_up.shape[-1]
    content, rotary = latents[:, :rank].float(), latents[:, rank:].float()
    expanded = torch.einsum("cl,hdl->hcd", content, key_value_up.float())
    keys, values = expanded[..., :nope], expanded[..., nope:]
    scores = query_nope.float().transpose(0, 1) @ keys.transpose(1, 2)
    scores = scores + query_rope.float().transpose(0, 1) @ rotary.t()
    mask = _causal_mask(scores.shape[1], scores.shape[2], first_position, scores.device)
    probabilities = (scores * scale).masked_fill(mask, float("-inf")).softmax(-1)
    return (probabilities @ values).transpose(0, 1)
