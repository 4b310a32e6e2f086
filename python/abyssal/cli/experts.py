"""Watch which experts a model chooses, from outside, by hooks on its routers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from abyssal.models import DeepseekModel

#: Called as ``seen(layer, weights, indices)``: f32 and int32 ``[tokens, top_k]``, best first.
Seen = Callable[[int, torch.Tensor, torch.Tensor], None]


def expert_layers(model: DeepseekModel) -> dict[int, int]:
    """Return the number of routes of each layer that has experts."""
    return {
        number: layer.moe.router.weight.shape[0]
        for number, layer in enumerate(model.layers)
        if layer.moe is not None
    }


@contextmanager
def watch_routers(model: DeepseekModel, seen: Seen) -> Iterator[None]:
    """Call ``seen`` after each routing for the length of the block."""
    with ExitStack() as stack:
        for number in expert_layers(model):

            def hook(_module: object, _inputs: object, choice: Any, number: int = number) -> None:  # noqa: ANN401
                seen(number, *choice)

            handle = model.layers[number].moe.router.register_forward_hook(hook)
            stack.callback(handle.remove)
        yield


class ExpertLoad:
    """Count how many tokens each expert of each layer got, over chosen rows of each window.

    Args:
        model: the model that ``watch_routers`` watches with this object's ``seen``.
    """

    def __init__(self, model: DeepseekModel) -> None:
        self.counts = {
            layer: torch.zeros(experts, dtype=torch.int64)
            for layer, experts in expert_layers(model).items()
        }
        self._window: dict[int, list[torch.Tensor]] = {}
        self.start()

    def start(self) -> None:
        """Begin a window."""
        self._window = {layer: [] for layer in self.counts}

    def seen(self, layer: int, _weights: torch.Tensor, indices: torch.Tensor) -> None:
        """Keep the choices until ``count`` says which tokens are new."""
        self._window[layer].append(indices.cpu())

    def count(self, rows: slice) -> None:
        """Count the window's tokens in ``rows``; a window that ran in several steps counts as one."""
        for layer, parts in self._window.items():
            chosen = torch.cat(parts)[rows].flatten().long()
            self.counts[layer] += torch.bincount(chosen, minlength=self.counts[layer].numel())

    def figures(self) -> list[dict[str, Any]]:
        """Return for each layer its busiest expert, that one's load over the mean, and all counts."""
        return [
            {
                "layer": layer,
                "busiest": int(counts.argmax()),
                "max_over_mean": float(counts.max() / counts.double().mean()),
                "counts": counts.tolist(),
            }
            for layer, counts in self.counts.items()
        ]
