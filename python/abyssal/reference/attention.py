"""Latent attention in its two forms, in plain PyTorch and f32, and what it caches.

Both forms compute the same function of the cached latents: with ``c`` a cached latent and ``r`` its
rotated key part, head ``h`` scores ``(q_nope . (W_uk c) + q_rope . r) * scale``. The expanded form
multiplies ``c`` out to keys and values first; the absorbed form moves ``W_uk`` to the query and
``W_uv`` behind the sum, so that a query costs a product with the latents alone.

Source: DeepSeek-V2 (arXiv 2405.04434), section 2.1; DeepSeek-V3 ``inference/model.py`` (MLA,
"naive" and "absorb").
"""

from __future__ import annotations

import torch

from .checks import check_attention, check_latents, check_spans
from .latents import pack_rows, unpack_rows
from .quant import dequantize_fp8, dequantize_mxfp4

#: Queries whose scores exist at the same time.
TOGETHER = 256


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotate the pairs ``(2i, 2i + 1)`` of ``x [tokens, ..., dim]`` by each token's angles."""
    while cos.ndim < x.ndim:
        cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)
    even, odd = x[..., 0::2], x[..., 1::2]
    return torch.stack((even * cos - odd * sin, odd * cos + even * sin), dim=-1).flatten(-2)


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


def mla_attention(
    query: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    cache: torch.Tensor,
    spans: torch.Tensor,
    block_tables: torch.Tensor,
    up: torch.Tensor,
    up_scales: torch.Tensor | None = None,
    *,
    page_size: int,
    scale: float,
) -> torch.Tensor:
    """Attend to the cached latents of each sequence, each token in the form that it takes.

    Args:
        query: ``[tokens, heads, nope + rope]`` float32, bfloat16 or float16, not rotated yet.
        cos: float32 ``[tokens, rope / 2]``, of each token's position.
        sin: like ``cos``.
        cache: ``[pages * page_size, kv_lora + rope]``, or rows in FP8 as bytes (uint8, see
            ``abyssal.reference.latents``); the tokens of this step included.
        spans: int32 ``[sequences, 4]``: first token in the batch, number of tokens, position of the
            first one, how many of the first ones take the expanded form.
        block_tables: int32 ``[sequences, pages]``, page ids in order of position.
        up: ``[heads * (nope + v), kv_lora]``, per head the key rows, then the value rows; plain, or
            packed as ``fp8_linear`` and ``mxfp4_linear`` take it.
        up_scales: the scales of a packed ``up``.
        page_size: tokens in a page.
        scale: multiplies the scores before the softmax.

    Returns:
        ``[tokens, heads, v]`` in query's dtype.

    Raises:
        TypeError: a wrong dtype.
        ValueError: shapes that do not fit together, spans that do not cover the tokens, or a page
            outside the cache.

    Guarantees: computed in float32, rounded once. A token sees the cached rows of its own sequence
    up to its own position, and nothing else of the cache is read. Differentiable.

    Source: DeepSeek-V2 (arXiv 2405.04434), section 2.1.
    """
    check_attention(query, cos, sin, cache, spans, block_tables, up, up_scales, page_size)
    heads = query.shape[1]
    rope = 2 * cos.shape[1]
    nope = query.shape[2] - rope
    if up_scales is None:
        weight = up.float()
    elif up.dtype == torch.float8_e4m3fn:
        weight = dequantize_fp8(up, up_scales, (128, 128), torch.float32)
    else:
        weight = dequantize_mxfp4(up, up_scales, torch.float32)
    weight = weight.view(heads, -1, weight.shape[-1])
    plain, rotated = query[..., :nope].float(), rotate(query[..., nope:].float(), cos, sin)
    pages = cache.view(-1, page_size, cache.shape[1])
    numbers = spans.tolist()
    check_spans(numbers, block_tables.tolist(), query.shape[0], page_size, pages.shape[0])
    parts = []
    for index, (start, length, position, expanded) in enumerate(numbers):
        table = block_tables[index, : -(-(position + length) // page_size)]
        rows = unpack_rows(pages[table.long()].flatten(0, 1), weight.shape[-1])
        done = 0
        while done < length:
            # Some queries at a time, so that their scores fit any machine; one form at a time.
            end = expanded if done < expanded else length
            count = min(end - done, TOGETHER)
            form = mla_expanded if done < expanded else mla_absorbed
            here = slice(start + done, start + done + count)
            visible = rows[: position + done + count]
            parts.append(form(plain[here], rotated[here], visible, weight, scale, position + done))
            done += count
    if not parts:
        return query.new_empty((0, heads, weight.shape[1] - nope))
    return torch.cat(parts).to(query.dtype)


def write_latents(
    values: torch.Tensor,
    norm: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    cache: torch.Tensor,
    slots: torch.Tensor,
    *,
    eps: float,
) -> None:
    """Normalize latents, rotate keys and write both to the cache.

    Args:
        values: ``[tokens, kv_lora + rope]`` float32, bfloat16 or float16: what the down projection
            gives.
        norm: ``[kv_lora]``, the weight of the latents' norm.
        cos: float32 ``[tokens, rope / 2]``, of each token's position.
        sin: like ``cos``.
        cache: ``[slots, kv_lora + rope]``, or rows in FP8 as bytes (uint8), written in place.
        slots: int64 ``[tokens]``, each token's row of the cache, each its own.
        eps: added to the mean square.

    Returns:
        Nothing.

    Raises:
        TypeError: a wrong dtype.
        ValueError: shapes that do not fit together.
        IndexError: a slot outside the cache.

    Guarantees: computed in float32 and rounded as a module of the type of ``values`` would, then to
    the cache's type. Other rows of the cache stay as they are.

    Source: DeepSeek-V2 (arXiv 2405.04434), section 2.1.
    """
    check_latents(values, norm, cos, sin, cache, slots)
    latent, key = values[:, : norm.shape[0]], values[:, norm.shape[0] :]
    wide = latent.float()
    wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)
    latent = norm * wide.to(values.dtype)
    key = rotate(key.float(), cos, sin).to(values.dtype)
    if cache.dtype == torch.uint8:
        cache[slots] = pack_rows(latent, key)
    else:
        cache[slots] = torch.cat((latent, key), dim=-1).to(cache.dtype)
