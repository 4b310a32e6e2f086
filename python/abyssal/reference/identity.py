"""Names of pages that are the same in every process and on every machine, in plain Python.

The identity of a page is SHA-256 of its parent's identity, the number of its tokens and their ids;
that of a salt, the parent of first pages, of the salt's length and the salt. Both begin with 20
bytes that say which of the two it is. Numbers are little-endian, of 8 bytes and, for ids, of 4.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from hashlib import sha256


def page_identities(
    token_ids: Sequence[int], page_size: int = 64, salt: bytes = b""
) -> list[bytes]:
    """Name the whole pages of a prompt; as ``abyssal.kvcache.page_identities``."""
    if page_size < 1:
        raise ValueError(f"page_size is {page_size}, allowed are 1 and more")
    parent = sha256(b"abyssal page salt v1" + struct.pack("<Q", len(salt)) + salt).digest()
    names = []
    for end in range(page_size, len(token_ids) + 1, page_size):
        tokens = struct.pack(f"<Q{page_size}I", page_size, *token_ids[end - page_size : end])
        parent = sha256(b"abyssal page node v1" + parent + tokens).digest()
        names.append(parent)
    return names
