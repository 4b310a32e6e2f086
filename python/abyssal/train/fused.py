"""Fused differentiable pieces of the training forward pass.

Training on a processor is bound by memory traffic as much as by arithmetic, so the four places that
would write the most intermediate tensors are functions with a hand-written backward pass: RMSNorm,
SwiGLU, the routed experts, and the cross entropy over the vocabulary. Each equals the plain
composition up to the rounding of f32.
"""

from __future__ import annotations

import threading
from concurrent.futures import CancelledError
from typing import Any

import torch
import torch.nn.functional as F
from torch.autograd.function import once_differentiable

#: Rows of logits that are in memory at a time.
LOGIT_ROWS = 1024


class _Interruptible(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, stop: threading.Event) -> torch.Tensor:  # noqa: ANN401
        ctx.stop = stop
        _check(stop)
        return x.view_as(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None]:  # noqa: ANN401
        _check(ctx.stop)
        return grad, None


def _check(stop: threading.Event) -> None:
    if stop.is_set():
        raise CancelledError


def interruptible(x: torch.Tensor, stop: threading.Event) -> torch.Tensor:
    """Return ``x``; the forward and the backward pass end here once ``stop`` is set.

    Raises:
        CancelledError: ``stop`` is set.
    """
    result: torch.Tensor = _Interruptible.apply(x, stop)
    return result


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, gain: torch.Tensor, eps: float) -> torch.Tensor:  # noqa: ANN401
        length = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        inverse = torch.rsqrt(length.square_().div_(x.shape[-1]).add_(eps))
        ctx.save_for_backward(x, gain, inverse)
        return (x * inverse).mul_(gain)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, None]:  # noqa: ANN401
        x, gain, inverse = ctx.saved_tensors
        unit = x * inverse
        grad_gain = (grad * unit).flatten(0, -2).sum(0)
        inner = grad * gain
        along = torch.linalg.vecdot(inner, unit).unsqueeze(-1).div_(x.shape[-1])
        return inner.addcmul_(unit, along, value=-1).mul_(inverse), grad_gain, None


def rms_norm(x: torch.Tensor, gain: torch.Tensor, eps: float = 1e-6) -> torch.Tensor:
    """Divide each row of ``x [..., n]`` by its root mean square and multiply by ``gain [n]``."""
    result: torch.Tensor = _RMSNorm.apply(x, gain, eps)
    return result


def _swiglu_backward(gate_up: torch.Tensor, grad: torch.Tensor, out: torch.Tensor) -> None:
    """Write the gradient of ``silu(gate) * up`` with respect to ``[gate, up]`` to ``out``."""
    inner = gate_up.shape[-1] // 2
    gate, up = gate_up[..., :inner], gate_up[..., inner:]
    sigmoid = torch.sigmoid(gate)
    silu = gate * sigmoid
    torch.mul(grad, silu, out=out[..., inner:])
    # silu' = sigmoid + silu * (1 - sigmoid)
    slope = torch.addcmul(sigmoid, silu, 1 - sigmoid)
    torch.mul(grad * up, slope, out=out[..., :inner])


class _SwiGLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate_up: torch.Tensor) -> torch.Tensor:  # noqa: ANN401
        inner = gate_up.shape[-1] // 2
        ctx.save_for_backward(gate_up)
        return F.silu(gate_up[..., :inner]).mul_(gate_up[..., inner:])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> torch.Tensor:  # noqa: ANN401
        (gate_up,) = ctx.saved_tensors
        out = torch.empty_like(gate_up)
        _swiglu_backward(gate_up, grad, out)
        return out


def swiglu(gate_up: torch.Tensor) -> torch.Tensor:
    """Return ``silu(gate) * up`` of ``gate_up [..., 2 n]``, the gate first."""
    result: torch.Tensor = _SwiGLU.apply(gate_up)
    return result


