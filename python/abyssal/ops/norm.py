"""Normalization, and the likeliest token of each row of logits.

The work is done by the Rust crate ``abyssal-kernels``; ``abyssal.reference.norm`` is the same in
plain PyTorch, up to the order of the sum of squares.
"""

import torch
from torch import Tensor

from abyssal import reference
from abyssal.reference.checks import FLOATS, check_dtype, check_rank, check_shape
from abyssal.reference.formats import ACTIVATIONS

from .native import core, is_direct, plain


def rms_norm(x: Tensor, weight: Tensor, eps: float, *, dtype: torch.dtype | None = None) -> Tensor:
    """Return ``x / sqrt(mean(x^2) + eps) * weight`` over the last dimension.

    Args:
        x: ``[..., size]`` float32, bfloat16 or float16.
        weight: ``[size]``, of any of these types.
        eps: added to the mean square.
        dtype: of the result; None for that of x.

    Returns:
        A tensor shaped like x.

    Raises:
        TypeError: a wrong dtype.
        ValueError: a weight of another size.

    Guarantees: computed in float32 and rounded to x's type before the weight multiplies, as the
    published models do; a row's bits depend neither on the other rows, nor on the threads, nor on
    the machine. What is not float32 or bfloat16 in CPU memory, or has a gradient, goes to
    ``abyssal.reference.rms_norm``.

    Source: DeepSeek-V3 ``inference/model.py`` (RMSNorm).
    """
    check_dtype("x", x, FLOATS)
    check_dtype("weight", weight, FLOATS)
    check_shape("weight", weight, x.shape[-1:])
    dtype = dtype or x.dtype
    if not (
        is_direct(x)
        and is_direct(weight)
        and x.dtype in ACTIVATIONS
        and weight.dtype in ACTIVATIONS
        and dtype in ACTIVATIONS
        and x.shape[-1] > 0
    ):
        return reference.rms_norm(x, weight, eps, dtype=dtype)
    rows = plain(x).view(-1, x.shape[-1])
    out = torch.empty(rows.shape, dtype=dtype, device="cpu")
    core().rms_norm(rows, plain(weight), eps, out)
    return out.view(x.shape)


def greedy(logits: Tensor) -> list[int]:
    """Return the likeliest token of each row of logits.

    Args:
        logits: float32 ``[rows, vocab]``, ``vocab`` at least 1.

    Returns:
        A token id for each row; -1 where a value is not finite.

    Raises:
        TypeError: a wrong dtype.
        ValueError: another number of dimensions, or no columns.

    Guarantees: ties go to the lowest id. What is not in CPU memory goes to
    ``abyssal.reference.greedy``.

    Source: none; the definition itself.
    """
    check_dtype("logits", logits, (torch.float32,))
    check_rank("logits", logits, 2)
    if logits.shape[1] == 0:
        raise ValueError("logits have 0 columns; at least 1 is needed")
    if not is_direct(logits):
        return reference.greedy(logits)
    ids: list[int] = core().greedy(plain(logits))
    return ids
