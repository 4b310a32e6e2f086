"""Watch which experts a model chooses, from outside, by hooks on its routers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any, cast

import torch

if TYPE_CHECKING:
    from abyssal.models import DeepseekModel
    from abyssal.models.layer import DecoderLayer
    from abyssal.nn import Router

#: Called as ``seen(layer, weights, indices)``: f32 and int32 ``[tokens, top_k]``, best first.
Seen = Callable[[int, torch.Tensor, torch.Tensor], None]


def expert_layers(model: DeepseekModel) -> dict[int, int]:
    """Return the number of routes of each layer that has experts."""
    return {number: router.weight.shape[0] for number, router in routers(model).items()}


def routers(model: DeepseekModel) -> dict[int, Router]:
    """Return the router of each layer that has experts."""
    found = {}
    for number, layer in enumerate(model.layers):
        moe = cast("DecoderLayer", layer).moe
        if moe is not None:
            found[number] = moe.router
    return found


@contextmanager
def watch_routers(model: DeepseekModel, seen: Seen) -> Iterator[None]:
    """Call ``seen`` after each routing for the length of the block."""
    with ExitStack() as stack:
        for number, router in routers(model).items():

            def hook(_module: object, _inputs: object, choice: Any, number: int = number) -> None:  # noqa: ANN401
                seen(number, *choice)

            handle = router.register_forward_hook(hook)
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
        """Count the window's tokens in ``rows``, however many steps the window ran in."""
        for layer, parts in self._window.items():
            chosen = torch.cat(parts)[rows].flatten().long()
            self.counts[layer] += torch.bincount(chosen, minlength=self.counts[layer].numel())

    def figures(self) -> list[dict[str, Any]]:
        """Return for each layer its busiest expert, its load over the mean, and all counts."""
        return [
            {
                "layer": layer,
                "busiest": int(counts.argmax()),
                "max_over_mean": float(counts.max() / counts.double().mean()),
                "counts": counts.tolist(),
            }
            for layer, counts in self.counts.items()
        ]
