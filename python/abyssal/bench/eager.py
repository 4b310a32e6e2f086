"""The same work in plain eager PyTorch, as model code for it is usually written: the peer.

``abyssal.reference`` is not the peer: it is written to be exact and read, not to be fast.
"""

from __future__ import annotations

import torch
from torch import Tensor


def route_grouped(logits: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """DeepSeek-V3's rule: 8 groups, 4 kept, 8 experts."""
    experts = logits.shape[1]
    scores = logits.sigmoid()
    keys = scores + bias
    groups = keys.view(-1, 8, experts // 8).topk(2, dim=-1)[0].sum(-1)
    kept = torch.topk(groups, 4, dim=-1, sorted=False)[1]
    mask = torch.zeros_like(groups).scatter_(1, kept, 1).unsqueeze(-1)
    mask = mask.expand(-1, 8, experts // 8).reshape(-1, experts)
    chosen = torch.topk(keys.masked_fill(~mask.bool(), float("-inf")), 8, dim=-1, sorted=False)[1]
    weights = scores.gather(1, chosen)
    return weights / (weights.sum(-1, keepdim=True) + 1e-20) * 2.5, chosen


def route_ungrouped(logits: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """Kimi K2's rule: sigmoid, 8 experts of all."""
    scores = logits.sigmoid()
    chosen = torch.topk(scores + bias, 8, dim=-1, sorted=False)[1]
    weights = scores.gather(1, chosen)
    return weights / (weights.sum(-1, keepdim=True) + 1e-20) * 2.827, chosen


def route_softmax(logits: Tensor) -> tuple[Tensor, Tensor]:
    """DeepSeek-V2-Lite's rule: softmax, 6 experts of all."""
    weights, chosen = torch.topk(logits.softmax(dim=-1, dtype=torch.float32), 6, dim=-1)
    return weights, chosen


def permute(indices: Tensor, num_experts: int) -> tuple[Tensor, Tensor]:
    """Group (token, choice) pairs by expert."""
    flat = indices.flatten()
    counts = torch.bincount(flat, minlength=num_experts)
    return flat.argsort(stable=True), counts.cumsum(0)


def quantize_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """FP8 in blocks of 1 x 128."""
    y = x.view(x.shape[0], -1, 128)
    scale = y.abs().amax(-1).float().clamp(1e-4) / 448
    return (y / scale.unsqueeze(-1)).to(torch.float8_e4m3fn).view_as(x), scale


def quantize_blocks(x: Tensor) -> tuple[Tensor, Tensor]:
    """FP8 in blocks of 128 x 128."""
    m, n = x.shape
    y = x.view(m // 128, 128, n // 128, 128)
    scale = y.abs().float().amax((1, 3), keepdim=True).clamp(1e-4) / 448
    return (y / scale).to(torch.float8_e4m3fn).view(m, n), scale.squeeze((1, 3))


def dequantize_blocks(
    codes: Tensor, scales: Tensor, dtype: torch.dtype, out: Tensor | None = None
) -> Tensor:
    """FP8 in blocks of 128 x 128 to bfloat16 or float32, the latter into a given result too."""
    m, n = codes.shape
    y = codes.view(m // 128, 128, n // 128, 128).float()
    if out is not None:
        torch.mul(y, scales[:, None, :, None], out=out.view(y.shape))
        return out
    return (y * scales[:, None, :, None]).view(m, n).to(dtype)


_FP4_VALUES = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0])
_FP4_TABLE = torch.cat([_FP4_VALUES, -_FP4_VALUES])
# Midpoints of neighbors; a number at one goes down unless the lower neighbor's code is odd.
_FP4_MIDPOINTS = torch.tensor([0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0])
_FP4_MIDPOINTS[1::2] = torch.nextafter(_FP4_MIDPOINTS[1::2], torch.tensor(0.0))


def quantize_mxfp4(x: Tensor) -> tuple[Tensor, Tensor]:
    """MXFP4 by comparing with the midpoints between its values."""
    y = x.float().view(*x.shape[:-1], -1, 32)
    amax = y.abs().amax(-1, keepdim=True)
    mantissa, exponent = torch.frexp(amax / 6)
    exponent = (exponent - (mantissa == 0.5).int()).clamp(-127, 127)
    scaled = y * torch.exp2(-exponent.float())
    codes = torch.bucketize(scaled.abs(), _FP4_MIDPOINTS) + scaled.signbit() * 8
    pairs = codes.to(torch.uint8).view(*x.shape[:-1], -1, 2)
    packed = pairs[..., 0] | pairs[..., 1] << 4
    return packed, (exponent.squeeze(-1) + 127).to(torch.uint8)


def dequantize_mxfp4(codes: Tensor, scales: Tensor) -> Tensor:
    """MXFP4 to bfloat16 by table look-up."""
    nibbles = torch.stack((codes & 15, codes >> 4), dim=-1).flatten(-2)
    values = _FP4_TABLE[nibbles.int()].view(*scales.shape, 32)
    factors = torch.exp2(scales.float() - 127).unsqueeze(-1)
    return (values * factors).flatten(-2).to(torch.bfloat16)
