"""Argument checks shared by the reference and the fast operations: one rule, one message.

Each check reads shapes, dtypes and plain numbers only, never the data of a tensor.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

FLOATS = (torch.float32, torch.bfloat16, torch.float16)
INDICES = (torch.int32, torch.int64)
SCORINGS = ("softmax", "sigmoid", "sqrtsoftplus")
GROUP_SCORES = ("max", "top2_sum")
SCALE_FORMATS = ("f32", "ue8m0")
# Numbers of a cached latent that have one scale, where it is in FP8.
LATENT_BLOCK = 128
# Offsets and positions are int32.
LARGEST_COUNT = 2**31 - 1


def check_dtype(name: str, tensor: Tensor, allowed: Sequence[torch.dtype]) -> None:
    """Raise TypeError unless ``tensor`` is a tensor with one of the ``allowed`` dtypes."""
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name} is a {type(tensor).__name__}; it must be a torch.Tensor")
    if tensor.dtype not in allowed:
        names = " or ".join(str(dtype) for dtype in allowed)
        raise TypeError(f"{name} is {tensor.dtype}; it must be {names}")


def check_shape(name: str, tensor: Tensor, shape: Sequence[int]) -> None:
    """Raise ValueError unless ``tensor`` has exactly this shape."""
    if list(tensor.shape) != list(shape):
        raise ValueError(f"{name} has shape {list(tensor.shape)}; it must be {list(shape)}")


def check_rank(name: str, tensor: Tensor, rank: int) -> None:
    """Raise ValueError unless ``tensor`` has ``rank`` dimensions."""
    if tensor.dim() != rank:
        raise ValueError(f"{name} has {tensor.dim()} dimensions; it must have {rank}")


def check_choice(name: str, value: str, allowed: Sequence[str]) -> None:
    """Raise ValueError unless ``value`` is one of ``allowed``."""
    if value not in allowed:
        raise ValueError(f"{name} is {value!r}; it must be one of {', '.join(map(repr, allowed))}")


def check_range(name: str, value: int, low: int, high: int) -> None:
    """Raise ValueError unless ``low <= value <= high``."""
    if not low <= value <= high:
        raise ValueError(f"{name} is {value}; it must lie in {low}..{high}")


def _check_logits(logits: Tensor) -> None:
    check_dtype("logits", logits, FLOATS)
    check_rank("logits", logits, 2)
    if logits.shape[1] == 0:
        raise ValueError("logits have 0 experts; at least 1 is needed")
    check_range("number of experts", logits.shape[1], 1, LARGEST_COUNT)


def _check_results(
    logits: Tensor, top_k: int, out: tuple[Tensor, Tensor] | None, load: Tensor | None
) -> None:
    tokens, experts = logits.shape
    if out is not None:
        weights, indices = out
        check_dtype("out[0]", weights, (torch.float32,))
        check_dtype("out[1]", indices, (torch.int32,))
        check_shape("out[0]", weights, (tokens, top_k))
        check_shape("out[1]", indices, (tokens, top_k))
        if torch.is_grad_enabled() and (logits.requires_grad or weights.requires_grad):
            raise ValueError("out cannot be given when a gradient is recorded")
    if load is not None:
        check_dtype("load", load, (torch.int64,))
        check_shape("load", load, (experts,))


def check_route(
    logits: Tensor,
    top_k: int,
    scoring: str,
    correction_bias: Tensor | None,
    num_groups: int,
    top_groups: int,
    group_score: str,
    out: tuple[Tensor, Tensor] | None = None,
    load: Tensor | None = None,
) -> None:
    """Check the arguments of ``route``."""
    _check_logits(logits)
    experts = logits.shape[1]
    check_choice("scoring", scoring, SCORINGS)
    check_choice("group_score", group_score, GROUP_SCORES)
    check_range("num_groups", num_groups, 1, experts)
    if experts % num_groups:
        raise ValueError(f"num_groups is {num_groups}; it must divide the {experts} experts")
    check_range("top_groups", top_groups, 1, num_groups)
    check_range("top_k", top_k, 1, experts // num_groups * top_groups)
    if correction_bias is not None:
        check_dtype("correction_bias", correction_bias, (torch.float32,))
        check_shape("correction_bias", correction_bias, (experts,))
    _check_results(logits, top_k, out, load)


def check_gate(
    x: Tensor,
    weight: Tensor,
    top_k: int,
    scoring: str,
    selection: tuple[Tensor | None, int, int, str],
    out: tuple[Tensor, Tensor] | None = None,
    load: Tensor | None = None,
    logits: Tensor | None = None,
) -> None:
    """Check the arguments of ``gate_route``."""
    for name, matrix in (("x", x), ("weight", weight)):
        check_dtype(name, matrix, (torch.float32, torch.bfloat16))
        check_rank(name, matrix, 2)
    check_range("hidden size", x.shape[1], 1, LARGEST_COUNT)
    check_shape("weight", weight, (weight.shape[0], x.shape[1]))
    shape = (x.shape[0], weight.shape[0])
    if logits is not None:
        check_dtype("logits", logits, (torch.float32,))
        check_shape("logits", logits, shape)
    # The gate's logits would have this shape, and a gradient where one of its matrices has.
    recorded = x.requires_grad or weight.requires_grad
    of_logits = torch.empty(shape, device="meta", requires_grad=recorded)
    check_route(of_logits, top_k, scoring, *selection, out, load)


def check_route_table(
    logits: Tensor,
    token_ids: Tensor,
    table: Tensor,
    scoring: str,
    out: tuple[Tensor, Tensor] | None = None,
    load: Tensor | None = None,
) -> None:
    """Check the arguments of ``route_table``, values of ids and table excepted."""
    _check_logits(logits)
    check_choice("scoring", scoring, SCORINGS)
    check_dtype("token_ids", token_ids, INDICES)
    check_shape("token_ids", token_ids, (logits.shape[0],))
    check_dtype("table", table, INDICES)
    check_rank("table", table, 2)
    check_range("top_k (the table's width)", table.shape[1], 1, logits.shape[1])
    _check_results(logits, table.shape[1], out, load)


def check_permute(indices: Tensor, num_experts: int) -> None:
    """Check the arguments of ``permute``, values of the indices excepted."""
    check_dtype("indices", indices, INDICES)
    check_rank("indices", indices, 2)
    check_range("num_experts", num_experts, 1, LARGEST_COUNT - 1)
    check_range("number of indices", indices.numel(), 0, LARGEST_COUNT)


def _check_rotary(tokens: int, cos: Tensor, sin: Tensor) -> int:
    """Check cosines and sines; return the width of the rotated part."""
    check_dtype("cos", cos, (torch.float32,))
    check_dtype("sin", sin, (torch.float32,))
    check_rank("cos", cos, 2)
    check_range("pairs of the rotary part", cos.shape[1], 1, LARGEST_COUNT)
    check_shape("cos", cos, (tokens, cos.shape[1]))
    check_shape("sin", sin, (tokens, cos.shape[1]))
    return 2 * int(cos.shape[1])


def row_width(dtype: torch.dtype, kv_lora: int, rope: int) -> int:
    """Return the elements of a cache's row: numbers, or bytes (uint8) of a row in FP8."""
    if dtype == torch.uint8:
        return kv_lora + 4 * -(-kv_lora // LATENT_BLOCK) + 2 * rope
    return kv_lora + rope


def check_attention(
    query: Tensor,
    cos: Tensor,
    sin: Tensor,
    cache: Tensor,
    spans: Tensor,
    block_tables: Tensor,
    up: Tensor,
    up_scales: Tensor | None,
    page_size: int,
) -> None:
    """Check the arguments of ``mla_attention``, values of spans and tables excepted."""
    check_dtype("query", query, FLOATS)
    check_rank("query", query, 3)
    tokens, heads, key = query.shape
    check_range("heads", heads, 1, LARGEST_COUNT)
    rope = _check_rotary(tokens, cos, sin)
    check_range("width of a query", key, rope + 1, LARGEST_COUNT)
    check_dtype("cache", cache, (*FLOATS, torch.uint8))
    check_rank("cache", cache, 2)
    slots, width = cache.shape
    check_range("width of the cache", width, rope + 1, LARGEST_COUNT)
    check_range("page_size", page_size, 1, LARGEST_COUNT)
    if slots % page_size:
        raise ValueError(f"cache has {slots} rows; it must have whole pages of {page_size}")
    for name, tensor in (("spans", spans), ("block_tables", block_tables)):
        check_dtype(name, tensor, (torch.int32,))
        check_rank(name, tensor, 2)
    check_shape("spans", spans, (spans.shape[0], 4))
    check_shape("block_tables", block_tables, (spans.shape[0], block_tables.shape[1]))
    packed = (torch.float8_e4m3fn, torch.uint8)
    check_dtype("up", up, (*FLOATS, *packed))
    check_rank("up", up, 2)
    if (up.dtype in packed) != (up_scales is not None):
        raise ValueError(f"up is {up.dtype}; a packed weight, and no other, needs up_scales")
    rows, columns = up.shape
    kv_lora = 2 * columns if up.dtype == torch.uint8 else columns
    check_shape("cache", cache, (slots, row_width(cache.dtype, kv_lora, rope)))
    if rows % heads or rows // heads <= key - rope:
        raise ValueError(
            f"up has {rows} rows; it must have more than {key - rope} for each of {heads} heads"
        )


def check_spans(
    spans: Sequence[Sequence[int]],
    block_tables: Sequence[Sequence[int]],
    tokens: int,
    page_size: int,
    num_pages: int,
) -> None:
    """Check that spans cover the tokens one after the other, and that their pages exist."""
    covered = 0
    for index, (start, length, position, expanded) in enumerate(spans):
        check_range(f"start of span {index}", start, covered, covered)
        check_range(f"length of span {index}", length, 1, max(tokens - covered, 1))
        check_range(f"position of span {index}", position, 0, LARGEST_COUNT)
        check_range(f"number of expanded tokens of span {index}", expanded, 0, length)
        needed, table = -(-(position + length) // page_size), block_tables[index]
        if needed > len(table):
            raise ValueError(f"block table of span {index} has {len(table)} pages; not {needed}")
        for place, page in enumerate(table[:needed]):
            check_range(f"page {place} of span {index}", page, 0, num_pages - 1)
        covered += length
    if covered != tokens:
        raise ValueError(f"the spans cover {covered} tokens; there are {tokens}")


def check_latents(
    values: Tensor, norm: Tensor, cos: Tensor, sin: Tensor, cache: Tensor, slots: Tensor
) -> None:
    """Check the arguments of ``write_latents``, values of the slots excepted."""
    for name, tensor, rank, dtypes in (
        ("values", values, 2, FLOATS),
        ("norm", norm, 1, FLOATS),
        ("cache", cache, 2, (*FLOATS, torch.uint8)),
    ):
        check_dtype(name, tensor, dtypes)
        check_rank(name, tensor, rank)
    tokens, width = values.shape
    rope = _check_rotary(tokens, cos, sin)
    check_range("width of values", width, rope + 1, LARGEST_COUNT)
    check_shape("norm", norm, (width - rope,))
    check_shape("cache", cache, (cache.shape[0], row_width(cache.dtype, width - rope, rope)))
    check_dtype("slots", slots, (torch.int64,))
    check_shape("slots", slots, (tokens,))
