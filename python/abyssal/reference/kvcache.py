"""The page cache in plain Python: what the compiled one is compared with.

Nothing is remembered that can be counted afresh: a page's holders are the sequences whose list has
it, and a prefix is found by looking at every published page. The free pages are a stack and the
reusable ones a queue, because which page comes next is part of the behavior.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from abyssal.reference.published import BlockTables, Node, OpenSequence

__all__ = ["BlockTables", "OutOfPages", "PageCache"]


class OutOfPages(RuntimeError):
    """The page pool has fewer free pages than a step asked for; nothing was changed."""


class PageCache:
    """Deals out the pages of one latent cache; methods as ``abyssal.kvcache.PageCache``.

    Args:
        num_pages: Pages in all, at least 1.
        page_size: Tokens in a page, at least 1.
        reuse: Whether pages are ever matched.

    Raises:
        ValueError: a size below 1.

    Guarantees: handles differ from the compiled cache's; page ids, copies and errors' kinds do not.
    """

    def __init__(self, num_pages: int, page_size: int = 64, *, reuse: bool = True) -> None:
        if num_pages < 1 or page_size < 1:
            raise ValueError(f"num_pages is {num_pages} and page_size {page_size}, both need 1")
        self.num_pages, self.page_size, self.reuse = num_pages, page_size, reuse
        self._free = list(reversed(range(num_pages)))
        #: Published pages without a holder, the one to give up next first.
        self._reusable: list[int] = []
        self._nodes: list[Node] = []
        self._open: dict[int, OpenSequence] = {}
        self._next_handle = 1
        self._hits = self._misses = self._evictions = 0

    @property
    def free_pages(self) -> int:
        """Pages that no sequence holds."""
        return len(self._free) + len(self._reusable)

    def open(
        self,
        token_ids: Sequence[int],
        salt: bytes = b"",
        *,
        max_cached: int | None = None,
        multiple_of: int = 1,
    ) -> tuple[int, int]:
        """Open a sequence; take hold of the longest published prefix."""
        if any(not 0 <= token < 2**32 for token in token_ids):
            raise ValueError("token ids are 0 to 2**32 - 1")
        if multiple_of < 1 or (max_cached is not None and max_cached < 0):
            raise ValueError(f"max_cached is {max_cached} and multiple_of {multiple_of}")
        ids = [int(token) for token in token_ids]
        chain: list[Node] = []
        limit = len(ids) if max_cached is None else min(len(ids), max_cached)
        whole_pages = limit // self.page_size if self.reuse else 0
        while len(chain) < whole_pages:
            start = len(chain) * self.page_size
            tokens = tuple(ids[start : start + self.page_size])
            node = self._find(chain[-1] if chain else None, salt, tokens)
            if node is None:
                break
            chain.append(node)
        while len(chain) * self.page_size % multiple_of:
            chain.pop()
        self._hits += len(chain)
        self._misses += whole_pages - len(chain)
        pages = [node.page for node in chain]
        self._reusable = [page for page in self._reusable if page not in pages]
        cached = len(chain) * self.page_size
        sequence = OpenSequence(salt, pages, cached, cached, cached, ids, chain, self.reuse)
        return self._insert(sequence), cached

    def step(
        self,
        handles: Sequence[int],
        counts: Sequence[int],
        block_tables_out: Any,  # noqa: ANN401 - any array of two dimensions, or BlockTables
        written: Any = None,  # noqa: ANN401 - any array of one dimension
    ) -> list[tuple[int, int]]:
        """Reserve more tokens and write ``block_tables_out[i, :pages]``; all or nothing."""
        sequences = self._distinct(handles)
        if len(counts) != len(handles) or any(count < 0 for count in counts):
            raise ValueError("counts need one number of at least 0 for each handle")
        if isinstance(block_tables_out, BlockTables):
            if written is not None:
                raise ValueError("written beside a BlockTables")
            block_tables_out = block_tables_out.array
        rows, width = block_tables_out.shape
        if rows < len(handles):
            raise ValueError(f"{rows} rows for {len(handles)} handles")
        if written is not None:
            for sequence, count in zip(sequences, written, strict=False):
                if not 0 <= count <= len(sequence.pages):
                    raise ValueError(f"{count} entries written of {len(sequence.pages)}")
        # Plan on paper: whose last page must be copied, and how many pages that makes.
        holders = {page: self._holders(page) for each in sequences for page in each.pages[-1:]}
        copying = []
        asked = 0
        for sequence, count in zip(sequences, counts, strict=True):
            pages = -(-(sequence.reserved + count) // self.page_size)
            asked += pages - len(sequence.pages)
            partial = count > 0 and sequence.reserved % self.page_size != 0
            copying.append(partial and holders[sequence.pages[-1]] > 1)
            if copying[-1]:
                holders[sequence.pages[-1]] -= 1
                asked += 1
            if width < pages <= self.num_pages:
                raise ValueError(f"{pages} pages do not fit a block table of width {width}")
        if asked > self.free_pages:
            raise OutOfPages(f"out of pages: {asked} asked, {self.free_pages} free")
        copies = []
        for row, sequence in enumerate(sequences):
            if copying[row]:
                page = self._allocate()
                copies.append((sequence.pages[-1], page))
                sequence.pages[-1] = page
            sequence.reserved += counts[row]
            while len(sequence.pages) * self.page_size < sequence.reserved:
                sequence.pages.append(self._allocate())
            for place, page in enumerate(sequence.pages):
                block_tables_out[row, place] = page
            if written is not None:
                written[row] = len(sequence.pages)
        return copies

    def commit(
        self,
        handles: Sequence[int],
        computed: Sequence[int],
        publish: bool | Sequence[bool],
        token_ids: Sequence[int] | None = None,
    ) -> None:
        """Note how many tokens are computed; publish the pages that are full of known ones."""
        sequences = self._distinct(handles)
        if len(computed) != len(handles):
            raise ValueError(f"{len(computed)} counts for {len(handles)} handles")
        flags = [publish] * len(handles) if isinstance(publish, bool) else list(publish)
        if len(flags) != len(handles):
            raise ValueError(f"{len(flags)} publish flags for {len(handles)} handles")
        missing = []
        for sequence, count in zip(sequences, computed, strict=True):
            if not sequence.computed <= count <= sequence.reserved:
                raise ValueError(f"{count} is not in {sequence.computed} to {sequence.reserved}")
            missing.append(max(0, count - len(sequence.known)))
        if token_ids is not None and len(token_ids) != sum(missing):
            raise ValueError(f"{len(token_ids)} token ids, expected {sum(missing)}")
        told = iter(token_ids or ())
        for row, sequence in enumerate(sequences):
            if token_ids is not None:
                sequence.known += [next(told) for _ in range(missing[row])]
            sequence.computed = computed[row]
            if flags[row]:
                sequence.published = computed[row]
            self._publish(sequence)

    def fork(self, handle: int) -> int:
        """Open a sequence that shares every page."""
        sequence = self._find_open(handle)
        if sequence.computed != sequence.reserved:
            raise ValueError(f"{sequence.computed} of {sequence.reserved} tokens are computed")
        return self._insert(sequence.copy())

    def close(self, handle: int) -> None:
        """Close a sequence; pages without another holder are let go, its last one first."""
        sequence = self._find_open(handle)
        del self._open[handle]
        for page in reversed(sequence.pages):
            if not self._holders(page):
                (self._reusable if self._node_of(page) else self._free).append(page)
        # What its pages continue may be other sequences' pages: all that led to them is as recent.
        ends = [*sequence.chain[-1:], *map(self._node_of, reversed(sequence.pages))]
        for end in filter(None, ends):
            reachable = end.reachable()
            for node in end.path():
                if self._holders(node.page):
                    continue
                self._reusable.remove(node.page)
                if reachable:
                    self._reusable.append(node.page)
                else:
                    self._unpublish(node)
                    self._free.append(node.page)

    def clear(self) -> None:
        """Forget all published content; open sequences publish nothing any more."""
        self._free += self._reusable
        self._reusable = []
        for node in list(self._nodes):
            self._unpublish(node)
        for sequence in self._open.values():
            sequence.may_publish, sequence.chain = False, []

    def stats(self) -> dict[str, int]:
        """Count everything."""
        held = {page for each in self._open.values() for page in each.pages}
        return {
            "num_pages": self.num_pages,
            "page_size": self.page_size,
            "free_pages": self.free_pages,
            "used_pages": len(held),
            "shared_pages": sum(self._holders(page) > 1 for page in held),
            "published_pages": len(self._nodes),
            "reusable_pages": len(self._reusable),
            "sequences": len(self._open),
            "reserved_tokens": sum(each.reserved for each in self._open.values()),
            "computed_tokens": sum(each.computed for each in self._open.values()),
            "hits": self._hits,
            "misses": self._misses,
            "cached_tokens": self._hits * self.page_size,
            "evictions": self._evictions,
        }

    def audit(self) -> None:
        """Check that every page is free, reusable or held, and every reusable one reachable."""
        held = {page for each in self._open.values() for page in each.pages}
        if sorted([*held, *self._free, *self._reusable]) != list(range(self.num_pages)):
            raise RuntimeError(f"{len(held)} held and {self.free_pages} free of {self.num_pages}")
        nodes = [self._node_of(page) for page in self._reusable]
        if not all(node is not None and node.reachable() for node in nodes):
            raise RuntimeError(f"of {self._reusable} some cannot be matched")

    def _insert(self, sequence: OpenSequence) -> int:
        handle = self._next_handle
        self._next_handle += 1
        self._open[handle] = sequence
        return handle

    def _find_open(self, handle: int) -> OpenSequence:
        if handle not in self._open:
            raise ValueError(f"handle {handle} names no open sequence")
        return self._open[handle]

    def _distinct(self, handles: Sequence[int]) -> list[OpenSequence]:
        if len(set(handles)) != len(handles):
            raise ValueError("a handle appears twice in one call")
        return [self._find_open(handle) for handle in handles]

    def _holders(self, page: int) -> int:
        return sum(page in each.pages for each in self._open.values())

    def _node_of(self, page: int) -> Node | None:
        return next((node for node in self._nodes if node.page == page), None)

    def _find(self, parent: Node | None, salt: bytes, tokens: tuple[int, ...]) -> Node | None:
        for node in self._nodes:
            if node.parent is parent and (node.salt, node.tokens) == (salt, tokens):
                return node
        return None

    def _allocate(self) -> int:
        if self._free:
            return self._free.pop()
        page = self._reusable.pop(0)
        node = self._node_of(page)
        assert node is not None
        self._unpublish(node)
        self._evictions += 1
        return page

    def _unpublish(self, node: Node) -> None:
        node.published = False
        self._nodes.remove(node)

    def _publish(self, sequence: OpenSequence) -> None:
        """Make the sequence's full pages of published, known tokens nodes."""
        ready = min(sequence.published, len(sequence.known)) // self.page_size
        for place in range(len(sequence.chain), ready):
            parent = sequence.chain[-1] if sequence.chain else None
            if not sequence.may_publish or (parent is not None and not parent.published):
                sequence.may_publish = False
                return
            start, page = place * self.page_size, sequence.pages[place]
            tokens = tuple(sequence.known[start : start + self.page_size])
            node = self._find(parent, sequence.salt, tokens) or self._node_of(page)
            if node is None:
                node = Node(page, parent, sequence.salt, tokens)
                self._nodes.append(node)
            sequence.chain.append(node)
