"""Shapes and dtypes of the block formats: what fits together, and the value of a scale.

Shared by the reference and the fast operations, so that both refuse the same input with the same
words.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from .checks import FLOATS, check_dtype, check_rank, check_shape

FP4_BLOCK = 32
FP8_SCALES = (torch.float32, torch.float8_e8m0fnu)
FP4_CODES = (torch.uint8, torch.int8)
FP4_SCALES = (torch.uint8, torch.float8_e8m0fnu)
ACTIVATIONS = (torch.float32, torch.bfloat16)


def _check_block(block: tuple[int, int]) -> None:
    if len(block) != 2 or min(block) < 1:
        raise ValueError(f"block is {tuple(block)}; it must hold two sizes of at least 1")


def _check_output(dtype: torch.dtype) -> None:
    if dtype not in FLOATS:
        raise TypeError(f"dtype is {dtype}; it must be {' or '.join(map(str, FLOATS))}")


def scale_shape(shape: torch.Size, block: tuple[int, int]) -> list[int]:
    """Return the shape of the scales of a tensor with this shape."""
    across = -(-shape[-1] // block[1])
    return [across] if len(shape) == 1 else [*shape[:-2], -(-shape[-2] // block[0]), across]


def check_fp8_input(x: Tensor, block: tuple[int, int]) -> None:
    """Check that ``x`` can be cut into blocks."""
    _check_block(block)
    if x.dim() == 0 or (x.dim() == 1 and block[0] != 1):
        raise ValueError(f"x has {x.dim()} dimensions; blocks of {tuple(block)} need at least 2")
    if x.shape[-1] == 0:
        raise ValueError("x has 0 columns; at least 1 is needed")


def check_fp8_codes(
    codes: Tensor, scales: Tensor, block: tuple[int, int], dtype: torch.dtype
) -> None:
    """Check that codes, scales, block and output dtype fit together."""
    check_dtype("codes", codes, (torch.float8_e4m3fn,))
    check_dtype("scales", scales, FP8_SCALES)
    _check_output(dtype)
    check_fp8_input(codes, block)
    check_shape("scales", scales, scale_shape(codes.shape, block))


def check_fp4_input(x: Tensor) -> None:
    """Check that the columns of ``x`` fall into whole blocks."""
    if x.dim() == 0 or x.shape[-1] == 0 or x.shape[-1] % FP4_BLOCK:
        columns = x.shape[-1] if x.dim() else 0
        raise ValueError(f"x has {columns} columns; a positive multiple of {FP4_BLOCK} is needed")


def check_fp4_codes(codes: Tensor, scales: Tensor, dtype: torch.dtype) -> None:
    """Check that MXFP4 codes, scales and output dtype fit together."""
    check_dtype("codes", codes, FP4_CODES)
    check_dtype("scales", scales, FP4_SCALES)
    _check_output(dtype)
    half = FP4_BLOCK // 2
    if codes.dim() == 0 or codes.shape[-1] == 0 or codes.shape[-1] % half:
        columns = codes.shape[-1] if codes.dim() else 0
        raise ValueError(f"codes have {columns} columns; a positive multiple of {half} is needed")
    check_shape("scales", scales, [*codes.shape[:-1], codes.shape[-1] // half])


def _check_activations(x: Tensor, in_features: int, dtype: torch.dtype | None) -> None:
    check_dtype("x", x, ACTIVATIONS)
    if x.dim() == 0 or x.shape[-1] != in_features:
        width = x.shape[-1] if x.dim() else 0
        raise ValueError(f"x has width {width}; the weight has {in_features} input features")
    if dtype not in (None, torch.float32, x.dtype):
        raise TypeError(f"dtype is {dtype}; it must be torch.float32 or that of x, {x.dtype}")


def check_linear(x: Tensor, weight: Tensor, dtype: torch.dtype | None = None) -> None:
    """Check the arguments of ``linear``."""
    check_rank("weight", weight, 2)
    check_dtype("weight", weight, ACTIVATIONS)
    if weight.shape[1] == 0:
        raise ValueError("the weight has 0 columns; at least 1 is needed")
    _check_activations(x, weight.shape[1], dtype)


def check_fp8_linear(
    x: Tensor, codes: Tensor, scales: Tensor, dtype: torch.dtype | None = None
) -> None:
    """Check the arguments of ``fp8_linear``."""
    check_rank("codes", codes, 2)
    check_fp8_codes(codes, scales, (128, 128), torch.float32)
    _check_activations(x, codes.shape[1], dtype)


def check_mxfp4_linear(
    x: Tensor, codes: Tensor, scales: Tensor, dtype: torch.dtype | None = None
) -> None:
    """Check the arguments of ``mxfp4_linear``."""
    check_rank("codes", codes, 2)
    check_fp4_codes(codes, scales, torch.float32)
    _check_activations(x, codes.shape[1] * 2, dtype)


def check_out(name: str, out: Tensor | None, shape: Sequence[int], dtype: torch.dtype) -> None:
    """Check a tensor that a result is to be written to."""
    if out is None:
        return
    check_dtype(name, out, (dtype,))
    check_shape(name, out, shape)
    if out.requires_grad and torch.is_grad_enabled():
        raise ValueError(f"{name} cannot be given when a gradient is recorded")


def check_pair(
    out: tuple[Tensor, Tensor] | None, *wanted: tuple[Sequence[int], torch.dtype]
) -> tuple[Tensor, Tensor] | tuple[None, None]:
    """Check the tensors for codes and scales, each with its shape and dtype, and return them."""
    if out is None:
        return None, None
    if len(out) != 2:
        raise ValueError(f"out holds {len(out)} tensors; it must hold 2")
    for index, (shape, dtype) in enumerate(wanted):
        check_out(f"out[{index}]", out[index], shape, dtype)
    return out


def deliver_one(result: Tensor, out: Tensor | None) -> Tensor:
    """Return the result, in the caller's tensor if there is one."""
    return result if out is None or out is result else out.copy_(result)


def deliver(
    results: tuple[Tensor, Tensor], out: tuple[Tensor, Tensor] | None
) -> tuple[Tensor, Tensor]:
    """Return codes and scales, in the caller's tensors if there are some."""
    if out is None:
        return results
    return deliver_one(results[0], out[0]), deliver_one(results[1], out[1])


def scales_to_float(scales: Tensor) -> Tensor:
    """Return scales as float32: e8m0 code ``c`` is ``2 ** (c - 127)``, code 255 is NaN."""
    if scales.dtype == torch.float32:
        return scales
    code = scales.view(torch.uint8).to(torch.int32)
    # Code 0 is subnormal in float32, so its bits are written out rather than shifted.
    bits = torch.where(code == 0, 0x00400000, code << 23)
    return bits.view(torch.float32).masked_fill(code == 255, float("nan"))