class _Experts(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401
        x: torch.Tensor,
        weights: torch.Tensor,
        indices: torch.Tensor,
        gate_up: torch.Tensor,
        down: torch.Tensor,
    ) -> torch.Tensor:
        num_tokens, top_k = indices.shape
        num_experts, hidden, inner = down.shape
        flat = indices.reshape(-1)
        order = torch.argsort(flat, stable=True)
        counts: list[int] = torch.bincount(flat, minlength=num_experts).tolist()
        token = order // top_k
        rows = x.index_select(0, token)
        weight = weights.reshape(-1).index_select(0, order)
        middle = x.new_empty(num_tokens * top_k, 2 * inner)
        active = x.new_empty(num_tokens * top_k, inner)
        result = x.new_empty(num_tokens * top_k, hidden)
        begin = 0
        for expert, count in enumerate(counts):
            if count == 0:
                continue
            part = slice(begin, begin + count)
            torch.mm(rows[part], gate_up[expert].t(), out=middle[part])
            torch.mul(F.silu(middle[part, :inner]), middle[part, inner:], out=active[part])
            torch.mm(active[part], down[expert].t(), out=result[part])
            begin += count
        ctx.save_for_backward(rows, weight, token, order, middle, active, result, gate_up, down)
        ctx.counts = counts
        return torch.zeros_like(x).index_add_(0, token, result * weight[:, None])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:  # noqa: ANN401
        rows, weight, token, order, middle, active, result, gate_up, down = ctx.saved_tensors
        grad_result = grad.index_select(0, token)
        grad_weight = torch.empty_like(weight)
        grad_weight[order] = torch.linalg.vecdot(grad_result, result)
        grad_result.mul_(weight[:, None])
        grad_rows = torch.empty_like(rows)
        grad_gate_up, grad_down = torch.zeros_like(gate_up), torch.zeros_like(down)
        begin = 0
        for expert, count in enumerate(ctx.counts):
            if count == 0:
                continue
            part = slice(begin, begin + count)
            out = grad_result[part]
            torch.mm(out.t(), active[part], out=grad_down[expert])
            grad_middle = torch.empty_like(middle[part])
            _swiglu_backward(middle[part], out @ down[expert], grad_middle)
            torch.mm(grad_middle.t(), rows[part], out=grad_gate_up[expert])
            torch.mm(grad_middle, gate_up[expert], out=grad_rows[part])
            begin += count
        grad_x = torch.zeros_like(grad).index_add_(0, token, grad_rows)
        return grad_x, grad_weight.view(grad.shape[0], -1), None, grad_gate_up, grad_down


def experts(
    x: torch.Tensor,
    weights: torch.Tensor,
    indices: torch.Tensor,
    gate_up: torch.Tensor,
    down: torch.Tensor,
) -> torch.Tensor:
    """Add up the chosen experts of every token.

    Args:
        x: f32 ``[tokens, hidden]``.
        weights: f32 ``[tokens, top_k]``, of each chosen expert.
        indices: int64 ``[tokens, top_k]``, the chosen experts, distinct in a row.
        gate_up: f32 ``[experts, 2 inner, hidden]``, the gate's rows first.
        down: f32 ``[experts, hidden, inner]``.

    Returns:
        f32 ``[tokens, hidden]``: ``sum_k weights[k] * down @ (silu(gate @ x) * (up @ x))``.

    Guarantees: an expert that no token chose gets a zero gradient; tokens stay in their order
    within an expert, so the result is the same on every run with the same number of threads.
    """
    result: torch.Tensor = _Experts.apply(x, weights, indices, gate_up, down)
    return result


class _CrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401
        x: torch.Tensor,
        head: torch.Tensor,
        targets: torch.Tensor,
        scale: float,
    ) -> torch.Tensor:
        grad_x, grad_head = torch.empty_like(x), torch.zeros_like(head)
        total = torch.zeros((), dtype=torch.float64)
        for begin in range(0, len(x), LOGIT_ROWS):
            part = slice(begin, begin + LOGIT_ROWS)
            rows, wanted = x[part], targets[part, None]
            logits = rows @ head.t()
            norm = torch.logsumexp(logits, 1, keepdim=True)
            total += (norm - logits.gather(1, wanted)).double().sum()
            # The gradient of each row is softmax(logits) - onehot(target).
            logits.sub_(norm).exp_()
            logits.scatter_add_(1, wanted, torch.full_like(norm, -1.0))
            logits.mul_(scale)
            torch.mm(logits, head, out=grad_x[part])
            grad_head.addmm_(logits.t(), rows)
        ctx.save_for_backward(grad_x, grad_head)
        return (total * scale).float()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:  # noqa: ANN401
        grad_x, grad_head = ctx.saved_tensors
        return grad_x * grad, grad_head * grad, None, None


def cross_entropy(
    x: torch.Tensor, head: torch.Tensor, targets: torch.Tensor, scale: float
) -> torch.Tensor:
    """Sum the cross entropy of ``x @ head.T`` against ``targets``, in nats, times ``scale``.

    Args:
        x: f32 ``[tokens, hidden]``.
        head: f32 ``[vocab, hidden]``.
        targets: int64 ``[tokens]``.
        scale: Multiplies the sum, for instance 1 / tokens.

    Guarantees: never holds more than 1,024 rows of logits; the gradients are made in the forward
    pass, where the logits are at hand.
    """
    result: torch.Tensor = _CrossEntropy.apply(x, head, targets, scale)
    return result
