"""Block tables that stay from step to step: written where something is new, right everywhere."""

import threading

import numpy as np
import pytest

from abyssal.kvcache import BlockTables, PageCache


def opened(cache, tokens):
    """Open a sequence with pages for so many tokens."""
    handle, _ = cache.open([])
    cache.step([handle], [tokens], np.zeros((1, cache.num_pages), np.int32))
    return handle


def test_a_step_writes_only_what_is_new_to_a_row():
    cache, array = PageCache(8, 2), np.full((2, 4), -1, np.int32)
    tables = BlockTables(array)
    assert tables.array is array
    handles = [cache.open([])[0] for _ in range(2)]
    cache.step(handles, [3, 2], tables)
    array[:] = 70
    cache.step(handles, [2, 1], tables)
    assert array.tolist() == [[70, 70, 3, 70], [70, 4, 70, 70]]
    tables.forget()
    cache.step(handles, [0, 0], tables)
    assert array.tolist() == [[0, 1, 3, 70], [2, 4, 70, 70]]


def test_rows_that_change_hands_are_written_whole():
    cache, other = PageCache(8, 2), PageCache(8, 2)
    tables = BlockTables(np.full((2, 4), -1, np.int32))
    first, second = opened(cache, 3), opened(cache, 5)
    cache.step([first, second], [0, 0], tables)
    cache.step([second], [0], tables)
    assert tables.array.tolist() == [[2, 3, 4, -1], [2, 3, 4, -1]]
    cache.close(first)
    cache.step([second], [2], tables)
    assert tables.array[0].tolist() == [2, 3, 4, 0]
    # The other cache's handles are the same numbers.
    assert [opened(other, 2), opened(other, 2)] == [first, second]
    other.step([second], [0], tables)
    assert tables.array[0].tolist() == [1, 3, 4, 0]


def test_a_copied_page_is_noticed_whichever_table_was_told():
    cache = PageCache(8, 2)
    tables = BlockTables(np.full((1, 4), -1, np.int32))
    handle, _ = cache.open([])
    cache.step([handle], [3], tables)
    cache.commit([handle], [3], False)
    cache.fork(handle)
    assert cache.step([handle], [1], np.zeros((1, 4), np.int32)) == [(1, 2)]
    cache.step([handle], [1], tables)
    assert tables.array.tolist() == [[0, 2, 3, -1]]


def test_a_torch_tensor_that_moves_is_written_whole():
    torch = pytest.importorskip("torch")
    cache, tensor = PageCache(8, 2), torch.full((1, 4), -1, dtype=torch.int32)
    tables = BlockTables(tensor)
    handle = opened(cache, 3)
    cache.step([handle], [0], tables)
    tensor.set_(torch.full((1, 8), -1, dtype=torch.int32))
    cache.step([handle], [2], tables)
    assert tensor.tolist() == [[0, 1, 2, -1, -1, -1, -1, -1]]


def test_bad_tables_are_refused():
    cache, array = PageCache(8, 2), np.zeros((1, 4), np.int32)
    for bad, error in [
        (np.zeros((1, 4)), TypeError),
        ("tables", TypeError),
        (array[0], ValueError),
        (np.zeros((4, 2), np.int32)[::2], ValueError),
        (np.frombuffer(bytes(16), np.int32).reshape(1, 4), ValueError),
    ]:
        with pytest.raises(error, match="array"):
            BlockTables(bad)
    handle, _ = cache.open([])
    with pytest.raises(ValueError, match="pass one of the two"):
        cache.step([handle], [1], BlockTables(array), np.zeros(1, np.int32))
    with pytest.raises(ValueError, match="expected 2"):
        cache.step([handle, opened(cache, 1)], [1, 1], BlockTables(array))
    assert (array == 0).all()


def test_threads_that_share_tables_take_turns():
    cache, array = PageCache(64, 2), np.full((1, 64), -1, np.int32)
    tables, handle = BlockTables(array), cache.open([])[0]

    def work():
        for _ in range(15):
            cache.step([handle], [1], tables)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert array[0, :60].tolist() == list(range(60))
    assert (array[0, 60:] == -1).all()
