"""Block formats for weights and activations, in plain PyTorch: FP8 e4m3 and MXFP4.

    FP8   : one float32 scale per block of rows x columns;  code = e4m3(clamp(x / scale, -448, 448))
    MXFP4 : one power-of-two scale per 32 columns;          code = e2m1(x / scale), two codes to a
    byte

Everything is computed in float32 with true quotients, so the codes are defined to the last bit.
"""

import torch
from torch import Tensor

from . import formats
from .checks import FLOATS, SCALE_FORMATS, check_choice, check_dtype

LARGEST_FP8 = 448.0
SMALLEST_AMAX = 1e-4
LARGEST_FP4 = 6.0
FP4_BLOCK = 32
# Values of the eight e2m1 codes without sign, and the midpoints between neighbors.
_FP4_VALUES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
_FP4_MIDPOINTS = (0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0)


def _spread(scales: Tensor, block: tuple[int, int], rows: int, columns: int) -> Tensor:
    """Repeat each block's scale over its elements and cut the ragged edges."""
    spread = scales.repeat_interleave(block[0], dim=-2)[..., :rows, :]
    return spread.repeat_interleave(block[1], dim=-1)[..., :columns]


def _block_amax(x: Tensor, block: tuple[int, int]) -> Tensor:
    rows, columns = x.shape[-2:]
    if x.numel() == 0:  # torch before 2.10 pads no empty tensor
        return x.new_zeros(*x.shape[:-2], -(-rows // block[0]), -(-columns // block[1]))
    padding = (0, -columns % block[1], 0, -rows % block[0])
    padded = torch.nn.functional.pad(x.abs().nan_to_num(nan=0.0, posinf=float("inf")), padding)
    down, across = padded.shape[-2] // block[0], padded.shape[-1] // block[1]
    tiles = padded.reshape(*x.shape[:-2], down, block[0], across, block[1])
    return tiles.amax(dim=(-3, -1))


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
        out: tensors for the two results.

    Returns:
        ``(codes, scales)``: ``torch.float8_e4m3fn`` of x's shape, and float32
        ``[..., ceil(rows / block[0]), ceil(columns / block[1])]``.

    Raises:
        TypeError: a wrong dtype.
        ValueError: no columns, a block size under 1, or an unknown ``scale_format``.

    Guarantees: ``scale = max(amax, 1e-4) / 448`` and ``code = e4m3(clamp(x / scale, -448, 448))``,
    quotients in float32, rounded to nearest even. A NaN stays NaN, with its sign, and does not
    enter ``amax``. A block that holds an infinity has an infinite scale: its finite elements become
    zero, its infinite ones NaN with their sign. Zero rows give empty results.

    Source: DeepSeek-V3 ``inference/kernel.py``.
    """
    check_dtype("x", x, FLOATS)
    check_choice("scale_format", scale_format, SCALE_FORMATS)
    formats.check_fp8_input(x, block)
    wanted = (x.shape, torch.float8_e4m3fn), (formats.scale_shape(x.shape, block), torch.float32)
    formats.check_pair(out, *wanted)
    matrix = (x if x.dim() > 1 else x.unsqueeze(0)).to(torch.float32)
    scales = _block_amax(matrix, block).clamp(min=SMALLEST_AMAX) / LARGEST_FP8
    if scale_format == "ue8m0":
        bits = scales.view(torch.int32)
        # A mantissa that is not zero carries into the exponent.
        scales = ((bits + 0x7FFFFF) & 0x7F800000).view(torch.float32)
    quotient = matrix / _spread(scales, block, *matrix.shape[-2:])
    # The sign of the NaN that inf / inf makes differs between processors: take it from the element.
    quotient = torch.where(quotient.isnan(), torch.copysign(quotient, matrix), quotient)
    codes = quotient.clamp(-LARGEST_FP8, LARGEST_FP8).to(torch.float8_e4m3fn)
    results = (codes, scales) if x.dim() > 1 else (codes.squeeze(0), scales.squeeze(0))
    return formats.deliver(results, out)


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
        out: a tensor for the result.

    Returns:
        A tensor of ``dtype`` with the shape of ``codes``.

    Raises:
        TypeError: a wrong dtype.
        ValueError: scales of another shape than the blocks ask for, or a block size under 1.

    Guarantees: the product is rounded once to float32, then to ``dtype``, both to nearest even. NaN
    codes give NaN.

    Source: DeepSeek-V3 ``inference/kernel.py``.
    """
    formats.check_fp8_codes(codes, scales, block, dtype)
    formats.check_out("out", out, codes.shape, dtype)
    matrix = codes if codes.dim() > 1 else codes.unsqueeze(0)
    factors = formats.scales_to_float(scales if codes.dim() > 1 else scales.unsqueeze(0))
    values = matrix.to(torch.float32) * _spread(factors, block, *matrix.shape[-2:])
    return formats.deliver_one(values.to(dtype).reshape(codes.shape), out)


def quantize_mxfp4(x: Tensor, *, out: tuple[Tensor, Tensor] | None = None) -> tuple[Tensor, Tensor]:
    """Quantize to MXFP4: e2m1 elements, one power-of-two scale per 32 columns.

    Args:
        x: ``[..., columns]`` float32, bfloat16 or float16; 32 divides ``columns``.
        out: tensors for the two results.

    Returns:
        ``(codes, scales)``, both uint8: ``[..., columns / 2]``, two elements to a byte, the earlier
        one in the lower half; and ``[..., columns / 32]``, the scale's exponent plus 127.

    Raises:
        TypeError: a wrong dtype.
        ValueError: a NaN in ``x``, or a number of columns that 32 does not divide.

    Guarantees: the scale is the least power of two not below ``amax / 6``, held to exponents -127
    to 127; a block of zeros has scale code 0. Elements are rounded to nearest even and saturate at
    6 scales; a zero keeps its sign.

    Source: Open Compute Project, Microscaling Formats 1.0.
    """
    check_dtype("x", x, FLOATS)
    formats.check_fp4_input(x)
    *leading, columns = x.shape
    wanted = ((*leading, columns // 2), torch.uint8), ((*leading, columns // 32), torch.uint8)
    formats.check_pair(out, *wanted)
    values = x.to(torch.float32)
    if values.isnan().any():
        raise ValueError(f"x holds {int(values.isnan().sum())} NaN; MXFP4 has no code for it")
    shape = (*values.shape[:-1], values.shape[-1] // FP4_BLOCK, FP4_BLOCK)
    blocks = values.reshape(shape).to(torch.float64)
    amax = blocks.abs().amax(dim=-1)
    # amax = mantissa * 2**exponent with a mantissa in [0.5, 1): 6 * 2**k reaches it from 0.75
    # downward.
    mantissa, exponent = torch.frexp(amax)
    scales = (torch.where(mantissa <= 0.75, exponent - 3, exponent - 2) + 127).clamp(0, 254)
    scales = torch.where(amax == 0, 0, torch.where(amax.isinf(), 254, scales))
    # A power of two, written as its bits: the product is exact in float64.
    inverse = ((127 - scales.to(torch.int64) + 1023) << 52).view(torch.float64)
    quotient = blocks * inverse.unsqueeze(-1)
    size = quotient.abs()
    # Rounding to nearest even: a midpoint goes to the even code, upward where the lower code is
    # odd.
    code = torch.zeros_like(size, dtype=torch.int32)
    for lower, midpoint in enumerate(_FP4_MIDPOINTS):
        code += (size >= midpoint) if lower % 2 else (size > midpoint)
    code = (code + 8 * quotient.signbit()).flatten(-2)
    codes = (code[..., 0::2] + 16 * code[..., 1::2]).to(torch.uint8)
    return formats.deliver((codes, scales.to(torch.uint8)), out)


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
        out: a tensor for the result.

    Returns:
        ``[..., columns]`` of ``dtype``.

    Raises:
        TypeError: a wrong dtype.
        ValueError: a number of code columns that 16 does not divide, or scales of another shape
            than that asks for.

    Guarantees: exact in float32 wherever float32 holds the value; scale code 255 gives NaN.

    Source: Open Compute Project, Microscaling Formats 1.0.
    """
    formats.check_fp4_codes(codes, scales, dtype)
    formats.check_out("out", out, (*codes.shape[:-1], codes.shape[-1] * 2), dtype)
    bytes_ = codes.view(torch.uint8).to(torch.int64)
    nibbles = torch.stack((bytes_ & 15, bytes_ >> 4), dim=-1).flatten(-2)
    signed = torch.tensor(_FP4_VALUES + tuple(-value for value in _FP4_VALUES), device=codes.device)
    factors = formats.scales_to_float(scales.view(torch.float8_e8m0fnu))
    values = signed[nibbles] * factors.repeat_interleave(FP4_BLOCK, dim=-1)
    return formats.deliver_one(values.to(dtype), out)
