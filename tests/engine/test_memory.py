"""The size of the page pool."""

from __future__ import annotations

import pytest

from abyssal.engine.memory import free_memory, pool_tokens
from abyssal.errors import RequestError


def test_free_memory_is_plausible() -> None:
    free = free_memory()
    assert free is None or 2**20 < free < 2**50


@pytest.mark.parametrize(
    ("free", "expected"),
    [
        (None, 4096),  # unknown: the model's maximum
        (10**9, 4096),  # more than enough
        (4 * 100 * 640, 640),  # a quarter holds exactly 10 pages
        (4 * 100 * 640 - 1, 576),  # one byte less, one page less
    ],
)
def test_the_default_is_the_models_maximum_or_a_quarter_of_memory(free, expected) -> None:
    assert pool_tokens(None, 4096, 100, 64, free) == expected


def test_no_room_for_one_page_is_an_error() -> None:
    with pytest.raises(RequestError, match=r"no page of 64 tokens \(6400 bytes\) fits"):
        pool_tokens(None, 4096, 100, 64, 4 * 6399)


def test_a_size_that_is_asked_for_is_taken_while_it_fits() -> None:
    assert pool_tokens(100, 4096, 100, 64, 12_800) == 100
    assert pool_tokens(10**6, 4096, 100, 64, None) == 10**6
    with pytest.raises(RequestError, match="12800 bytes, but 12799 are free: at most 64 tokens"):
        pool_tokens(100, 4096, 100, 64, 12_799)


def test_the_rows_are_not_touched_before_they_are_used(open_llm) -> None:
    resource = pytest.importorskip("resource")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # 2 layers of 40 f32 numbers for 4 million tokens: 1.3 GB if they were written.
    open_llm(kv_cache_tokens=4_000_000).generate([5, 6])
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 400_000
