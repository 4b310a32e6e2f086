"""Long random texts drawn from all classes of the patterns, ours beside Hugging Face's.

As a script: ``python -m tests.tokenizer.random_text [CHARACTERS [FAMILY ...]]``, by default 100
million of every family and of the published vocabulary ("published"); it prints how far it got and
stops at the first difference.
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


def pairs(names: list[str]) -> dict[str, tuple]:
    """Ours and Hugging Face's tokenizer of each name; "published" is DeepSeek V4's own file."""
    from tokenizers import Tokenizer as HuggingFace

    from abyssal.tokenizer import Tokenizer

    from .families import PUBLISHED, trained

    found = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in names:
            path = PUBLISHED
            if name != "published":
                path = Path(folder, f"{name}.json")
                path.write_text(trained(name), "utf-8")
            found[name] = (Tokenizer.from_file(path), HuggingFace.from_file(str(path)))
    return found


def main(total: int, names: list[str]) -> None:
    """Compare until each tokenizer has seen so many characters."""
    kinds, tokenizers = classes(), pairs(names)
    done, started, seed = 0, time.time(), 0
    while done < total:
        seed += 1
        sample = text(random.Random(seed), kinds)
        for name, (ours, peer) in tokenizers.items():
            if ours.encode(sample) != peer.encode(sample, add_special_tokens=False).ids:
                raise SystemExit(f"{name} differs on the text of seed {seed}")
        done += len(sample)
        if seed % 50 == 0:
            rate = done / (time.time() - started)
            print(f"{done:,} characters of each alike, {rate:,.0f} a second", flush=True)
    print(f"{done:,} characters of each of {', '.join(tokenizers)}: all ids are equal")


if __name__ == "__main__":
    from .families import SPLITS

    count = int(float(sys.argv[1])) if len(sys.argv) > 1 else 100_000_000
    main(count, sys.argv[2:] or ["published", *sorted(SPLITS)])
