"""The feed-forward part of a layer as one call: weights are handed over once, and read in place.

The work is done by the Rust crate ``abyssal-kernels``; ``abyssal.reference.experts`` is the same in
plain PyTorch, up to the order of the sums within a product.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from abyssal._core import Experts as _Experts
from abyssal.reference.checks import check_dtype, check_rank, check_shape
from abyssal.reference.experts import Expert, Weight
from abyssal.reference.formats import ACTIVATIONS

from .native import plain


def _bytes(tensor: Tensor) -> Tensor:
    return tensor.view(torch.uint8) if tensor.dtype != torch.uint8 else tensor


def as_held(weight: Weight) -> tuple[Tensor, Tensor | None]:
    """Return a weight as the compiled code takes it: MXFP4 as bytes, everything else as it is."""
    values, scales = weight
    if scales is None or values.dtype == torch.float8_e4m3fn:
        return values, scales
    return _bytes(values), _bytes(scales)


class Experts:
    """Experts of a layer, chosen token by token, and one that every token has.

    Args:
        routed: gate, up and down of each expert to choose from, each a weight and its scales: f32
            or bf16 and None, or packed as for ``fp8_linear`` and ``mxfp4_linear``. Gate and up are
            ``[inner_size, hidden_size]``, down ``[hidden_size, inner_size]``, contiguous.
        shared: the expert of every token; None for none.
        num_routes: how many numbers may be chosen; those behind the routed experts return their
            input. None for as many as there are experts.
        limit: bounds gate from above, and up on both sides, before they are multiplied
            (DeepSeek-V4's clamp); None for no bound.

    Raises:
        TypeError: a weight that is no dense CPU tensor, or of a wrong dtype.
        ValueError: weights that are not contiguous or do not fit together, or no expert at all.

    Guarantees: the weights are read where they lie, at every call; no copy is made. The object
    keeps them in memory.

    Source: DeepSeek-V3 ``inference/model.py`` (MoE, Expert).
    """

    def __init__(
        self,
        routed: Sequence[Expert],
        shared: Expert | None = None,
        *,
        num_routes: int | None = None,
        limit: float | None = None,
    ) -> None:
        self.compiled = _Experts(
            [[as_held(weight) for weight in expert] for expert in routed],
            None if shared is None else [as_held(weight) for weight in shared],
            num_routes,
            limit,
        )

    def __call__(
        self, x: Tensor, weights: Tensor | None = None, indices: Tensor | None = None
    ) -> Tensor:
        """Return the weighted sum of each token's experts.

        Args:
            x: ``[tokens, hidden_size]`` float32 or bfloat16, in CPU memory.
            weights: ``[tokens, top_k]`` float32, as ``route`` returns them; None (and None for
                ``indices``) leaves the shared expert alone.
            indices: ``[tokens, top_k]`` int32.

        Returns:
            ``[tokens, hidden_size]`` in x's dtype.

        Raises:
            TypeError: a wrong dtype.
            ValueError: shapes that do not fit, or an index out of range.

        Guarantees: everything between x and the result is float32, but for the inner activations
        where pairs of bfloat16 are multiplied (``ops.fp8_linear``). A token's outputs are added in
        ascending expert index, those of experts without weights then, the shared one's last, and
        rounded once. A row's bits depend neither on the other rows nor on the number of threads
        (``abyssal.get_num_threads()`` at most). No gradient is recorded.
        """
        check_dtype("x", x, ACTIVATIONS)
        check_rank("x", x, 2)
        if (weights is None) != (indices is None):
            raise ValueError("weights and indices belong together; one of them is None")
        if weights is not None and indices is not None:
            check_dtype("weights", weights, (torch.float32,))
            check_dtype("indices", indices, (torch.int32,))
            check_rank("indices", indices, 2)
            check_shape("indices", indices, (x.shape[0], indices.shape[1]))
            check_shape("weights", weights, indices.shape)
            weights, indices = plain(weights), plain(indices)
        x = plain(x)
        out = torch.empty_like(x)
        self.compiled.forward(x, weights, indices, out)
        return out
