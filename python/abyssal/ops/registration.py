"""The operations as ``torch.ops.abyssal``: schemas, kernels, shapes for tracing, gradients.

CPU tensors go to the compiled code, tensors of any other device to the reference. The public
functions of this package call the dispatcher only when they must (see ``native.is_direct``).
"""

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor

from abyssal import reference
from abyssal.reference import formats
from abyssal.reference.routing import expert_weights

from . import attention, gate, products, quant, routing

_SCHEMAS = {
    "route": "(Tensor logits, int top_k, str scoring, Tensor? correction_bias=None,"
    " int num_groups=1, int top_groups=1, str group_score='top2_sum', bool normalize=True,"
    " float scale=1.0) -> (Tensor, Tensor)",
    "gate_route": "(Tensor x, Tensor weight, int top_k, str scoring, Tensor? correction_bias=None,"
    " int num_groups=1, int top_groups=1, str group_score='top2_sum', bool normalize=True,"
    " float scale=1.0) -> (Tensor, Tensor, Tensor)",
    "route_table": "(Tensor logits, Tensor token_ids, Tensor table, str scoring,"
    " bool normalize=True, float scale=1.0) -> (Tensor, Tensor)",
    "permute": "(Tensor indices, int num_experts) -> (Tensor, Tensor)",
    "quantize_fp8": "(Tensor x, int[2] block=[1, 128], str scale_format='f32') -> (Tensor, Tensor)",
    "dequantize_fp8": "(Tensor codes, Tensor scales, int[2] block,"
    " ScalarType dtype=bfloat16) -> Tensor",
    "quantize_mxfp4": "(Tensor x) -> (Tensor, Tensor)",
    "dequantize_mxfp4": "(Tensor codes, Tensor scales, ScalarType dtype=bfloat16) -> Tensor",
    "linear": "(Tensor x, Tensor weight) -> Tensor",
    "fp8_linear": "(Tensor x, Tensor codes, Tensor scales) -> Tensor",
    "mxfp4_linear": "(Tensor x, Tensor codes, Tensor scales) -> Tensor",
    "mla_attention": "(Tensor query, Tensor cos, Tensor sin, Tensor cache, Tensor spans,"
    " Tensor block_tables, Tensor up, Tensor? up_scales, int page_size, float scale) -> Tensor",
    "write_latents": "(Tensor values, Tensor norm, Tensor cos, Tensor sin, Tensor(a!) cache,"
    " Tensor slots, float eps) -> ()",
}
_ROUTE: tuple[str, ...] = (
    "top_k",
    "scoring",
    "correction_bias",
    "num_groups",
    "top_groups",
    "group_score",
)
_WEIGHTING: tuple[str, ...] = ("normalize", "scale")
# Positional arguments, and the names of the others.
_KEYWORDS: dict[str, tuple[int, tuple[str, ...]]] = {
    "route_table": (3, ("scoring", *_WEIGHTING)),
    "mla_attention": (8, ("page_size", "scale")),
    "write_latents": (6, ("eps",)),
}

Operation = Callable[..., Any]


class _Context(Protocol):
    """What an autograd context offers here."""

    saved_tensors: tuple[Tensor, ...]
    scoring: str
    weighting: tuple[bool, float]
    rest: int

    def save_for_backward(self, *tensors: Tensor) -> None: ...
    def mark_non_differentiable(self, *tensors: Tensor) -> None: ...


def _kernel(name: str, function: Operation) -> Operation:
    """Adapt a public function to the positional arguments of its schema.

    Tensors lose their gradient and their subclass, so that the function finds nothing left for the
    dispatcher to do.
    """
    positional = {"route": 1, "gate_route": 2}.get(name)
    names: tuple[str, ...] = (*_ROUTE, *_WEIGHTING)
    if name in _KEYWORDS:
        positional, names = _KEYWORDS[name]

    def kernel(*arguments: object) -> object:
        bare = [
            argument.detach().as_subclass(Tensor) if isinstance(argument, Tensor) else argument
            for argument in arguments
        ]
        if positional is None:
            return function(*bare)
        return function(*bare[:positional], **dict(zip(names, bare[positional:], strict=False)))

    return kernel


