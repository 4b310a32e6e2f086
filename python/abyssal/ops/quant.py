"""Block formats: FP8 e4m3 and MXFP4. Checks, allocates, calls, returns.

The work is done by the Rust crate ``abyssal-quant``; ``abyssal.reference.quant`` is the same in
plain PyTorch, bit for bit where nothing is summed.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from abyssal.reference import formats
from abyssal.reference.checks import FLOATS, SCALE_FORMATS, check_choice, check_dtype

from . import large
from .native import core, is_direct, plain

FP8_CODES = torch.float8_e4m3fn


def _rows(tensor: Tensor) -> Tensor:
    """Return a tensor whose columns lie side by side, the same one if they do already."""
    if tensor.layout is not torch.strided or (tensor.dim() < 4 and tensor.stride(-1) == 1):
        return tensor
    return tensor.contiguous()


def _place(out: Tensor | None, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """Return memory for a result: the caller's where the compiled code can write to it."""
    if out is not None and out.is_contiguous() and is_direct(out):
        return out
    return large.empty(shape, dtype)


def _done(function: str, *tensors: Tensor, rest: tuple[object, ...] = ()) -> bool:
    """Try the compiled code on plain tensors, results included, without looking at them first.

    It checks everything itself and writes nothing when it refuses. Then, and for tensors that are
    traced or no plain ones, the way of every call follows, with its messages.
    """
    if torch.compiler.is_compiling() or any(type(tensor) is not Tensor for tensor in tensors):
        return False
    try:
        getattr(core(), function)(*tensors, *rest)
    except (TypeError, ValueError):
        return False
    return True


