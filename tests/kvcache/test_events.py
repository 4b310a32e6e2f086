"""Events decode with vLLM's own structures, and say what can be matched."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from abyssal.kvcache import PageCache, page_identities

msgspec = pytest.importorskip("msgspec")


# The structures of vLLM 0.33's vllm/distributed/kv_events.py: names, order, defaults and options.
class EventBatch(msgspec.Struct, array_like=True, omit_defaults=True, gc=False):
    ts: float
    events: list[Any]
    data_parallel_rank: int | None = None


class KVCacheEvent(msgspec.Struct, omit_defaults=True, gc=False, tag=True):
    pass


class BlockStored(KVCacheEvent):
    block_hashes: list[bytes | int]
    parent_block_hash: bytes | int | None
    token_ids: list[int]
    block_size: int
    lora_id: int | None
    medium: str | None
    lora_name: str | None
    extra_keys: list[tuple[Any, ...] | None] | None = None
    group_idx: int | None = None
    kv_cache_spec_kind: str | None = None
    kv_cache_spec_sliding_window: int | None = None
    locality: str | None = None
    ownership: str | None = None
    session_id: str | None = None
    lookahead_token_ids: list[list[int]] | None = None


class BlockRemoved(KVCacheEvent):
    block_hashes: list[bytes | int]
    medium: str | None
    group_idx: int | None = None
    locality: str | None = None
    ownership: str | None = None


class AllBlocksCleared(KVCacheEvent):
    pass


class KVEventBatch(EventBatch):
    events: list[BlockStored | BlockRemoved | AllBlocksCleared]


def decode(payload: bytes) -> KVEventBatch:
    batch = msgspec.msgpack.Decoder(KVEventBatch).decode(payload)
    # What their encoder makes of it holds the same as what we sent, keys left out included. The
    # bytes differ in the heads of maps: ours take their shortest form.
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(batch)) == msgspec.msgpack.decode(payload)
    return batch


def names(ids: list[int], page_size: int, salt: bytes = b"", full: bool = False) -> list:
    found = page_identities(ids, page_size, salt)
    return found if full else [int.from_bytes(name, "big") % 2**64 for name in found]


def compute(cache: PageCache, ids: list[int], salt: bytes = b"") -> int:
    handle, cached = cache.open(ids, salt)
    cache.step([handle], [len(ids) - cached], np.zeros((1, cache.num_pages), np.int32))
    cache.commit([handle], [len(ids)], True)
    return handle


def test_a_cache_keeps_no_events_unless_asked():
    cache = PageCache(4, 2)
    compute(cache, [1, 2])
    cache.clear()
    assert cache.take_events() is None


@pytest.mark.parametrize("full", [False, True])
def test_stored_removed_and_cleared_arrive_in_order(full):
    cache = PageCache(3, 2, events=True)
    assert cache.take_events() is None
    ids = [7, 8, 9, 2**32 - 1, 5]
    cache.close(compute(cache, ids, b"tenant"))
    before = time.time()
    batch = decode(cache.take_events(data_parallel_rank=3, full_hashes=full))
    assert before <= batch.ts <= time.time()
    assert batch.data_parallel_rank == 3
    (stored,) = batch.events
    expected = names(ids, 2, b"tenant", full)
    assert stored == BlockStored(expected, None, ids[:4], 2, None, "GPU", None)
    assert cache.take_events() is None

    compute(cache, [*ids[:4], 6, 6], b"tenant")
    batch = decode(cache.take_events(timestamp=1.5, medium="CPU", full_hashes=full))
    assert (batch.ts, batch.data_parallel_rank) == (1.5, None)
    (stored,) = batch.events
    last = names([*ids[:4], 6, 6], 2, b"tenant", full)[2:]
    assert stored == BlockStored(last, expected[1], [6, 6], 2, None, "CPU", None)

    cache.clear()
    assert decode(cache.take_events()).events == [AllBlocksCleared()]


def test_pages_given_up_are_removed():
    cache = PageCache(2, 1, events=True)
    cache.close(compute(cache, [1, 2]))
    compute(cache, [3, 4])
    first, removed, *stored = decode(cache.take_events()).events
    assert first.block_hashes == names([1, 2], 1)
    assert removed == BlockRemoved(names([1, 2], 1)[::-1], "GPU")
    assert [hash for each in stored for hash in each.block_hashes] == names([3, 4], 1)


PROMPT = st.lists(st.integers(0, 1), min_size=1, max_size=9)


@given(st.lists(st.tuples(PROMPT, st.sampled_from([b"", b"a"]), st.integers(0, 9)), max_size=30))
def test_a_router_that_follows_the_events_knows_what_is_cached(requests):
    cache = PageCache(6, 1, events=True)
    router: set[int] = set()
    for ids, salt, kind in requests:
        if kind == 0:
            cache.clear()
        else:
            ids = ids[:6]
            cache.close(compute(cache, ids, salt))
        payload = cache.take_events()
        for event in decode(payload).events if payload else []:
            if isinstance(event, BlockStored):
                assert event.parent_block_hash is None or event.parent_block_hash in router
                assert len(event.token_ids) == len(event.block_hashes) * event.block_size
                router.update(event.block_hashes)
            elif isinstance(event, BlockRemoved):
                router -= set(event.block_hashes)
            else:
                router.clear()
        assert len(router) == cache.stats()["published_pages"]
        handle, cached = cache.open(ids, salt)
        known = [name in router for name in names(ids, 1, salt)]
        assert cached == (known.index(False) if False in known else len(known))
        cache.close(handle)


def test_events_that_nobody_takes_end_in_a_clear():
    cache = PageCache(2**16 + 9, 1, events=True)
    compute(cache, list(range(2**16 + 2)))
    events = decode(cache.take_events()).events
    assert events[0] == AllBlocksCleared()
    assert sum(len(each.block_hashes) for each in events[1:]) == 1
