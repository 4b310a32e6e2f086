"""The page cache: what a page, a step, a prompt and a new chunk cost.

There is no peer in this package's environment, so these rows have none. Times are processor time
of the calling thread, which other programs do not lengthen as they do the clock's; all work is done
by that thread. ``python -m abyssal.bench.kvcache PLOT.png`` draws the cost of a new chunk against
the context before it.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable, Iterator
from time import thread_time as clock

import numpy as np

from abyssal.bench.rows import Row
from abyssal.kvcache import BlockTables, PageCache

#: Passes over each kind of work; the figure is their median.
PASSES = 9
PAGE_SIZE = 64
PAGES = 8192
SEQUENCES, STEPS = 256, 128
PROMPT, LONG_PROMPT = 32_768, 2**20
CHUNK = 2048
CONTEXTS = (4096, 16_384, 65_536, 262_144, 2**20 - CHUNK)


def rows() -> Iterator[Row]:
    """Measure every row; nothing is timed before its result was compared."""
    yield Row("allocate and free pages, in bulk", "ns per page", _median(_allocate) / PAGES * 1e9)
    for context in (1024, 32_768):
        name = f"extend {SEQUENCES} sequences of {context} tokens by one token"
        for kind, how in ((BlockTables, "BlockTables"), (np.asarray, "a plain array")):
            seconds = _median(lambda c=context, k=kind: _extend(c, k))  # type: ignore[misc]
            yield Row(f"{name}, {how}", "us per step", seconds * 1e6)
    for tokens in (PROMPT, LONG_PROMPT):
        seconds = _median(lambda t=tokens: _match(t))  # type: ignore[misc]
        yield Row(f"match a prompt of {tokens} tokens, all cached", "ms", seconds * 1e3)
    yield Row(
        f"open, commit and publish a prompt of {PROMPT} tokens, none cached",
        "ms",
        _median(_miss) * 1e3,
    )
    curve = chunk_costs()
    first = curve[CONTEXTS[0] // CHUNK]
    for context in CONTEXTS:
        at = context // CHUNK
        near = statistics.median(curve[max(0, at - 2) : at + 3])
        name = f"reserve, commit and publish {CHUNK} tokens after {context}"
        yield Row(
            name, "us per chunk", near * 1e6, first * 1e6, "the same after 4096", first / near
        )


def _median(work: Callable[[], float]) -> float:
    """Return the median of what so many passes of the work report, after one for nothing."""
    work()
    return statistics.median(work() for _ in range(PASSES))


def _prompt(tokens: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 129_280, tokens, dtype=np.int64)


def _expect(what: str, found: object, expected: object) -> None:
    if found != expected:
        raise RuntimeError(f"{what} is {found}, expected {expected}")


_bulk: list[PageCache] = []


def _allocate() -> float:
    """A sequence takes all pages at once and gives them back; the cache is used again."""
    if not _bulk:
        _bulk.append(PageCache(PAGES, PAGE_SIZE))
    (cache,) = _bulk
    table = np.full((1, PAGES), -1, np.int32)
    counts = np.array([PAGES * PAGE_SIZE])
    handle, _ = cache.open([])
    handles = np.array([handle])
    started = clock()
    cache.step(handles, counts, table)
    cache.close(handle)
    taken = clock() - started
    _expect("sum of the pages", int(table.sum()), PAGES * (PAGES - 1) // 2)
    _expect("free pages", cache.free_pages, PAGES)
    return taken


def _extend(context: int, kind: Callable[[np.ndarray], object]) -> float:
    """Seconds of a step in which every sequence gets one token."""
    width = (context + STEPS) // PAGE_SIZE + 1
    cache = PageCache(SEQUENCES * width, PAGE_SIZE)
    handles = np.array([cache.open([])[0] for _ in range(SEQUENCES)])
    table = np.full((SEQUENCES, width), -1, np.int32)
    tables = kind(table)
    cache.step(handles, np.full(SEQUENCES, context), tables)
    ones = np.ones(SEQUENCES, np.int64)
    started = clock()
    for _ in range(STEPS):
        cache.step(handles, ones, tables)
    taken = clock() - started
    pages = -(-(context + STEPS) // PAGE_SIZE)
    _expect("pages in the table", len(np.unique(table[:, :pages])), SEQUENCES * pages)
    _expect("pages in use", cache.stats()["used_pages"], SEQUENCES * pages)
    return taken / STEPS


_matched: dict[int, tuple[PageCache, np.ndarray]] = {}


def _match(tokens: int) -> float:
    """Seconds to open a sequence whose whole prompt is cached."""
    if tokens not in _matched:
        ids = _prompt(tokens)
        cache = PageCache(tokens // PAGE_SIZE, PAGE_SIZE)
        handle, _ = cache.open(ids)
        cache.step([handle], [tokens], np.zeros((1, tokens // PAGE_SIZE), np.int32))
        cache.commit([handle], [tokens], True)
        cache.close(handle)
        _matched[tokens] = cache, ids
    cache, ids = _matched[tokens]
    started = clock()
    handle, cached = cache.open(ids)
    taken = clock() - started
    _expect("cached tokens", cached, tokens)
    cache.close(handle)
    return taken


_missed: list[PageCache] = []


def _miss() -> float:
    """Seconds to open, reserve, commit and publish a prompt that nobody asked before."""
    if not _missed:
        _missed.append(PageCache(PAGES, PAGE_SIZE))
    (cache,) = _missed
    ids = _prompt(PROMPT, seed=1 + cache.stats()["misses"])
    table = np.full((1, PROMPT // PAGE_SIZE), -1, np.int32)
    counts = np.array([PROMPT])
    started = clock()
    handle, cached = cache.open(ids)
    handles = np.array([handle])
    cache.step(handles, counts, table)
    cache.commit(handles, counts, True)
    taken = clock() - started
    _expect("cached tokens", cached, 0)
    again, cached = cache.open(ids)
    _expect("cached tokens", cached, PROMPT)
    cache.close(again)
    cache.close(handle)
    return taken


def chunk_costs() -> list[float]:
    """Return the seconds of each chunk of a long prompt: reserved, committed and published."""
    pages = LONG_PROMPT // PAGE_SIZE
    chunks = LONG_PROMPT // CHUNK
    passes = []
    for seed in range(PASSES + 1):
        cache = PageCache(pages, PAGE_SIZE)
        table = np.full((1, pages), -1, np.int32)
        tables = BlockTables(table)
        handle, _ = cache.open(_prompt(LONG_PROMPT, seed))
        handles, counts = np.array([handle]), np.array([CHUNK])
        taken = []
        for chunk in range(chunks):
            computed = np.array([(chunk + 1) * CHUNK])
            started = clock()
            cache.step(handles, counts, tables)
            cache.commit(handles, computed, True)
            taken.append(clock() - started)
        _expect("published pages", cache.stats()["published_pages"], pages)
        _expect("table", table.tolist(), [list(range(pages))])
        passes.append(taken)
    return [statistics.median(each) for each in zip(*passes[1:], strict=True)]


def plot(path: str) -> None:
    """Draw the cost of a new chunk against the context before it."""
    from matplotlib.figure import Figure

    curve = chunk_costs()
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    contexts = [chunk * CHUNK for chunk in range(len(curve))]
    axes.plot(contexts[2:], [seconds * 1e6 for seconds in curve[2:]], ".", markersize=3)
    axes.set_xscale("log", base=2)
    axes.set_ylim(0, 3 * statistics.median(curve) * 1e6)
    axes.set_xlabel("tokens of context before the chunk")
    axes.set_ylabel("microseconds")
    axes.set_title(f"Page cache: reserve, commit and publish {CHUNK} new tokens")
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    plot(sys.argv[1])
