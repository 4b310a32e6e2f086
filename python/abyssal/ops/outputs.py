"""The tensors that a routing call writes: the caller's own where they are contiguous, else new."""

import torch
from torch import Tensor

from abyssal.reference.routing import add_load

Pair = tuple[Tensor, Tensor]


def results(num_tokens: int, top_k: int, out: Pair | None) -> Pair:
    """Return memory for weights and indices that the compiled code can write."""
    if out is not None and out[0].is_contiguous() and out[1].is_contiguous():
        return out
    shape = (num_tokens, top_k)
    weights = torch.empty(shape, dtype=torch.float32, device="cpu")
    return weights, torch.empty(shape, dtype=torch.int32, device="cpu")


def deliver(results: Pair, out: Pair | None) -> Pair:
    """Return the pair the caller asked for, holding ``results``."""
    if out is None:
        return results
    if out[0] is not results[0]:
        out[0].copy_(results[0])
        out[1].copy_(results[1])
    return out


def count(load: Tensor | None, weights: Tensor, indices: Tensor) -> None:
    """Add the experts of every row that has weights to ``load``."""
    if load is not None:
        add_load(load, indices, ~weights.detach().isnan().any(dim=1))


def contiguous(tensor: Tensor | None) -> Tensor | None:
    """Return memory that the compiled code can write or count into: the tensor's own, or zeros."""
    if tensor is None or tensor.is_contiguous():
        return tensor
    return torch.zeros(tensor.shape, dtype=tensor.dtype, device="cpu")


def add(load: Tensor | None, counter: Tensor | None) -> None:
    """Add what was counted elsewhere to ``load``."""
    if load is not None and counter is not None and counter is not load:
        load += counter
