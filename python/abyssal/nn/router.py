"""The expert router: scores in f32, selection by the rule of each model generation."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from abyssal import ops, reference

_GATE_DTYPES = (torch.float32, torch.bfloat16)


class Router(nn.Module):
    """Choose ``top_k`` experts for every token.

    Args:
        hidden_size: Width of a token.
        num_experts: Number of routed experts (zero experts included).
        top_k: Experts a token.
        scoring: ``"softmax"``, ``"sigmoid"`` or ``"sqrtsoftplus"``.
        num_groups: Groups of experts.
        top_groups: Groups kept for each token.
        group_score: ``"max"`` or ``"top2_sum"``.
        normalize: Whether the chosen weights are divided by their sum.
        scale: Multiplies the weights.
        correction_bias: Whether selection adds a learned bias (the weights never do).
        dtype: Type of the stored weight; the product is always f32.

    Guarantees: as ``abyssal.ops.route``: ties go to the lower index, the bias receives no gradient.
    On a CPU, where no gradient is recorded, product and routing are one call,
    ``abyssal.ops.gate_route``, whose rows do not depend on one another.
    """

    def __init__(
        self,
        hidden_size: int,
        num_experts: int,
        *,
        top_k: int,
        scoring: str,
        num_groups: int = 1,
        top_groups: int = 1,
        group_score: str = "top2_sum",
        normalize: bool = True,
        scale: float = 1.0,
        correction_bias: bool = False,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num_experts, hidden_size, dtype=dtype))
        self.correction_bias: torch.Tensor | None
        bias = torch.zeros(num_experts, dtype=torch.float32) if correction_bias else None
        self.register_buffer("correction_bias", bias)
        self.top_k = top_k
        self.scoring = scoring
        self.num_groups = num_groups
        self.top_groups = top_groups
        self.group_score = group_score
        self.normalize = normalize
        self.scale = scale

    def logits(self, x: torch.Tensor) -> torch.Tensor:
        """Router logits, f32 ``[tokens, num_experts]``, of ``x [tokens, hidden_size]``."""
        return F.linear(x.float(), self.weight.float())

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Route ``x [tokens, hidden_size]``.

        Returns:
            Weights f32 ``[tokens, top_k]`` and expert indices int32 ``[tokens, top_k]``, best
            first.
        """
        if self._recorded(x) or x.device.type != "cpu" or not self._gated(x):
            logits = self.logits(x)
            route = reference.route if logits.requires_grad else ops.route
            return route(logits, **self._rule())
        return ops.gate_route(x, self.weight, **self._rule())

    def _recorded(self, x: torch.Tensor) -> bool:
        return torch.is_grad_enabled() and (x.requires_grad or self.weight.requires_grad)

    def _gated(self, x: torch.Tensor) -> bool:
        """Whether product and routing can be one call."""
        return x.dtype in _GATE_DTYPES and self.weight.dtype in _GATE_DTYPES

    def _rule(self) -> dict[str, Any]:
        return {
            "top_k": self.top_k,
            "scoring": self.scoring,
            "correction_bias": self.correction_bias,
            "num_groups": self.num_groups,
            "top_groups": self.top_groups,
            "group_score": self.group_score,
            "normalize": self.normalize,
            "scale": self.scale,
        }
