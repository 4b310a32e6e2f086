"""Muon for matrices, Adam for the embedding, the routers and the gains.

    Muon:  m = momentum m + g;  u = g + momentum m;  W -= rate (0.2 sqrt(max(rows, columns)) O(u))

``O`` replaces the singular values of a matrix by about 1, with five Newton-Schulz steps. Experts
are orthogonalized each on its own, as are the gate and the up projection that share a tensor.

Source: Muon (Jordan et al. 2024), the scale of its step from Moonlight (arXiv 2502.16982).
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from abyssal.train.model import TrainingModel
from abyssal.train.settings import Settings

ADAM_BETAS = (0.9, 0.98)
ADAM_EPS = 1e-10
#: Coefficients of the quintic Newton-Schulz step.
QUINTIC = (3.4445, -4.7750, 2.0315)
#: Matrices that are orthogonalized at a time: few enough to stay in the cache.
STACK = 64


def orthogonalize(matrices: torch.Tensor) -> torch.Tensor:
    """Return ``matrices [n, rows, columns]`` with their singular values moved close to 1."""
    x = matrices / (matrices.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    tall = x.shape[-2] > x.shape[-1]
    if tall:
        x = x.mT
    first, third, fifth = QUINTIC
    for _ in range(5):
        square = x @ x.mT
        mixed = torch.baddbmm(square, square, square, beta=third, alpha=fifth)
        x = torch.baddbmm(x, mixed, x, beta=first)
    result: torch.Tensor = x.mT if tall else x
    return result


class Optimizer:
    """Both optimizers and their state.

    Args:
        model: What is trained.
        settings: Rates, momentum and weight decay.

    Guarantees: the work is cut into ``lanes`` lists that share nothing, so that threads can take
    one each without changing a bit of the result.
    """

    def __init__(self, model: TrainingModel, settings: Settings, lanes: int) -> None:
        self.settings = settings
        self.parameters = dict(model.named_parameters())
        self.state: dict[str, torch.Tensor] = {}
        self.matrices: list[list[str]] = [[] for _ in range(lanes)]
        self.others: list[str] = []
        work = [0.0] * lanes
        for name, value in self.parameters.items():
            if value.ndim < 2 or name in ("embed", "head") or name.endswith(".router"):
                self.others.append(name)
                self.state[f"{name}.mean"] = torch.zeros_like(value)
                self.state[f"{name}.square"] = torch.zeros_like(value)
                continue
            lane = work.index(min(work))
            work[lane] += value.numel() * min(value.shape[-2:])
            self.matrices[lane].append(name)
            self.state[f"{name}.momentum"] = torch.zeros_like(value)

    @torch.no_grad()
    def step_matrices(self, lane: int, gradients: dict[str, torch.Tensor], share: float) -> None:
        """Update the matrices of one lane at ``share`` of the peak rate."""
        momentum, rate = self.settings.momentum, self.settings.learning_rate * share
        for name in self.matrices[lane]:
            value, gradient = self.parameters[name], gradients[name]
            average = self.state[f"{name}.momentum"].mul_(momentum).add_(gradient)
            rows, columns = value.shape[-2:]
            if name.endswith("gate_up"):
                rows //= 2
            update = gradient.add(average, alpha=momentum).view(-1, rows, columns)
            parts = [update[begin : begin + STACK] for begin in range(0, len(update), STACK)]
            step = torch.cat([orthogonalize(part) for part in parts])
            value.mul_(1 - rate * self.settings.weight_decay)
            size = 0.2 * float(max(rows, columns)) ** 0.5
            value.add_(step.view_as(value), alpha=-rate * size)

    @torch.no_grad()
    def step_others(self, gradients: dict[str, torch.Tensor], share: float, step: int) -> None:
        """Update everything else; ``step`` counts from 1."""
        first, second = ADAM_BETAS
        for name in self.others:
            value, gradient = self.parameters[name], gradients[name]
            rate = share * (
                self.settings.router_rate
                if name.endswith(".router")
                else self.settings.embedding_rate
            )
            mean = self.state[f"{name}.mean"].mul_(first).add_(gradient, alpha=1 - first)
            square = self.state[f"{name}.square"].mul_(second)
            square.addcmul_(gradient, gradient, value=1 - second)
            if value.ndim >= 2:
                # A tenth for the embedding: rows of rare tokens have little else to hold them.
                decay = self.settings.weight_decay * (1.0 if name.endswith(".router") else 0.1)
                value.mul_(1 - rate * decay)
            size = (square / (1 - second**step)).sqrt_().add_(ADAM_EPS)
            value.addcdiv_(mean, size, value=-rate / (1 - first**step))

    def tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield the state under stable names; writing to a tensor restores it."""
        yield from self.state.items()
