"""How much memory is free, and how large the page pool may be."""

from __future__ import annotations

import os
from pathlib import Path

from abyssal.errors import RequestError

#: The page pool takes at most this share of free memory when nobody asks for a size.
SHARE = 4


def free_memory() -> int | None:
    """Return the bytes that this process may still take; None where nothing tells.

    The kernel's estimate (page cache that can be dropped counts as free), or what is left of a
    control group's limit where that is less.
    """
    found = []
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                found.append(int(line.split()[1]) * 1024)
    except (OSError, ValueError):
        pass
    group = Path("/sys/fs/cgroup")
    for limit, used in (
        ("memory.max", "memory.current"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
    ):
        try:
            left = int((group / limit).read_text()) - int((group / used).read_text())
            found.append(max(left, 0))
        except (OSError, ValueError):
            continue  # no such group, or the limit is "max"
    if not found and "SC_AVPHYS_PAGES" in os.sysconf_names:
        found.append(os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    return min(found, default=None)


def pool_tokens(
    asked: int | None, model_tokens: int, token_bytes: int, page_size: int, free: int | None
) -> int:
    """Decide how many tokens the page pool holds.

    Args:
        asked: What the user asks for; None takes the model's maximum, or a quarter of free memory
            where that is less.
        model_tokens: Longest sequence the model was made for.
        token_bytes: Bytes that a token leaves in all layers' caches.
        page_size: Tokens in a page.
        free: Bytes of free memory; None where unknown.

    Returns:
        At least 1.

    Raises:
        RequestError: a size below 1, or more than fits; the message says how many would.
    """
    if asked is None:
        if free is None:
            return model_tokens
        fitting = free // SHARE // token_bytes // page_size * page_size
        if fitting == 0:
            raise RequestError(
                f"no page of {page_size} tokens ({page_size * token_bytes} bytes) fits a quarter "
                f"of the {free} bytes of free memory; give kv_cache_tokens or a smaller page_size"
            )
        return min(model_tokens, fitting)
    if isinstance(asked, bool) or not isinstance(asked, int) or asked < 1:
        raise RequestError(f"kv_cache_tokens is {asked!r}, allowed are whole numbers from 1")
    pages = -(-asked // page_size)
    if free is not None and pages * page_size * token_bytes > free:
        fitting = free // token_bytes // page_size * page_size
        raise RequestError(
            f"kv_cache_tokens is {asked}, which takes {pages * page_size * token_bytes} bytes, but "
            f"{free} are free: at most {fitting} tokens would fit"
        )
    return asked