def _routed(logits: Tensor, top_k: int) -> tuple[Tensor, Tensor]:
    shape = (logits.shape[0], top_k)
    return (
        logits.new_empty(shape, dtype=torch.float32),
        logits.new_empty(shape, dtype=torch.int32),
    )


def _fake_route(logits: Tensor, top_k: int, *_: object) -> tuple[Tensor, Tensor]:
    return _routed(logits, top_k)


def _with_logits(function: Operation) -> Operation:
    """Let a gate return its logits too: its gradient needs them."""

    def gate_route(x: Tensor, weight: Tensor, **rule: object) -> tuple[Tensor, Tensor, Tensor]:
        logits = x.new_empty((x.shape[0], weight.shape[0]), dtype=torch.float32)
        return *function(x, weight, logits=logits, **rule), logits

    return gate_route


def _fake_gate_route(
    x: Tensor, weight: Tensor, top_k: int, *_: object
) -> tuple[Tensor, Tensor, Tensor]:
    logits = x.new_empty((x.shape[0], weight.shape[0]), dtype=torch.float32)
    return *_routed(logits, top_k), logits


def _fake_route_table(
    logits: Tensor, token_ids: Tensor, table: Tensor, *_: object
) -> tuple[Tensor, Tensor]:
    return _routed(logits, table.shape[1])


def _fake_permute(indices: Tensor, num_experts: int) -> tuple[Tensor, Tensor]:
    order = indices.new_empty((indices.numel(),), dtype=torch.int32)
    return order, indices.new_empty((num_experts + 1,), dtype=torch.int32)


def _fake_quantize_fp8(
    x: Tensor, block: tuple[int, int] = (1, 128), *_: object
) -> tuple[Tensor, Tensor]:
    codes = x.new_empty(x.shape, dtype=torch.float8_e4m3fn)
    return codes, x.new_empty(formats.scale_shape(x.shape, block), dtype=torch.float32)


def _fake_dequantize_fp8(
    codes: Tensor, scales: Tensor, block: object, dtype: torch.dtype = torch.bfloat16
) -> Tensor:
    return codes.new_empty(codes.shape, dtype=dtype)


