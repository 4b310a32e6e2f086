"""Finding marks in a text that arrives in pieces.

Of several marks the one that is complete first counts, and of those the longest. Whether a mark
is complete depends on the text up to its end alone, so what is found does not depend on how the
text was cut. Text that may be the beginning of a mark is kept back, so nothing is handed out that
a later piece could turn into a mark.

Each piece is searched in stretches of bounded length: a mark that does not occur is not looked
for, again and again, up to the end of a long piece, and the time stays linear in the text.
"""

from __future__ import annotations

from collections.abc import Iterator

STRETCH = 512


class Marks:
    """The marks that count in one state of a parser.

    Args:
        marks: Texts that are not empty.
    """

    def __init__(self, *marks: str) -> None:
        self._marks = tuple(dict.fromkeys(mark for mark in marks if mark))
        self._beginnings = frozenset(
            mark[:length] for mark in self._marks for length in range(1, len(mark))
        )
        self._firsts = {mark[0] for mark in self._marks}
        self._longest = max(map(len, self._marks), default=0)

    def find(self, text: str, start: int) -> tuple[int, str] | None:
        """Return where the first mark begins, and the mark; None when there is none."""
        best: tuple[int, int, str] | None = None
        for mark in self._marks:
            place = text.find(mark, start)
            if place >= 0 and (best is None or (place + len(mark), place) < best[:2]):
                best = place + len(mark), place, mark
        return best and (best[1], best[2])

    def kept_back(self, text: str, start: int) -> int:
        """Return how many characters at the end may be the beginning of a mark."""
        kept = 0
        for first in self._firsts:
            place = text.find(first, max(start, len(text) - self._longest + 1))
            while place >= 0 and text[place:] not in self._beginnings:
                place = text.find(first, place + 1)
            if place >= 0:
                kept = max(kept, len(text) - place)
        return kept


def stretches(text: str) -> Iterator[str]:
    """Cut a text into pieces of bounded length."""
    for start in range(0, len(text), STRETCH):
        yield text[start : start + STRETCH]
