"""Timing that holds on a busy machine: samples of both sides in turn, medians, ratios of neighbors.

A slow moment of the machine falls on neighboring samples alike, so the median of their ratios
moves far less than either time.
"""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

Work = Callable[[], object]


@dataclass(frozen=True)
class Comparison:
    """Seconds of one call, medians over the samples, and the median ratio ``peer / ours``."""

    ours: float
    peer: float
    ratio: float


def repetitions(work: Work, sample_seconds: float) -> int:
    """Return how many calls fill a sample of about so many seconds. Calls it to find out."""
    count = 1
    while True:
        taken = _sample(work, count)
        if taken >= sample_seconds / 2 or count >= 1 << 24:
            return max(1, round(count * sample_seconds / max(taken, 1e-9)))
        count *= 4 if taken * 8 < sample_seconds else 2


def compare(
    ours: Work, peer: Work, *, samples: int = 15, sample_seconds: float = 0.01
) -> Comparison:
    """Time two ways of doing the same work, in turn.

    Args:
        ours: one call of ours.
        peer: one call of the peer's.
        samples: samples of each side.
        sample_seconds: how long a sample lasts at least; short work is repeated to fill it.
    """
    counts = [repetitions(work, sample_seconds) for work in (ours, peer)]
    taken: list[list[float]] = [[], []]
    collecting = gc.isenabled()
    gc.disable()
    try:
        for _ in range(samples):
            for side, work in enumerate((ours, peer)):
                taken[side].append(_sample(work, counts[side]) / counts[side])
    finally:
        if collecting:
            gc.enable()
    ratios = [b / a for a, b in zip(*taken, strict=True)]
    mine, theirs = map(statistics.median, taken)
    return Comparison(mine, theirs, statistics.median(ratios))


def measure(work: Work, *, samples: int = 7, sample_seconds: float = 0.01) -> float:
    """Return the median seconds of one call."""
    count = repetitions(work, sample_seconds)
    return statistics.median(_sample(work, count) / count for _ in range(samples))


def _sample(work: Work, count: int) -> float:
    started = time.perf_counter()
    for _ in range(count):
        work()
    return time.perf_counter() - started
