"""Every operation in plain PyTorch: readable, shipped, and what the fast ones are compared with.

Nothing here calls compiled code of this package.
"""

from .attention import mla_attention, write_latents
from .decoder import LayerWeights, decoder_layer
from .experts import expert_output
from .gate import gate_logits, gate_route
from .norm import greedy, rms_norm
from .products import fp8_linear, linear, mxfp4_linear
from .quant import dequantize_fp8, dequantize_mxfp4, quantize_fp8, quantize_mxfp4
from .routing import permute, route, route_table
from .scores import router_scores

__all__ = [
    "LayerWeights",
    "decoder_layer",
    "dequantize_fp8",
    "dequantize_mxfp4",
    "expert_output",
    "fp8_linear",
    "gate_logits",
    "gate_route",
    "greedy",
    "linear",
    "mla_attention",
    "mxfp4_linear",
    "permute",
    "quantize_fp8",
    "quantize_mxfp4",
    "rms_norm",
    "route",
    "route_table",
    "router_scores",
    "write_latents",
]
