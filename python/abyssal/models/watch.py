"""Seeing what a layer computes, for finding where a value stops being finite and who chose what."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import nn

from abyssal.nn import Router

#: Called as ``on_layer(layer, name, tensor)``. The names: ``attention`` and ``feed_forward`` (what
#: is added to the stream), ``experts`` (int32 ``[tokens, top_k]``), ``expert_weights`` (f32),
#: ``output`` (the stream after the layer).
OnLayer = Callable[[int, str, torch.Tensor], None]


@contextmanager
def watched(router: Router, index: int, on_layer: OnLayer | None) -> Iterator[None]:
    """Report the router's choices to ``on_layer`` for the length of the block."""
    if on_layer is None:
        yield
        return

    def report(_module: nn.Module, _inputs: object, choice: tuple[torch.Tensor, ...]) -> None:
        on_layer(index, "expert_weights", choice[0])
        on_layer(index, "experts", choice[1])

    handle = router.register_forward_hook(report)
    try:
        yield
    finally:
        handle.remove()