def quantize_fp8(
    x: Tensor,
    block: tuple[int, int] = (1, 128),
    scale_format: str = "f32",
    *,
    out: tuple[Tensor, Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """Quantize to FP8 e4m3 with one scale per block.

    Args:
        x: ``[..., rows, columns]`` float32, bfloat16 or float16; ``[columns]`` when a block is one
            row high. Leading dimensions are independent matrices.
        block: rows and columns of a block; the last ones may be ragged.
        scale_format: ``"f32"``, or ``"ue8m0"``, which rounds each scale up to a power of two.
        out: tensors for the two results. They may not share memory with each other or with ``x``.

    Returns:
        ``(codes, scales)``: ``torch.float8_e4m3fn`` of x's shape, and float32
        ``[..., ceil(rows / block[0]), ceil(columns / block[1])]``.

    Raises:
        TypeError: a wrong dtype.
        ValueError: no columns, a block size under 1, or an unknown ``scale_format``.

    Guarantees: ``scale = max(amax, 1e-4) / 448`` and ``code = e4m3(clamp(x / scale, -448, 448))``,
    quotients in float32, rounded to nearest even. A NaN stays NaN, with its sign, and does not
    enter ``amax``. A block that holds an infinity has an infinite scale: its finite elements
    become zero, its infinite ones NaN with their sign. Zero rows give empty results. No gradient
    is recorded. Bits are equal to ``abyssal.reference.quantize_fp8``.

    Source: DeepSeek-V3 ``inference/kernel.py``.
    """
    if out is not None and len(out) == 2:
        rest = (tuple(block), scale_format)
        if _done("quantize_fp8", x, out[0], out[1], rest=rest):
            return out
    check_dtype("x", x, FLOATS)
    check_choice("scale_format", scale_format, SCALE_FORMATS)
    formats.check_fp8_input(x, block)
    across = formats.scale_shape(x.shape, block)
    given = formats.check_pair(out, (x.shape, FP8_CODES), (across, torch.float32))
    if x.requires_grad:
        x = x.detach()
    if not is_direct(x):
        quantized = torch.ops.abyssal.quantize_fp8(x, list(block), scale_format)
        return formats.deliver(quantized, out)
    codes = _place(given[0], x.shape, FP8_CODES)
    scales = _place(given[1], across, torch.float32)
    core().quantize_fp8(_rows(x), codes, scales, tuple(block), scale_format)
    return formats.deliver((codes, scales), out)


def dequantize_fp8(
    codes: Tensor,
    scales: Tensor,
    block: tuple[int, int],
    dtype: torch.dtype = torch.bfloat16,
    *,
    out: Tensor | None = None,
) -> Tensor:
    """Return ``codes * scales``, each block with its scale.

    Args:
        codes: ``[..., rows, columns]`` (or ``[columns]``) ``torch.float8_e4m3fn``.
        scales: float32 or ``torch.float8_e8m0fnu``, one per block, as ``quantize_fp8`` returns
            them. Checkpoints call this factor an inverse scale.
        block: rows and columns of a block.
        dtype: float32, bfloat16 or float16.
        out: a tensor for the result. It may not share memory with ``codes`` or ``scales``.

    Returns:
        A tensor of ``dtype`` with the shape of ``codes``.

    Raises:
        TypeError: a wrong dtype.
        ValueError: scales of another shape than the blocks ask for, or a block size under 1.

    Guarantees: the product is rounded once to float32, then to ``dtype``, both to nearest even.
    NaN codes give NaN. Bits other than a NaN's are equal to ``abyssal.reference.dequantize_fp8``.
    The storage of a new result of 32 MB or more cannot be resized.

    Source: DeepSeek-V3 ``inference/kernel.py``.
    """
    if out is not None and type(out) is Tensor and out.dtype is dtype:
        if _done("dequantize_fp8", codes, scales, out, rest=(tuple(block),)):
            return out
    formats.check_fp8_codes(codes, scales, block, dtype)
    formats.check_out("out", out, codes.shape, dtype)
    if not is_direct(codes):
        values = torch.ops.abyssal.dequantize_fp8(codes, scales, list(block), dtype)
        return formats.deliver_one(values, out)
    result = _place(out, codes.shape, dtype)
    core().dequantize_fp8(_rows(codes), plain(scales), result, tuple(block))
    return formats.deliver_one(result, out)


def quantize_mxfp4(x: Tensor, *, out: tuple[Tensor, Tensor] | None = None) -> tuple[Tensor, Tensor]:
    """Quantize to MXFP4: e2m1 elements, one power-of-two scale per 32 columns.

    Args:
        x: ``[..., columns]`` float32, bfloat16 or float16; 32 divides ``columns``.
        out: tensors for the two results. They may not share memory with each other or with ``x``.

    Returns:
        ``(codes, scales)``, both uint8: ``[..., columns / 2]``, two elements to a byte, the
        earlier one in the lower half; and ``[..., columns / 32]``, the scale's exponent plus 127.

    Raises:
        TypeError: a wrong dtype.
        ValueError: a NaN in ``x``, or a number of columns that 32 does not divide.

    Guarantees: the scale is the least power of two not below ``amax / 6``, held to exponents -127
    to 127; a block of zeros has scale code 0. Elements are rounded to nearest even and saturate at
    6 scales; a zero keeps its sign. No gradient is recorded. Bits are equal to
    ``abyssal.reference.quantize_mxfp4``.

    Source: Open Compute Project, Microscaling Formats 1.0.
    """
    if out is not None and len(out) == 2 and _done("quantize_mxfp4", x, *out):
        return out
    check_dtype("x", x, FLOATS)
    formats.check_fp4_input(x)
    leading, columns = x.shape[:-1], x.shape[-1]
    halves, blocks = (*leading, columns // 2), (*leading, columns // formats.FP4_BLOCK)
    given = formats.check_pair(out, (halves, torch.uint8), (blocks, torch.uint8))
    if x.requires_grad:
        x = x.detach()
    if not is_direct(x):
        return formats.deliver(torch.ops.abyssal.quantize_mxfp4(x), out)
    codes = _place(given[0], halves, torch.uint8)
    scales = _place(given[1], blocks, torch.uint8)
    core().quantize_mxfp4(_rows(x), codes, scales)
    return formats.deliver((codes, scales), out)


def dequantize_mxfp4(
    codes: Tensor,
    scales: Tensor,
    dtype: torch.dtype = torch.bfloat16,
    *,
    out: Tensor | None = None,
) -> Tensor:
    """Return the values of MXFP4 codes.

    Args:
        codes: ``[..., columns / 2]`` uint8 (or int8, as checkpoints store them).
        scales: ``[..., columns / 32]`` uint8 or ``torch.float8_e8m0fnu``.
        dtype: float32, bfloat16 or float16.
        out: a tensor for the result. It may not share memory with ``codes`` or ``scales``.

    Returns:
        ``[..., columns]`` of ``dtype``.

    Raises:
        TypeError: a wrong dtype.
        ValueError: a number of code columns that 16 does not divide, or scales of another shape
            than that asks for.

    Guarantees: exact in float32 wherever float32 holds the value; scale code 255 gives NaN. Bits
    other than a NaN's are equal to ``abyssal.reference.dequantize_mxfp4``. The storage of a new
    result of 32 MB or more cannot be resized.

    Source: Open Compute Project, Microscaling Formats 1.0.
    """
    if out is not None and type(out) is Tensor and out.dtype is dtype:
        if _done("dequantize_mxfp4", codes, scales, out):
            return out
    formats.check_fp4_codes(codes, scales, dtype)
    shape = (*codes.shape[:-1], codes.shape[-1] * 2)
    formats.check_out("out", out, shape, dtype)
    if not is_direct(codes):
        values = torch.ops.abyssal.dequantize_mxfp4(codes, scales, dtype)
        return formats.deliver_one(values, out)
    result = _place(out, shape, dtype)
    packed, exponents = _rows(codes).view(torch.uint8), scales.contiguous().view(torch.uint8)
    core().dequantize_mxfp4(packed, exponents, result)
    return formats.deliver_one(result, out)
