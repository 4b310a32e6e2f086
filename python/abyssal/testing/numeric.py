"""Comparing numbers: bits where bits must agree, units in the last place elsewhere."""

import torch
from torch import Tensor

_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def bits(tensor: Tensor) -> Tensor:
    """Return the bits of a tensor as integers, of its shape."""
    return tensor.detach().contiguous().view(_INTEGERS[tensor.element_size()])


def assert_same_bits(actual: Tensor, expected: Tensor, nan_bits: bool = False) -> None:
    """Assert that two tensors have equal dtype, shape and bits.

    Args:
        actual: any tensor.
        expected: any tensor.
        nan_bits: compare the bits of NaN too; otherwise any NaN equals any other.

    Raises:
        AssertionError: naming the first differing position and both values.
    """
    assert actual.dtype == expected.dtype, f"{actual.dtype} is not {expected.dtype}"
    assert actual.shape == expected.shape, f"{actual.shape} is not {expected.shape}"
    differs = bits(actual) != bits(expected)
    if actual.is_floating_point() and not nan_bits:
        both = actual.to(torch.float32).isnan() & expected.to(torch.float32).isnan()
        differs &= ~both
    if differs.any():
        where = tuple(differs.nonzero()[0].tolist())
        count = int(differs.sum())
        raise AssertionError(
            f"{count} of {differs.numel()} elements differ, first at {where}: "
            f"{actual[where].item()!r} is not {expected[where].item()!r}"
        )


def ulp_distance(left: Tensor, right: Tensor) -> Tensor:
    """Return how many float32 numbers lie between two float32 tensors, int64; zeros are equal."""
    ordered = []
    for tensor in (left, right):
        code = bits(tensor).to(torch.int64)
        ordered.append(torch.where(code < 0, -(code & 0x7FFFFFFF), code))
    return (ordered[0] - ordered[1]).abs()
