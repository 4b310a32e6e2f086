"""Products with plain and packed weights.

The definition of ``abyssal.ops`` of the same names, up to the order of the sums.
"""

import torch
from torch import Tensor

from . import formats
from .quant import dequantize_fp8, dequantize_mxfp4


def linear(x: Tensor, weight: Tensor, *, dtype: torch.dtype | None = None) -> Tensor:
    """Return ``x @ W.T``.

    Args:
        x: ``[..., in_features]`` float32 or bfloat16.
        weight: ``[out_features, in_features]`` float32 or bfloat16.
        dtype: of the result: float32, or x's where it is None.

    Returns:
        ``[..., out_features]``.

    Raises:
        TypeError: a wrong dtype.
        ValueError: shapes that do not fit together.

    Guarantees: computed in float32, rounded once to the result's dtype. Differentiable with respect
    to both.

    Source: none; the product itself.
    """
    formats.check_linear(x, weight, dtype)
    product = torch.nn.functional.linear(x.to(torch.float32), weight.to(torch.float32))
    return product.to(dtype or x.dtype)


def fp8_linear(
    x: Tensor, codes: Tensor, scales: Tensor, *, dtype: torch.dtype | None = None
) -> Tensor:
    """Return ``x @ W.T`` for a weight in FP8 blocks of 128 x 128.

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

    Guarantees: computed in float32 from the exact products of codes and scales, rounded once to the
    result's dtype. Differentiable with respect to ``x``.

    Source: DeepSeek-V3 report, section 3.3, with activations left as they are.
    """
    formats.check_fp8_linear(x, codes, scales, dtype)
    weight = dequantize_fp8(codes, scales, (128, 128), torch.float32)
    return torch.nn.functional.linear(x.to(torch.float32), weight).to(dtype or x.dtype)


def mxfp4_linear(
    x: Tensor, codes: Tensor, scales: Tensor, *, dtype: torch.dtype | None = None
) -> Tensor:
    """Return ``x @ W.T`` for a weight in MXFP4.

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

    Guarantees: computed in float32, rounded once to the result's dtype. Differentiable with respect
    to ``x``.

    Source: Open Compute Project, Microscaling Formats 1.0.
    """
    formats.check_mxfp4_linear(x, codes, scales, dtype)
    weight = dequantize_mxfp4(codes, scales, torch.float32)
    return torch.nn.functional.linear(x.to(torch.float32), weight).to(dtype or x.dtype)
