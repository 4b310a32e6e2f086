"""Latent attention over a paged cache, and the rows that a step adds to it.

The work is done by the Rust crate ``abyssal-kernels``; ``abyssal.reference.attention`` is the same
in plain PyTorch.
"""

import torch
from torch import Tensor
from torch.compiler import is_compiling

from abyssal import reference
from abyssal._core import get_num_threads
from abyssal.reference.checks import check_attention, check_latents

from .native import core, is_direct, plain

_NUMBERS = (torch.float32, torch.bfloat16)
_CACHES = (*_NUMBERS, torch.uint8)


def mla_attention(
    query: Tensor,
    cos: Tensor,
    sin: Tensor,
    cache: Tensor,
    spans: Tensor,
    block_tables: Tensor,
    up: Tensor,
    up_scales: Tensor | None = None,
    *,
    page_size: int,
    scale: float,
) -> Tensor:
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
            packed as ``fp8_linear`` and ``mxfp4_linear`` take it, read where it lies.
        up_scales: the scales of a packed ``up``.
        page_size: tokens in a page.
        scale: multiplies the scores before the softmax.

    Returns:
        ``[tokens, heads, v]`` in query's dtype.

    Raises:
        TypeError: a wrong dtype.
        ValueError: shapes that do not fit together, spans that do not cover the tokens, or a page
            outside the cache.

    Guarantees: computed in float32, rounded once; on a processor with bfloat16 dot products, of a
    bfloat16 query and a bfloat16 or FP8 cache with ``up`` not float32, what is multiplied is
    rounded to bfloat16 (scaled queries, numbers of an FP8 cache, rebuilt keys and values, softmax
    weights, whose sum is that of the rounded ones) and summed in float32. A token's bits follow
    from its query, position and form and the cached rows of its own sequence up to its own
    position: not from the other tokens, the cut of a prompt into steps, the places of pages, or the
    threads. Nothing else of the cache is read. At most 256 MB of memory beside the arguments. What
    is float16, not in CPU memory, or has a gradient, goes to ``abyssal.reference.mla_attention``.

    Source: DeepSeek-V2 (arXiv 2405.04434), section 2.1.
    """
    if is_compiling():
        result: Tensor = torch.ops.abyssal.mla_attention(
            query, cos, sin, cache, spans, block_tables, up, up_scales, page_size, scale
        )
        return result
    given = [query, cos, sin, cache, spans, block_tables, up]
    if up_scales is not None:
        given.append(up_scales)
    check_attention(query, cos, sin, cache, spans, block_tables, up, up_scales, page_size)
    if not (
        all(is_direct(tensor) for tensor in given)
        and query.dtype in _NUMBERS
        and cache.dtype in _CACHES
        and up.dtype != torch.float16
    ):
        return reference.mla_attention(
            query,
            cos,
            sin,
            cache,
            spans,
            block_tables,
            up,
            up_scales,
            page_size=page_size,
            scale=scale,
        )
    tokens, heads, key = query.shape
    out = torch.empty(
        (tokens, heads, up.shape[0] // heads - key + 2 * cos.shape[1]),
        dtype=query.dtype,
        device="cpu",
    )
    core().mla_attention(
        plain(query),
        plain(cos),
        plain(sin),
        plain(cache),
        plain(spans),
        plain(block_tables),
        plain(up),
        None if up_scales is None else plain(up_scales),
        out,
        page_size=page_size,
        scale=scale,
        num_threads=get_num_threads(),
    )
    return out


def write_latents(
    values: Tensor,
    norm: Tensor,
    cos: Tensor,
    sin: Tensor,
    cache: Tensor,
    slots: Tensor,
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
        ValueError: shapes that do not fit together, or a slot outside the cache (``IndexError``
            from the reference); nothing is written then.

    Guarantees: computed in float32 and rounded as a module of the type of ``values`` would, then to
    the cache's type, or quantized as by ``quantize_fp8``; a row's bits do not depend on the others,
    the threads or the machine. Other rows of the cache stay as they are. What is float16, not in
    CPU memory, not contiguous, or has a gradient, goes to ``abyssal.reference.write_latents``.

    Source: DeepSeek-V2 (arXiv 2405.04434), section 2.1.
    """
    if is_compiling():
        torch.ops.abyssal.write_latents(values, norm, cos, sin, cache, slots, eps)
        return
    check_latents(values, norm, cos, sin, cache, slots)
    if not (
        all(is_direct(tensor) for tensor in (values, norm, cos, sin, cache, slots))
        and all(tensor.dtype in _NUMBERS for tensor in (values, norm))
        and cache.dtype in _CACHES
        and cache.is_contiguous()
    ):
        reference.write_latents(values, norm, cos, sin, cache, slots, eps=eps)
        return
    core().write_latents(
        plain(values),
        plain(norm),
        plain(cos),
        plain(sin),
        cache,
        plain(slots),
        eps=eps,
        num_threads=get_num_threads(),
    )