def _fake_quantize_mxfp4(x: Tensor) -> tuple[Tensor, Tensor]:
    *leading, columns = x.shape
    codes = x.new_empty((*leading, columns // 2), dtype=torch.uint8)
    return codes, x.new_empty((*leading, columns // formats.FP4_BLOCK), dtype=torch.uint8)


def _fake_dequantize_mxfp4(
    codes: Tensor, scales: Tensor, dtype: torch.dtype = torch.bfloat16
) -> Tensor:
    *leading, half = codes.shape
    return codes.new_empty((*leading, half * 2), dtype=dtype)


def _fake_linear(x: Tensor, weight: Tensor, *_: object) -> Tensor:
    return x.new_empty((*x.shape[:-1], weight.shape[0]))


def _fake_attention(query: Tensor, cos: Tensor, *others: Any) -> Tensor:  # noqa: ANN401
    tokens, heads, key = query.shape
    up: Tensor = others[4]
    return query.new_empty((tokens, heads, up.shape[0] // heads - key + 2 * cos.shape[1]))


def _fake_write(*_: object) -> None:
    pass


_FAKES: dict[str, Operation] = {
    "route": _fake_route,
    "gate_route": _fake_gate_route,
    "route_table": _fake_route_table,
    "permute": _fake_permute,
    "quantize_fp8": _fake_quantize_fp8,
    "dequantize_fp8": _fake_dequantize_fp8,
    "quantize_mxfp4": _fake_quantize_mxfp4,
    "dequantize_mxfp4": _fake_dequantize_mxfp4,
    "linear": _fake_linear,
    "fp8_linear": _fake_linear,
    "mxfp4_linear": _fake_linear,
    "mla_attention": _fake_attention,
    "write_latents": _fake_write,
}


def _save_routing(ctx: _Context, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    """Keep what the weights depend on; the weighting arguments are the last two of the schema."""
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(inputs[0], *output)
    ctx.scoring = next(value for value in inputs if isinstance(value, str))
    ctx.weighting = inputs[-2:]
    ctx.rest = len(inputs) - 1


def _route_backward(ctx: _Context, gradient: Tensor, _: object) -> tuple[Tensor | None, ...]:
    logits, weights, indices = ctx.saved_tensors
    result = _weights_backward(ctx, gradient, logits, weights, indices)
    return result, *(None,) * ctx.rest


def _weights_backward(
    ctx: _Context, gradient: Tensor, logits: Tensor, weights: Tensor, indices: Tensor
) -> Tensor:
    """Differentiate the weights of the chosen experts, as the reference computes them."""
    complete = ~weights.isnan().any(dim=1)
    with torch.enable_grad():
        given = logits.detach().requires_grad_()
        scores = reference.router_scores(given.to(torch.float32), ctx.scoring)
        again = expert_weights(scores, indices.to(torch.int64), complete, *ctx.weighting)
    (result,) = torch.autograd.grad(again, given, gradient)
    return result


def _save_gate(ctx: _Context, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    weights, indices, logits = output
    ctx.mark_non_differentiable(indices, logits)
    ctx.save_for_backward(inputs[0], inputs[1], logits, weights, indices)
    ctx.scoring = inputs[3]
    ctx.weighting = inputs[-2:]
    ctx.rest = len(inputs) - 2


def _gate_backward(ctx: _Context, gradient: Tensor, *_: object) -> tuple[Tensor | None, ...]:
    """Differentiate the weights by the logits, and the logits by both matrices."""
    x, weight, *routed = ctx.saved_tensors
    by_logits = _weights_backward(ctx, gradient, *routed)
    by_x = by_logits @ weight.to(torch.float32)
    by_weight = by_logits.T @ x.to(torch.float32)
    return by_x.to(x.dtype), by_weight.to(weight.dtype), *(None,) * ctx.rest


def _save_both(ctx: _Context, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _linear_backward(ctx: _Context, gradient: Tensor) -> tuple[Tensor, Tensor]:
    x, weight = ctx.saved_tensors
    wide = gradient.to(torch.float32)
    by_x = wide @ weight.to(torch.float32)
    by_weight = wide.flatten(0, -2).T @ x.flatten(0, -2).to(torch.float32)
    return by_x.to(x.dtype), by_weight.to(weight.dtype)


def _save_weight(ctx: _Context, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[1:])


def _fp8_backward(ctx: _Context, gradient: Tensor) -> tuple[Tensor, None, None]:
    codes, scales = ctx.saved_tensors
    weight = quant.dequantize_fp8(codes, scales, (128, 128), torch.float32)
    return (gradient.to(torch.float32) @ weight).to(gradient.dtype), None, None


def _mxfp4_backward(ctx: _Context, gradient: Tensor) -> tuple[Tensor, None, None]:
    codes, scales = ctx.saved_tensors
    weight = quant.dequantize_mxfp4(codes, scales, torch.float32)
    return (gradient.to(torch.float32) @ weight).to(gradient.dtype), None, None


_GRADIENTS: dict[str, tuple[Operation, Operation]] = {
    "route": (_route_backward, _save_routing),
    "route_table": (_route_backward, _save_routing),
    "gate_route": (_gate_backward, _save_gate),
    "linear": (_linear_backward, _save_both),
    "fp8_linear": (_fp8_backward, _save_weight),
    "mxfp4_linear": (_mxfp4_backward, _save_weight),
}


def _register() -> Any:  # noqa: ANN401 -- torch's class has no annotations
    make: Callable[..., Any] = torch.library.Library
    library = make("abyssal", "DEF")
    for name, schema in _SCHEMAS.items():
        library.define(name + schema, tags=(torch.Tag.pt2_compliant_tag,))
        homes = (routing, gate, products, quant, attention)
        home = next(module for module in homes if hasattr(module, name))
        both: list[Operation] = [getattr(home, name), getattr(reference, name)]
        if name == "gate_route":
            both = [_with_logits(function) for function in both]
        library.impl(name, _kernel(name, both[0]), "CPU")
        library.impl(name, _kernel(name, both[1]), "CompositeExplicitAutograd")
        torch.library.register_fake(f"abyssal::{name}", _FAKES[name], lib=library)
        if name in _GRADIENTS:
            backward, setup = _GRADIENTS[name]
            torch.library.register_autograd(
                f"abyssal::{name}", backward, setup_context=setup, lib=library
            )
    return library


# Kept for as long as the process: the registrations end with it.
LIBRARY = _register()
