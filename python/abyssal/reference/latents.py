"""Rows of a latent cache in FP8.

A cache of ``torch.uint8`` holds, for each token, the latent's FP8 codes, a float32 scale for each
128 of them, and the rotated key in bfloat16, byte after byte.

Source: FlashMLA, the FP8 KV cache of its sparse decoding kernel (656 bytes for 512 and 64).
"""

from __future__ import annotations

import torch
from torch import Tensor

from .checks import LATENT_BLOCK
from .quant import dequantize_fp8, quantize_fp8


def pack_rows(latent: Tensor, key: Tensor) -> Tensor:
    """Pack latents ``[tokens, kv_lora]`` and keys ``[tokens, rope]``; return uint8 rows."""
    codes, scales = quantize_fp8(latent, (1, LATENT_BLOCK))
    parts = (codes, scales, key.to(torch.bfloat16))
    return torch.cat([part.contiguous().view(torch.uint8) for part in parts], dim=-1)


def unpack_rows(rows: Tensor, kv_lora: int) -> Tensor:
    """Return ``[tokens, kv_lora + rope]`` of rows of numbers or of bytes, the latter in float32."""
    if rows.dtype != torch.uint8:
        return rows
    scales = 4 * -(-kv_lora // LATENT_BLOCK)
    parts = rows.tensor_split((kv_lora, kv_lora + scales), dim=-1)
    codes, scale, key = (part.contiguous() for part in parts)
    latent = dequantize_fp8(
        codes.view(torch.float8_e4m3fn), scale.view(torch.float32), (1, LATENT_BLOCK), torch.float32
    )
    return torch.cat((latent, key.view(torch.bfloat16).float()), dim=-1)
