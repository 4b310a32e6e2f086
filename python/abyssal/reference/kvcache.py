"""The page cache in plain Python: what the compiled one is compared with.

Nothing is remembered that can be counted afresh: a page's holders are the sequences whose list has
it. The free pages are a stack, because which page comes next is part of the behavior.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any


class OutOfPages(RuntimeError):
    """The page pool has fewer free pages than a step asked for; nothing was changed."""


@dataclass
class _Sequence:
    pages: list[int] = field(default_factory=list)
    reserved: int = 0
    computed: int = 0


class PageCache:
    """Deals out the pages of one latent cache; methods as ``abyssal.kvcache.PageCache``.

    Args:
        num_pages: Pages in all, at least 1.
        page_size: Tokens in a page, at least 1.

    Raises:
        ValueError: a size below 1.

    Guarantees: handles differ from the compiled cache's; page ids, copies and errors' kinds do not.
    """

    def __init__(self, num_pages: int, page_size: int = 64) -> None:
        if num_pages < 1 or page_size < 1:
            raise ValueError(f"num_pages is {num_pages} and page_size {page_size}, both need 1")
        self.num_pages, self.page_size = num_pages, page_size
        self._free = list(reversed(range(num_pages)))
        self._open: dict[int, _Sequence] = {}
        self._next_handle = 1

    @property
    def free_pages(self) -> int:
        """Pages that no sequence holds."""
        return len(self._free)

    def open(self, token_ids: Sequence[int], salt: bytes = b"") -> tuple[int, int]:
        """Open a sequence; nothing of it is cached."""
        if any(token < 0 for token in token_ids):
            raise ValueError("token ids are at least 0")
        return self._insert(_Sequence()), 0

    def step(
        self,
        handles: Sequence[int],
        counts: Sequence[int],
        block_tables_out: Any,  # noqa: ANN401 - any array of two dimensions
    ) -> list[tuple[int, int]]:
        """Reserve more tokens and write ``block_tables_out[i, :pages]``; all or nothing."""
        sequences = self._distinct(handles)
        if len(counts) != len(handles) or any(count < 0 for count in counts):
            raise ValueError("counts need one number of at least 0 for each handle")
        rows, width = block_tables_out.shape
        if rows < len(handles):
            raise ValueError(f"{rows} rows for {len(handles)} handles")
        # Plan on paper: whose last page must be copied, and how many pages that makes.
        holders = {page: self._holders(page) for each in sequences for page in each.pages[-1:]}
        copying = []
        asked = 0
        for sequence, count in zip(sequences, counts, strict=True):
            pages = -(-(sequence.reserved + count) // self.page_size)
            asked += pages - len(sequence.pages)
            into_last = count > 0 and sequence.reserved % self.page_size != 0
            copying.append(into_last and holders[sequence.pages[-1]] > 1)
            if copying[-1]:
                holders[sequence.pages[-1]] -= 1
                asked += 1
            if width < pages <= self.num_pages:
                raise ValueError(f"{pages} pages do not fit a block table of width {width}")
        if asked > len(self._free):
            raise OutOfPages(f"out of pages: {asked} asked, {len(self._free)} free")
        copies = []
        for row, sequence in enumerate(sequences):
            if copying[row]:
                copies.append((sequence.pages[-1], self._free[-1]))
                sequence.pages[-1] = self._free.pop()
            sequence.reserved += counts[row]
            while len(sequence.pages) * self.page_size < sequence.reserved:
                sequence.pages.append(self._free.pop())
            for place, page in enumerate(sequence.pages):
                block_tables_out[row, place] = page
        return copies

    def commit(
        self, handles: Sequence[int], computed: Sequence[int], publish: bool | Sequence[bool]
    ) -> None:
        """Note how many tokens are computed."""
        sequences = self._distinct(handles)
        if len(computed) != len(handles):
            raise ValueError(f"{len(computed)} counts for {len(handles)} handles")
        if not isinstance(publish, bool) and len(publish) != len(handles):
            raise ValueError(f"{len(publish)} publish flags for {len(handles)} handles")
        for sequence, count in zip(sequences, computed, strict=True):
            if not sequence.computed <= count <= sequence.reserved:
                raise ValueError(f"{count} is not in {sequence.computed} to {sequence.reserved}")
        for sequence, count in zip(sequences, computed, strict=True):
            sequence.computed = count

    def fork(self, handle: int) -> int:
        """Open a sequence that shares every page."""
        sequence = self._find(handle)
        if sequence.computed != sequence.reserved:
            raise ValueError(f"{sequence.computed} of {sequence.reserved} tokens are computed")
        return self._insert(_Sequence(list(sequence.pages), sequence.reserved, sequence.computed))

    def close(self, handle: int) -> None:
        """Close a sequence; pages without another holder become free, its last one first."""
        sequence = self._find(handle)
        del self._open[handle]
        for page in reversed(sequence.pages):
            if not self._holders(page):
                self._free.append(page)

    def stats(self) -> dict[str, int]:
        """Count everything."""
        held = {page for each in self._open.values() for page in each.pages}
        return {
            "num_pages": self.num_pages,
            "page_size": self.page_size,
            "free_pages": len(self._free),
            "used_pages": len(held),
            "shared_pages": sum(self._holders(page) > 1 for page in held),
            "sequences": len(self._open),
            "reserved_tokens": sum(each.reserved for each in self._open.values()),
            "computed_tokens": sum(each.computed for each in self._open.values()),
        }

    def audit(self) -> None:
        """Check that every page is either free, once, or held."""
        held = {page for each in self._open.values() for page in each.pages}
        if sorted([*held, *self._free]) != list(range(self.num_pages)):
            raise RuntimeError(f"{len(held)} held and {len(self._free)} free of {self.num_pages}")

    def _insert(self, sequence: _Sequence) -> int:
        handle = self._next_handle
        self._next_handle += 1
        self._open[handle] = sequence
        return handle

    def _find(self, handle: int) -> _Sequence:
        if handle not in self._open:
            raise ValueError(f"handle {handle} names no open sequence")
        return self._open[handle]

    def _distinct(self, handles: Sequence[int]) -> list[_Sequence]:
        if len(set(handles)) != len(handles):
            raise ValueError("a handle appears twice in one call")
        return [self._find(handle) for handle in handles]

    def _holders(self, page: int) -> int:
        return sum(page in each.pages for each in self._open.values())
