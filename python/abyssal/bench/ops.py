"""``abyssal bench ops``: routing, quantization and the page cache beside plain PyTorch.

Every result is compared with the peer's before anything is timed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor

from abyssal import ops
from abyssal.bench import eager
from abyssal.bench.rows import Row
from abyssal.bench.timing import compare

TORCH = "torch eager"
TOKENS = 4096
ROWS, COLUMNS = 2048, 7168

Pair = tuple[Tensor, Tensor]
Call = Callable[[], Pair]


def _grouped(logits: Tensor, bias: Tensor, out: Pair | None = None) -> Call:
    return lambda: ops.route(
        logits,
        top_k=8,
        scoring="sigmoid",
        correction_bias=bias,
        num_groups=8,
        top_groups=4,
        scale=2.5,
        out=out,
    )


def _ungrouped(logits: Tensor, bias: Tensor, out: Pair | None = None) -> Call:
    return lambda: ops.route(
        logits, top_k=8, scoring="sigmoid", correction_bias=bias, scale=2.827, out=out
    )


def _softmax(logits: Tensor, out: Pair | None = None) -> Call:
    return lambda: ops.route(logits, top_k=6, scoring="softmax", normalize=False, out=out)


#: Name, experts, experts per token, what makes our call, the peer's, whether they take a bias.
_RULES: list[tuple[str, int, int, Callable[..., Call], Callable[..., Pair], bool]] = [
    ("256 experts, 8 groups, top 8, sigmoid", 256, 8, _grouped, eager.route_grouped, True),
    ("384 experts, top 8, sigmoid", 384, 8, _ungrouped, eager.route_ungrouped, True),
    ("64 experts, top 6, softmax", 64, 6, _softmax, eager.route_softmax, False),
]


def rows() -> Iterator[Row]:
    """Measure every row, in the table's order, on the threads that torch has."""
    with torch.inference_mode():
        torch.manual_seed(0)
        yield from routing()
        yield from permutation()
        yield from quantization()


def routing() -> Iterator[Row]:
    """Scores to experts: a batch of tokens, and one token."""
    for name, experts, top_k, ours, peer, biased in _RULES:
        bias = (torch.randn(experts) * 0.1,) if biased else ()
        for tokens in (TOKENS, 1):
            logits = torch.randn(tokens, experts)
            out = (torch.empty(tokens, top_k), torch.empty(tokens, top_k, dtype=torch.int32))
            _same_experts(ours(logits, *bias)(), peer(logits, *bias), logits, *bias)
            for given in (out, None):
                where = "given outputs" if given is not None else "fresh outputs"
                if tokens > 1 and given is None:
                    continue
                found = compare(ours(logits, *bias, given), partial(peer, logits, *bias))
                yield Row(
                    name=f"route {tokens} token{'s' * (tokens > 1)}, {name}, {where}",
                    unit="us per token",
                    ours=found.ours / tokens * 1e6,
                    peer=found.peer / tokens * 1e6,
                    peer_name=TORCH,
                    ratio=found.ratio,
                )


def _same_experts(
    ours: tuple[Tensor, Tensor], theirs: tuple[Tensor, Tensor], logits: Tensor, *bias: Tensor
) -> None:
    """Require the same experts and weights; experts may differ where their keys all but tie."""
    mine, order = ours[1].long().sort(dim=-1)
    yours, their_order = theirs[1].sort(dim=-1)
    same = (mine == yours).all(dim=-1)
    if (~same).float().mean() > 1e-3:
        raise RuntimeError(f"{int((~same).sum())} of {len(same)} rows chose other experts")
    scores = logits.sigmoid() + bias[0] if bias else logits
    keys = (scores.gather(1, mine).sum(-1) - scores.gather(1, yours).sum(-1)).abs()
    weights = ours[0].gather(1, order) - theirs[0].gather(1, their_order)
    # A sum of eight keys of two rankings that differ by near ties; weights of eight divisions.
    if float(keys.max()) > 1e-5 or float(weights[same].abs().max()) > 4e-6:
        raise RuntimeError("the two rankings differ by more than rounding")


