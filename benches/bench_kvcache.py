"""A decoding step of the page cache through Python: 64 sequences reserve and commit a token."""

import numpy as np

from abyssal.kvcache import PageCache

SEQUENCES, WIDTH = 64, 64


def test_a_step_of_64_sequences(benchmark):
    cache = PageCache(SEQUENCES * WIDTH, 64)
    tables = np.full((SEQUENCES, WIDTH), -1, np.int32)
    handles = [cache.open([])[0] for _ in range(SEQUENCES)]
    ones = [1] * SEQUENCES
    lengths = [0]

    def step():
        lengths[0] += 1
        cache.step(handles, ones, tables)
        cache.commit(handles, [lengths[0]] * SEQUENCES, False)

    step()
    assert sorted(tables[:, 0].tolist()) == list(range(SEQUENCES))
    cache.audit()
    # At most 64 pages of 64 tokens each.
    benchmark.pedantic(step, rounds=100, iterations=10, warmup_rounds=2)
    assert lengths[0] <= WIDTH * 64
    cache.audit()
