"""Mixture of experts: routed experts grouped by expert, and the shared expert."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from abyssal import ops
from abyssal.nn.linear import Linear
from abyssal.nn.router import Router


class MLP(nn.Module):
    """``down(silu(gate(x)) * up(x))``.

    Args:
        hidden_size: Width of a token.
        inner_size: Width of the gate and up projections.
        dtype: Type of plain weights.
    """

    def __init__(
        self, hidden_size: int, inner_size: int, *, dtype: torch.dtype | None = None
    ) -> None:
        super().__init__()
        self.gate = Linear(hidden_size, inner_size, dtype=dtype)
        self.up = Linear(hidden_size, inner_size, dtype=dtype)
        self.down = Linear(inner_size, hidden_size, dtype=dtype)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map ``x [tokens, hidden_size]`` to the same shape and type."""
        output: torch.Tensor = self.down(F.silu(self.gate(x)) * self.up(x))
        return output


class MoE(nn.Module):
    """Routed experts beside a shared one.

    Args:
        router: Chooses the experts; indices at or above ``num_experts`` return their input (zero
            experts).
        num_experts: Routed experts that have weights.
        hidden_size: Width of a token.
        inner_size: Width of one expert.
        shared_inner_size: Width of the shared expert; 0 for none.
        dtype: Type of plain weights.

    Guarantees: a token's expert outputs are added in f32 in ascending expert index, the shared
    expert last, and rounded once to the type of the input.
    """

    def __init__(
        self,
        router: Router,
        num_experts: int,
        hidden_size: int,
        inner_size: int,
        shared_inner_size: int = 0,
        *,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.router = router
        self.experts = nn.ModuleList(
            MLP(hidden_size, inner_size, dtype=dtype) for _ in range(num_experts)
        )
        self.shared = (
            MLP(hidden_size, shared_inner_size, dtype=dtype) if shared_inner_size else None
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map ``x [tokens, hidden_size]`` to the same shape and type."""
        weights, indices = self.router(x)
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
