"""The page cache through Python: a decoding step, a prompt that is cached, one that is not."""

import numpy as np
import pytest

from abyssal.kvcache import BlockTables, PageCache

SEQUENCES, WIDTH = 256, 64
PROMPT = 32_768


@pytest.mark.parametrize("kind", ["BlockTables", "arrays", "lists"])
def test_a_step_of_256_sequences(benchmark, kind):
    cache = PageCache(SEQUENCES * WIDTH, 64)
    tables = np.full((SEQUENCES, WIDTH), -1, np.int32)
    handles = [cache.open([])[0] for _ in range(SEQUENCES)]
    counts = [1] * SEQUENCES
    if kind != "lists":
        handles, counts = np.array(handles), np.array(counts)
    out = BlockTables(tables) if kind == "BlockTables" else tables

    def step():
        cache.step(handles, counts, out)

    step()
    assert sorted(tables[:, 0].tolist()) == list(range(SEQUENCES))
    cache.audit()
    # At most 64 pages of 64 tokens each.
    benchmark.pedantic(step, rounds=100, iterations=40, warmup_rounds=2)
    cache.audit()


def computed(cache, ids):
    handle, cached = cache.open(ids)
    cache.step([handle], [len(ids) - cached], np.zeros((1, len(ids) // 64), np.int32))
    cache.commit([handle], [len(ids)], True)
    return handle, cached


@pytest.mark.parametrize("tokens", [PROMPT, 2**20])
def test_a_prompt_that_is_cached(benchmark, tokens):
    ids = np.random.default_rng(0).integers(0, 129_280, tokens)
    cache = PageCache(tokens // 64, 64)
    cache.close(computed(cache, ids)[0])

    def match():
        handle, cached = cache.open(ids)
        cache.close(handle)
        return cached

    assert benchmark(match) == tokens
    cache.audit()


def test_a_prompt_that_is_not_cached(benchmark):
    cache = PageCache(8 * PROMPT // 64, 64)
    random = np.random.default_rng(0)

    def new_prompt():
        return (cache, random.integers(0, 129_280, PROMPT)), {}

    def miss(cache, ids):
        handle, cached = computed(cache, ids)
        cache.close(handle)
        return cached

    assert benchmark.pedantic(miss, setup=new_prompt, rounds=30, warmup_rounds=9) == 0
    assert cache.stats()["evictions"] > 0 or not benchmark.enabled
    cache.audit()
