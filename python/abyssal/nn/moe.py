"""Mixture of experts: routed experts grouped by expert, and the shared expert."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from abyssal import ops
from abyssal.nn.kept import Kept
from abyssal.nn.linear import Linear
from abyssal.nn.router import Router
from abyssal.ops.native import is_direct
from abyssal.reference.experts import Expert
from abyssal.reference.formats import ACTIVATIONS


def _hand_over(
    module: nn.Module,
    routed: list[MLP],
    shared: MLP | None,
    num_routes: int | None,
    limit: float | None,
) -> Kept[ops.Experts]:
    """Hand the weights over, unless the compiled code cannot read them where they lie."""
    mlps = routed if shared is None else [*routed, shared]
    experts = None
    if all(layer.bias is None and layer.readable for mlp in mlps for layer in mlp.parts):
        experts = ops.Experts(
            [mlp.weights for mlp in routed],
            None if shared is None else shared.weights,
            num_routes=num_routes,
            limit=limit,
        )
    return Kept(experts, module)


class FeedForward(nn.Module):
    """What the dense and the sparse feed-forward part share: one call of the compiled code."""

    def __init__(self) -> None:
        super().__init__()
        self._kept: Kept[ops.Experts] | None = None

    def _hand_over(self) -> Kept[ops.Experts]:
        raise NotImplementedError

    def _experts(self, x: torch.Tensor) -> ops.Experts | None:
        """Return the weights for the compiled code, if that can compute ``x``."""
        if not is_direct(x) or x.dtype not in ACTIVATIONS:
            return None
        if torch.is_grad_enabled() and any(weight.requires_grad for weight in self.parameters()):
            return None
        if self._kept is None or not self._kept.valid:
            self._kept = self._hand_over()
        return self._kept.compiled

    def path(self, x: torch.Tensor) -> str:
        """Name what computes ``x``: ``"compiled"`` (one call of this package) or ``"torch"``."""
        return "torch" if self._experts(x) is None else "compiled"


class MLP(FeedForward):
    """``down(silu(gate(x)) * up(x))``.

    Args:
        hidden_size: Width of a token.
        inner_size: Width of the gate and up projections.
        limit: Bounds gate from above, and up on both sides; None for no bound.
        dtype: Type of plain weights.
    """

    def __init__(
        self,
        hidden_size: int,
        inner_size: int,
        *,
        limit: float | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.limit = limit
        self.gate = Linear(hidden_size, inner_size, dtype=dtype)
        self.up = Linear(hidden_size, inner_size, dtype=dtype)
        self.down = Linear(inner_size, hidden_size, dtype=dtype)

    @property
    def parts(self) -> tuple[Linear, Linear, Linear]:
        """Gate, up and down."""
        return self.gate, self.up, self.down

    @property
    def weights(self) -> Expert:
        """Gate, up and down, each with the scales of a packed weight."""
        return [(layer.weight, layer.scales) for layer in self.parts]

    def _hand_over(self) -> Kept[ops.Experts]:
        return _hand_over(self, [], self, None, self.limit)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map ``x [tokens, hidden_size]`` to the same shape and type."""
        experts = self._experts(x)
        if experts is not None:
            return experts(x.flatten(0, -2)).view_as(x)
        opened, other = self.gate(x), self.up(x)
        if self.limit is not None:
            opened, other = opened.clamp(max=self.limit), other.clamp(-self.limit, self.limit)
        output: torch.Tensor = self.down(F.silu(opened) * other)
        return output


class MoE(FeedForward):
    """Routed experts beside a shared one.

    Args:
        router: Chooses the experts; indices at or above ``num_experts`` return their input (zero
            experts).
        num_experts: Routed experts that have weights.
        hidden_size: Width of a token.
        inner_size: Width of one expert.
        shared_inner_size: Width of the shared expert; 0 for none.
        limit: As for ``MLP``, for all experts.
        dtype: Type of plain weights.

    Guarantees: a token's expert outputs are added in f32 in ascending expert index, the shared
    expert last, and rounded once to the type of the input. On a CPU, where no gradient is recorded,
    all experts are one call (``path`` tells) that reads the weights where they lie.
    """

    def __init__(
        self,
        router: Router,
        num_experts: int,
        hidden_size: int,
        inner_size: int,
        shared_inner_size: int = 0,
        *,
        limit: float | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.router = router
        self.limit = limit
        self.experts = nn.ModuleList(
            MLP(hidden_size, inner_size, limit=limit, dtype=dtype) for _ in range(num_experts)
        )
        self.shared = (
            MLP(hidden_size, shared_inner_size, limit=limit, dtype=dtype)
            if shared_inner_size
            else None
        )

    def _hand_over(self) -> Kept[ops.Experts]:
        routed = [mlp for mlp in self.experts if isinstance(mlp, MLP)]
        return _hand_over(self, routed, self.shared, self.router.weight.shape[0], self.limit)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map ``x [tokens, hidden_size]`` to the same shape and type."""
        weights, indices = self.router(x)
        experts = self._experts(x)
        if experts is not None:
            return experts(x, weights, indices)
        return self._grouped(x, weights, indices)

    def _grouped(
        self, x: torch.Tensor, weights: torch.Tensor, indices: torch.Tensor
    ) -> torch.Tensor:
        """Call each expert with its tokens."""
        num_routes = self.router.weight.shape[0]
        order, offsets = ops.permute(indices, num_routes)
        tokens = order.long() // indices.shape[1]
        route_weights = weights.flatten()[order.long()].unsqueeze(1)
        bounds = offsets.tolist()
        total = torch.zeros(x.shape, dtype=torch.float32, device=x.device)
        for index, expert in enumerate(self.experts):
            start, end = bounds[index], bounds[index + 1]
            if start < end:
                rows = tokens[start:end]
                total.index_add_(0, rows, expert(x[rows]).float() * route_weights[start:end])
        start = bounds[len(self.experts)]
        if start < bounds[-1]:  # zero experts: the input itself
            total.index_add_(0, tokens[start:], x[tokens[start:]].float() * route_weights[start:])
        if self.shared is not None:
            total = total + self.shared(x).float()
        return total.to(x.dtype)
