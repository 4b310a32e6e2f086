"""A decoder layer as one call of the compiled code, where that can compute it."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import torch
from torch import nn

from abyssal import ops
from abyssal.nn import MLA, MLP, Linear, MoE, RMSNorm, Router
from abyssal.nn.kept import Kept
from abyssal.ops.native import is_direct
from abyssal.reference import LayerWeights
from abyssal.reference.decoder import Norm
from abyssal.reference.experts import Weight
from abyssal.reference.formats import ACTIVATIONS

if TYPE_CHECKING:
    from abyssal.models.layer import DecoderLayer


#: What is computed as the modules themselves would; a subclass may do otherwise.
_KNOWN = (MLA, MLP, Linear, MoE, RMSNorm, Router, nn.ModuleList)


def hand_over(layer: DecoderLayer) -> Kept[ops.DecoderLayer]:
    """Hand a layer's weights over, unless a part of it must be called as a module.

    That is a part that somebody replaced or gave a hook, a linear layer with a bias, and a weight
    that the compiled code cannot read where it lies.
    """
    attention, moe = layer.attention, layer.moe
    feed_forward = moe if moe is not None else cast(MLP, layer.mlp)
    children = (*attention.children(), *feed_forward.children())
    called = tuple(layer.children()) + children
    mlps = [module for module in feed_forward.modules() if isinstance(module, MLP)]
    linears = [module for module in attention.children() if isinstance(module, Linear)]
    linears += [part for mlp in mlps for part in mlp.parts]
    norms = [module for module in called if isinstance(module, RMSNorm)]
    plain = [norm.weight for norm in norms]
    if moe is not None:
        plain.append(moe.router.weight)
    fits = (
        all(type(module) in _KNOWN for module in layer.modules() if module is not layer)
        and all(linear.bias is None and linear.readable for linear in linears)
        and all(weight.dtype in ACTIVATIONS and weight.is_contiguous() for weight in plain)
        and layer.dtype in ACTIVATIONS
    )
    compiled = ops.DecoderLayer(_weights(layer)) if fits else None
    return Kept(compiled, layer, called)


def takes(hidden: torch.Tensor, cache: torch.Tensor) -> bool:
    """Return whether the compiled code can compute this stream over this cache."""
    return (
        is_direct(hidden)
        and is_direct(cache)
        and hidden.dtype == torch.float32
        and cache.dtype in (*ACTIVATIONS, torch.uint8)
        and cache.is_contiguous()
        and not torch.is_grad_enabled()
    )


def _weights(layer: DecoderLayer) -> LayerWeights:
    attention, moe = layer.attention, layer.moe
    down = None
    if attention.q_down is not None:
        down = (_weight(attention.q_down), _norm(cast(RMSNorm, attention.q_norm)))
    routed = [] if moe is None else [cast(MLP, expert).weights for expert in moe.experts]
    shared = layer.mlp if moe is None else moe.shared
    return LayerWeights(
        input_norm=_norm(layer.input_norm),
        query_down=down,
        query=_weight(cast(Linear, attention.q or attention.q_up)),
        kv_down=_weight(attention.kv_down),
        kv_norm=_norm(attention.kv_norm),
        kv_up=_weight(attention.kv_up),
        output=_weight(attention.output),
        num_heads=attention.num_heads,
        rope_dim=attention.rope_dim,
        nope_dim=attention.nope_dim,
        v_dim=attention.v_dim,
        scale=attention.scale,
        post_norm=_norm(layer.post_norm),
        router=None if moe is None else moe.router,
        routed=routed,
        shared=None if shared is None else shared.weights,
        limit=cast(MLP, layer.mlp).limit if moe is None else moe.limit,
    )


def _weight(linear: Linear) -> Weight:
    return linear.weight, linear.scales


def _norm(norm: RMSNorm) -> Norm:
    return norm.weight, norm.eps
