"""PyTorch modules of the DeepSeek family: plain or packed weights, one latent cache."""

from abyssal.nn.batch import SEGMENT, Batch, Span
from abyssal.nn.linear import Linear
from abyssal.nn.mla import MLA
from abyssal.nn.moe import MLP, MoE
from abyssal.nn.norm import RMSNorm
from abyssal.nn.rotary import (
    RotaryEmbedding,
    YarnScaling,
    apply_rotary,
    inverse_frequencies,
    yarn_mscale,
)
from abyssal.nn.router import Router

__all__ = [
    "MLA",
    "MLP",
    "SEGMENT",
    "Batch",
    "Linear",
    "MoE",
    "RMSNorm",
    "RotaryEmbedding",
    "Router",
    "Span",
    "YarnScaling",
    "apply_rotary",
    "inverse_frequencies",
    "yarn_mscale",
]
