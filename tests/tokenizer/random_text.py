"""Random texts drawn from all classes of the patterns, ours beside Hugging Face's.

As a script: ``python -m tests.tokenizer.random_text [CHARACTERS [FAMILY ...]]``, by default 100
million of every family and of the published vocabulary ("published"), one after the other; it
prints how far it got and stops at the first difference. ``RAYON_NUM_THREADS`` bounds the
processors that it keeps busy; most of the time is Hugging Face's.
"""

import sys
import tempfile
import time
import unicodedata
from pathlib import Path

import numpy as np

from .texts import EDGES, WORDS, assigned

#: Characters of the texts that are compared at once.
ROUND = 1_000_000
#: Lengths of runs of one class: short as a rule and long now and then.
RUNS = np.array([1, 1, 1, 2, 3, 5, 17, 40])
#: Lengths that a text may have; a length is drawn between two neighbors.
LENGTHS = np.array([1, 4, 30, 200, 1_000, 2_000, 4_000, 8_000, 20_000])
#: Added tokens of the published file and of those trained here, whole and in part.
ADDED = (
    "<\uff5cUser\uff5c>",
    "<\uff5cbegin\uff5c>",
    "<\uff5cbegin",
    "\uff5c>\uff5c",
    "<\uff5cend\u2581of\u2581sentence\uff5c>",
    "</think>",
    "<think",
)


def classes() -> list[list[str]]:
    """Characters by what the patterns tell apart, and where they meet."""
    by_category: dict[str, list[str]] = {}
    for character in assigned():
        by_category.setdefault(unicodedata.category(character), []).append(character)
    ascii_only = [chr(p) for p in range(128)]
    han = [chr(p) for p in range(0x4E00, 0x9FA6)]
    kana = [chr(p) for p in range(0x3040, 0x3100)]
    unassigned = [chr(p) for p in (0x378, 0x9FFF, 0x3040, 0xE000, 0xFFFE, 0x10FFFF)]
    words = ["'s", "'LL", "'\u017f", "\r\n", "  ", "\n\n", *WORDS, *ADDED]
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


def spans(starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """The numbers from each start on, so many as its length says, end to end."""
    before = np.cumsum(lengths) - lengths
    return np.arange(lengths.sum()) + np.repeat(starts - before, lengths)


class Source:
    """Random texts: runs of one class each, all classes alike."""

    def __init__(self) -> None:
        kinds = classes()
        entries = [entry for kind in kinds for entry in kind]
        self.sizes = np.array([len(kind) for kind in kinds])
        self.starts = np.cumsum(self.sizes) - self.sizes
        self.points = np.array([ord(c) for entry in entries for c in entry], "<u4")
        self.entry_sizes = np.array([len(entry) for entry in entries])
        self.entry_starts = np.cumsum(self.entry_sizes) - self.entry_sizes

    def characters(self, draw: np.random.Generator, length: int) -> str:
        """One text of so many characters."""
        runs = 1 + length // int(RUNS.mean())
        kinds = draw.integers(len(self.sizes), size=runs)
        kinds = np.repeat(kinds, draw.choice(RUNS, runs))[:length]
        entries = self.starts[kinds] + draw.integers(self.sizes[kinds])
        places = spans(self.entry_starts[entries], self.entry_sizes[entries])[:length]
        text = self.points[places].tobytes().decode("utf-32-le")
        missing = length - len(text)
        return text + self.characters(draw, missing) if missing else text

    def texts(self, seed: int, length: int = ROUND) -> list[str]:
        """Texts of mixed lengths, so many characters in all."""
        draw = np.random.default_rng(seed)
        whole = self.characters(draw, length)
        kinds = draw.integers(len(LENGTHS) - 1, size=length // 1_000 + 10)
        sizes = draw.integers(LENGTHS[kinds], LENGTHS[kinds + 1])
        ends = np.minimum(np.cumsum(sizes), length).tolist()
        cuts = zip([0, *ends], [*ends, length], strict=True)
        return [whole[start:end] for start, end in cuts if start < end]


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


def difference(ours, peer, texts: list[str]) -> str | None:
    """The first of the texts whose ids differ."""
    expected = peer.encode_batch_fast(texts, add_special_tokens=False)
    for text, ids, wanted in zip(texts, ours.encode_batch(texts), expected, strict=True):
        if ids != wanted.ids:
            return text
    return None


def main(total: int, names: list[str]) -> None:
    """Compare until each tokenizer has seen so many characters."""
    source = Source()
    for name, (ours, peer) in pairs(names).items():
        done, started = 0, time.time()
        for seed in range(-(-total // ROUND)):
            texts = source.texts(seed, min(ROUND, total - done))
            wrong = difference(ours, peer, texts)
            if wrong is not None:
                raise SystemExit(f"{name} differs, seed {seed}: {wrong[:2_000]!a}")
            done += sum(map(len, texts))
            if seed % 20 == 19:
                rate = done / (time.time() - started)
                print(f"{name}: {done:,} characters alike, {rate:,.0f} a second", flush=True)
        print(f"{name}: all ids of {done:,} characters are equal", flush=True)


if __name__ == "__main__":
    from .families import SPLITS

    count = int(float(sys.argv[1])) if len(sys.argv) > 1 else 100_000_000
    main(count, sys.argv[2:] or ["published", *sorted(SPLITS)])
