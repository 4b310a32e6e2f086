"""Memory for large results: a page fault every 4 KB would take longer than filling them."""

import math
import mmap
from collections.abc import Sequence

import torch
from torch import Tensor

from .native import core

LARGE_PAGE = 1 << 21
#: From so many bytes on a result is in large pages.
LARGE_RESULT = 1 << 22
#: From so many bytes on glibc gives memory back at once, and every result is new to the system.
ALWAYS_NEW = 1 << 25


def empty(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """Return a new contiguous tensor in CPU memory, its contents undefined.

    Guarantees: its storage holds the tensor and nothing else. From ``ALWAYS_NEW`` bytes on the
    storage cannot be resized.
    """
    size = math.prod(shape) * dtype.itemsize
    if size >= ALWAYS_NEW and hasattr(mmap, "MADV_HUGEPAGE"):
        try:
            return _mapped(size).view(dtype).view(shape)
        except OSError:
            # No memory: torch says how much was asked for.
            pass
    place = torch.empty(shape, dtype=dtype, device="cpu")
    if size >= LARGE_RESULT:
        core().prefer_large_pages(place)
    return place


def _mapped(size: int) -> Tensor:
    """Return bytes that begin with a large page, and are in such pages as far as they fill them."""
    memory = mmap.mmap(-1, size + LARGE_PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    address = torch.frombuffer(memory, dtype=torch.uint8, count=1).data_ptr()
    start = -address % LARGE_PAGE
    # The page of what is left over would take up to 2 MB for nothing.
    memory.madvise(mmap.MADV_HUGEPAGE, start, size // LARGE_PAGE * LARGE_PAGE)
    return torch.frombuffer(memory, dtype=torch.uint8, count=size, offset=start)
