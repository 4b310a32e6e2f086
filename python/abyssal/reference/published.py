"""Parts of the plain page cache: a published page, a sequence on its way, tables that stay."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any


@dataclass(eq=False)
class Node:
    """A published page: its tokens, and what they come after."""

    page: int
    parent: Node | None
    salt: bytes
    tokens: tuple[int, ...]
    published: bool = True

    def path(self) -> list[Node]:
        """From here to the first page, or to the page before one that is published no more."""
        if not self.published:
            return []
        return [self, *(self.parent.path() if self.parent else [])]

    def reachable(self) -> bool:
        """Whether all pages before this one are still published."""
        return self.published and (self.parent is None or self.parent.reachable())


@dataclass(eq=False)
class OpenSequence:
    """What the cache knows of one sequence."""

    salt: bytes
    pages: list[int] = field(default_factory=list)
    reserved: int = 0
    computed: int = 0
    published: int = 0
    known: list[int] = field(default_factory=list)
    #: The node of each published page: its own, or another page with the same content.
    chain: list[Node] = field(default_factory=list)
    may_publish: bool = True

    def copy(self) -> OpenSequence:
        """The same with lists of its own."""
        pages, known, chain = list(self.pages), list(self.known), list(self.chain)
        return replace(self, pages=pages, known=known, chain=chain)


class BlockTables:
    """An array that stays from step to step; here it is written anew by each.

    Args:
        array: Any array of two dimensions.
    """

    def __init__(self, array: Any) -> None:  # noqa: ANN401 - any array of two dimensions
        self.array = array

    def forget(self) -> None:
        """Nothing is remembered."""
