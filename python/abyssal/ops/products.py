"""Products with plain and packed weights. Checks, allocates, calls, returns.

The work is done by the Rust crate ``abyssal-kernels``; ``abyssal.reference.products`` is the same
in plain PyTorch, up to the order of the sums.
"""

import math

import torch
from torch import Tensor

from abyssal.reference import formats

from .native import core, is_direct, plain


def _product(
    x: Tensor, out_features: int, dtype: torch.dtype | None, function: str, *weight: Tensor
) -> Tensor:
    """Multiply the rows of ``x``, which may have any leading dimensions."""
    matrix = plain(x.reshape(math.prod(x.shape[:-1]), x.shape[-1]))
    out = torch.empty(matrix.shape[0], out_features, dtype=dtype or x.dtype, device="cpu")
    getattr(core(), function)(matrix, *weight, out)
    return out.view(*x.shape[:-1], out_features)


def linear(x: Tensor, weight: Tensor, *, dtype: torch.dtype | None = None) -> Tensor:
    """Return ``x @ W.T``, a row's bits being the same in every batch.

    Args:
        x: ``[..., in_features]`` float32 or bfloat16.
        weight: ``[out_features, in_features]`` float32 or bfloat16, whatever x is.
        dtype: of the result: float32, or x's where it is None.

    Returns:
        ``[..., out_features]``.

    Raises:
        TypeError: a wrong dtype.
        ValueError: shapes that do not fit together.

    Guarantees: accumulated in float32, in an order that follows from ``in_features`` and the
    instruction tier alone, so a row's bits depend neither on the other rows nor on the number of
    threads (``abyssal.get_num_threads()`` at most); rounded once to the result's dtype. The weight
    is read where it lies. Differentiable with respect to both.

    Source: none; the product itself.
    """
    formats.check_linear(x, weight, dtype)
    if not (is_direct(x) and is_direct(weight)):
        product: Tensor = torch.ops.abyssal.linear(x.to(dtype or x.dtype), weight)
        return product
    return _product(x, weight.shape[0], dtype, "linear", plain(weight))


def fp8_linear(
    x: Tensor, codes: Tensor, scales: Tensor, *, dtype: torch.dtype | None = None
) -> Tensor:
    """Return ``x @ W.T`` for a weight in FP8 blocks of 128 x 128, which stays packed.

    Args:
        x: ``[..., in_features]`` float32 or bfloat16.
        codes: ``[out_features, in_features]`` ``torch.float8_e4m3fn``.
        scales: ``[ceil(out_features / 128), ceil(in_features / 128)]`` float32 or
            ``torch.float8_e8m0fnu``.
        dtype: of the result: float32, or x's where it is None.

    Returns:
        ``[..., out_features]``.

    Raises:
        TypeError: a wrong dtype.
        ValueError: shapes that do not fit together.

    Guarantees: accumulated in float32, in an order that follows from ``in_features`` and the
    instruction tier alone, so a row's bits depend neither on the other rows nor on the number of
    threads (``abyssal.get_num_threads()`` at most); rounded once to the result's dtype. Where pairs
    of bfloat16 are multiplied (``kernel_tier`` "avx512-bf16", x bfloat16), a code times its scale
    is rounded to bfloat16 first, which changes nothing for scales that are powers of two. A NaN
    code makes its row's products NaN. Differentiable with respect to ``x``.

    Source: DeepSeek-V3 report, section 3.3, with activations left as they are.
    """
    formats.check_fp8_linear(x, codes, scales, dtype)
    if not is_direct(x):
        product: Tensor = torch.ops.abyssal.fp8_linear(x.to(dtype or x.dtype), codes, scales)
        return product
    return _product(x, codes.shape[0], dtype, "fp8_linear", codes.contiguous(), plain(scales))


def mxfp4_linear(
    x: Tensor, codes: Tensor, scales: Tensor, *, dtype: torch.dtype | None = None
) -> Tensor:
    """Return ``x @ W.T`` for a weight in MXFP4, which stays packed.

    Args:
        x: ``[..., in_features]`` float32 or bfloat16.
        codes: ``[out_features, in_features / 2]`` uint8 or int8.
        scales: ``[out_features, in_features / 32]`` uint8 or ``torch.float8_e8m0fnu``.
        dtype: of the result: float32, or x's where it is None.

    Returns:
        ``[..., out_features]``.

    Raises:
        TypeError: a wrong dtype.
        ValueError: shapes that do not fit together.

    Guarantees: as ``fp8_linear``; scale code 255 is NaN.

    Source: Open Compute Project, Microscaling Formats 1.0.
    """
    formats.check_mxfp4_linear(x, codes, scales, dtype)
    if not is_direct(x):
        product: Tensor = torch.ops.abyssal.mxfp4_linear(x.to(dtype or x.dtype), codes, scales)
        return product
    weight = (codes.contiguous().view(torch.uint8), scales.contiguous().view(torch.uint8))
    return _product(x, codes.shape[0], dtype, "mxfp4_linear", *weight)
