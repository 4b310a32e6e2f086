"""Long random texts drawn from all classes of the patterns, ours beside Hugging Face's.

As a script: ``python -m tests.tokenizer.random_text [CHARACTERS]`` (default 100 million) for every
family; it prints how far it got and stops at the first difference.
"""

import random
import sys
import tempfile
import time
from pathlib import Path

from .texts import EDGES, WORDS, assigned

#: Characters of one text.
LENGTH = 20_000


def classes() -> list[list[str]]:
    """Characters by what the patterns tell apart, and where they meet."""
    import unicodedata

    by_category: dict[str, list[str]] = {}
    for character in assigned():
        by_category.setdefault(unicodedata.category(character), []).append(character)
    ascii_only = [chr(p) for p in range(128)]
    han = [chr(p) for p in range(0x4E00, 0x9FA6)]
    kana = [chr(p) for p in range(0x3040, 0x3100)]
    unassigned = [chr(p) for p in (0x378, 0x9FFF, 0x3040, 0xE000, 0xFFFE, 0x10FFFF)]
    words = ["'s", "'LL", "'\u017f", "\r\n", "  ", "\n\n", *WORDS]
    return [
        *by_category.values(),
        ascii_only,
        ascii_only,
        han,
        kana,
        unassigned,
        list(EDGES),
        words,
    ]


def text(draw: random.Random, kinds: list[list[str]], length: int = LENGTH) -> str:
    """A random text: runs of one class, short as a rule and long now and then."""
    parts = []
    while length > 0:
        kind = draw.choice(kinds)
        run = min(draw.choice((1, 1, 1, 2, 3, 5, 17, 40)), length)
        parts.extend(draw.choices(kind, k=run))
        length -= run
    return "".join(parts)


def main(total: int) -> None:
    """Compare until each family has seen so many characters."""
    from .conftest import Family
    from .families import SPLITS

    kinds = classes()
    with tempfile.TemporaryDirectory() as folder:
        pairs = [Family(name, Path(folder)) for name in sorted(SPLITS)]
        done, started, seed = 0, time.time(), 0
        while done < total:
            seed += 1
            sample = text(random.Random(seed), kinds)
            for family in pairs:
                if family.ours.encode(sample) != family.peer_ids(sample):
                    raise SystemExit(f"{family.name} differs on the text of seed {seed}")
            done += len(sample)
            if seed % 50 == 0:
                rate = done / (time.time() - started)
                print(f"{done:,} characters of each family alike, {rate:,.0f} a second", flush=True)
    print(f"{done:,} characters of each of {len(pairs)} families: all ids are equal")


if __name__ == "__main__":
    main(int(float(sys.argv[1])) if len(sys.argv) > 1 else 100_000_000)
