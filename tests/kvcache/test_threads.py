"""The page cache used by many Python threads at once, with or without an interpreter lock.

Needs no torch, so that it also runs on a free-threaded Python (``scripts/test_free_threaded.sh``).
"""

import threading

import numpy as np

from abyssal.kvcache import OutOfPages, PageCache

THREADS, ROUNDS, PAGE_SIZE, PAGES = 8, 150, 4, 96


def together(work):
    """Run ``work(number)`` on every thread at one moment; raise what one of them raises."""
    barrier, failures = threading.Barrier(THREADS), []

    def run(number):
        barrier.wait()
        try:
            work(number)
        except BaseException as failure:
            failures.append(failure)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]


def test_threads_that_share_a_cache_never_share_a_tenants_page():
    cache = PageCache(PAGES, PAGE_SIZE)
    # Who wrote a page last; a page may change hands only after its holder let it go.
    owners = np.full(PAGES, -1)

    def work(number):
        random = np.random.default_rng(number)
        salt = number.to_bytes(1, "big")
        tables = np.zeros((1, PAGES), np.int32)
        for _ in range(ROUNDS):
            tokens = [number, *random.integers(0, 2, random.integers(1, 24)).tolist()]
            handle, cached = cache.open(tokens, salt=salt)
            try:
                cache.step([handle], [len(tokens) - cached], tables)
            except OutOfPages:
                cache.close(handle)
                continue
            held = tables[0, : -(-len(tokens) // PAGE_SIZE)]
            shared, fresh = held[: cached // PAGE_SIZE], held[cached // PAGE_SIZE :]
            assert (owners[shared] == number).all()
            owners[fresh] = number
            cache.commit([handle], [len(tokens)], publish=True)
            assert (owners[held] == number).all()
            cache.close(handle)

    together(work)
    cache.audit()
    stats = cache.stats()
    assert stats["sequences"] == 0
    assert stats["used_pages"] == 0


def test_a_handle_is_closed_by_one_thread_only():
    cache = PageCache(PAGES, PAGE_SIZE)
    handles = [cache.open([number])[0] for number in range(ROUNDS)]
    closed = [0] * THREADS

    def work(number):
        for handle in handles:
            try:
                cache.close(handle)
            except ValueError:
                continue
            closed[number] += 1

    together(work)
    assert sum(closed) == ROUNDS
    assert cache.stats()["sequences"] == 0
    cache.audit()
