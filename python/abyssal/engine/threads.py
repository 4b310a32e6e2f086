"""How many threads a part of a step runs on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from abyssal._core import get_num_threads, set_num_threads


@contextmanager
def torch_threads(number: int) -> Iterator[None]:
    """Give torch ``number`` threads for the length of a block."""
    before = torch.get_num_threads()
    if before == number:
        yield
        return
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def step_threads(number: int | None) -> Iterator[None]:
    """Give torch and the compiled operations ``number`` threads for the length of a block.

    Args:
        number: The threads; None leaves both their own.
    """
    if number is None:
        yield
        return
    before = get_num_threads()
    with torch_threads(number):
        set_num_threads(number)
        try:
            yield
        finally:
            set_num_threads(before)
