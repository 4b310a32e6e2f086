"""Valid calls of the binding, shared by its tests: `_core.route` stands for every function."""

import torch

from abyssal import _core

TOKENS, EXPERTS, TOP_K = 2, 4, 2


def arguments(**changes):
    """Valid arguments of `_core.route`, some of them replaced."""
    valid = {
        "logits": torch.tensor([[0.0, 1.0, 2.0, 3.0], [3.0, 2.0, 1.0, 0.0]]),
        "weights": torch.zeros(TOKENS, TOP_K),
        "indices": torch.zeros(TOKENS, TOP_K, dtype=torch.int32),
    }
    valid.update(changes)
    return valid


def route(**changes):
    tensors = arguments(**changes)
    logits, weights, indices = (tensors.pop(name) for name in ("logits", "weights", "indices"))
    return _core.route(logits, weights, indices, top_k=TOP_K, scoring="softmax", **tensors)
