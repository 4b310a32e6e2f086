"""Operations on tensors, each checked, fast on the CPU, and plain PyTorch elsewhere.

Those that PyTorch cannot trace are registered as ``torch.ops.abyssal`` too, and
``abyssal.reference`` has all of them under the same names.
"""

from . import registration
from .attention import mla_attention, write_latents
from .decoder import DecoderLayer
from .experts import Experts
from .gate import gate_route
from .norm import greedy, rms_norm
from .products import fp8_linear, linear, mxfp4_linear
from .quant import dequantize_fp8, dequantize_mxfp4, quantize_fp8, quantize_mxfp4
from .routing import permute, route, route_table

__all__ = [
    "DecoderLayer",
    "Experts",
    "dequantize_fp8",
    "dequantize_mxfp4",
    "fp8_linear",
    "gate_route",
    "greedy",
    "linear",
    "mla_attention",
    "mxfp4_linear",
    "permute",
    "quantize_fp8",
    "quantize_mxfp4",
    "registration",
    "rms_norm",
    "route",
    "route_table",
    "write_latents",
]