def permutation() -> Iterator[Row]:
    """Grouping by expert."""
    indices = torch.randint(0, 256, (TOKENS, 8), dtype=torch.int32)
    order, offsets = ops.permute(indices, 256)
    expected, ends = eager.permute(indices, 256)
    _same("order", order.long(), expected)
    _same("offsets", offsets[1:].long(), ends)
    found = compare(lambda: ops.permute(indices, 256), lambda: eager.permute(indices, 256))
    count = indices.numel()
    yield Row(
        f"permute {TOKENS} tokens, top 8 of 256 experts",
        "ns per index",
        found.ours / count * 1e9,
        found.peer / count * 1e9,
        TORCH,
        found.ratio,
    )


def quantization() -> Iterator[Row]:
    """Block formats: bytes read and written per second, beside copying as many."""
    for dtype, short in ((torch.bfloat16, "bf16"), (torch.float32, "f32")):
        x = torch.randn(ROWS, COLUMNS).to(dtype)
        moved = x.numel() * (x.element_size() + 1)
        yield _stream(
            f"quantize FP8 1x128 from {short}",
            lambda x=x: ops.quantize_fp8(x),  # type: ignore[misc]
            lambda x=x: eager.quantize_rows(x),  # type: ignore[misc]
            moved + x.numel() // 32,
        )
        yield _stream(
            f"quantize FP8 128x128 from {short}",
            lambda x=x: ops.quantize_fp8(x, block=(128, 128)),  # type: ignore[misc]
            lambda x=x: eager.quantize_blocks(x),  # type: ignore[misc]
            moved,
        )
    weight = torch.randn(ROWS, COLUMNS)
    codes, scales = ops.quantize_fp8(weight, block=(128, 128))
    for short, dtype, given in (
        ("bf16", torch.bfloat16, False),
        ("f32", torch.float32, False),
        ("f32, given result", torch.float32, True),
    ):
        mine, theirs = (torch.empty(ROWS, COLUMNS) if given else None for _ in range(2))
        yield _stream(
            f"dequantize FP8 128x128 to {short}",
            lambda d=dtype, o=mine: ops.dequantize_fp8(codes, scales, (128, 128), d, out=o),  # type: ignore[misc]
            lambda d=dtype, o=theirs: eager.dequantize_blocks(codes, scales, d, o),  # type: ignore[misc]
            codes.numel() * (1 + dtype.itemsize),
        )
    yield _stream(
        "quantize MXFP4 from f32",
        lambda: ops.quantize_mxfp4(weight),
        lambda: eager.quantize_mxfp4(weight),
        weight.numel() * 9 // 2 + weight.numel() // 32,
    )
    packed, exponents = ops.quantize_mxfp4(weight)
    yield _stream(
        "dequantize MXFP4 to bf16",
        lambda: ops.dequantize_mxfp4(packed, exponents),
        lambda: eager.dequantize_mxfp4(packed, exponents),
        weight.numel() * 5 // 2 + weight.numel() // 32,
    )


def _stream(name: str, ours: Callable[[], object], peer: Callable[[], object], moved: int) -> Row:
    """Compare results as bytes, then speeds; the limit is a copy that moves as many bytes."""
    for part, (mine, theirs) in enumerate(zip(_parts(ours()), _parts(peer()), strict=True)):
        _same(f"{name}, result {part}", mine, theirs)
    found = compare(ours, peer, samples=9)
    source = torch.zeros(moved // 2, dtype=torch.uint8)
    target = torch.empty_like(source)
    share = compare(ours, lambda: target.copy_(source), samples=9).ratio
    speed = moved / found.ours / 1e9
    return Row(
        f"{name}, {ROWS} x {COLUMNS}",
        "GB/s",
        speed,
        moved / found.peer / 1e9,
        TORCH,
        found.ratio,
        limit=speed / share,
    )


def _parts(result: object) -> tuple[Tensor, ...]:
    return result if isinstance(result, tuple) else (torch.as_tensor(result),)


def _same(what: str, ours: Tensor, theirs: Tensor) -> None:
    """Require equal bytes."""
    if ours.shape != theirs.shape or ours.dtype != theirs.dtype:
        raise RuntimeError(
            f"{what}: {ours.dtype} {ours.shape} is not {theirs.dtype} {theirs.shape}"
        )
    bytes_of = ours.contiguous().view(torch.uint8), theirs.contiguous().view(torch.uint8)
    if not torch.equal(*bytes_of):
        raise RuntimeError(f"{what}: {int((bytes_of[0] != bytes_of[1]).sum())} bytes differ")
