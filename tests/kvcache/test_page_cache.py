"""What the compiled page cache takes, what it refuses, and threads that share one."""

from __future__ import annotations

import subprocess
import sys
import threading

import numpy as np
import pytest

from abyssal.kvcache import OutOfPages, PageCache

KINDS = ["list", "tuple", "int32", "int64", "uint32", "torch.int32", "torch.int64", "torch.uint32"]


@pytest.mark.parametrize("kind", KINDS)
def test_any_integer_sequence_is_taken(kind: str) -> None:
    def make(values: list[int]) -> object:
        if kind in ("list", "tuple"):
            return {"list": list, "tuple": tuple}[kind](values)
        if kind.startswith("torch"):
            torch = pytest.importorskip("torch")
            return torch.tensor(values, dtype=getattr(torch, kind.removeprefix("torch.")))
        return np.array(values, dtype=kind)

    cache = PageCache(4, 2)
    handle, _ = cache.open(make([5, 6, 7]), b"salt")
    # A first handle exceeds 32 bits: only the wide kinds can carry one.
    handles = make([handle]) if not kind.endswith("32") else [handle]
    table = np.full((1, 4), -1, np.int32)
    assert cache.step(handles, make([4]), table) == []
    assert table.tolist() == [[0, 1, -1, -1]]
    cache.commit(handles, make([4]), [True], make([8]))
    cache.audit()
    assert cache.open(make([5, 6, 7, 8]), b"salt")[1] == 4
    assert cache.open(make([5, 6, 7, 8]))[1] == 0


def test_a_torch_block_table_is_written_in_place() -> None:
    torch = pytest.importorskip("torch")
    cache = PageCache(4, 2)
    handle, _ = cache.open([])
    table = torch.full((2, 3), -1, dtype=torch.int32)
    cache.step([handle], [5], table)
    assert table.tolist() == [[0, 1, 2], [-1, -1, -1]]


def test_out_of_pages_tells_what_was_asked_and_what_is_free() -> None:
    cache = PageCache(4, 2)
    handle, _ = cache.open([])
    table = np.full((1, 9), -1, np.int32)
    cache.step([handle], [2], table)
    with pytest.raises(OutOfPages, match="5 asked, 3 free"):
        cache.step([handle], [9], table)
    assert cache.stats()["free_pages"] == 3
    assert table[0, 1] == -1
    assert issubclass(OutOfPages, RuntimeError)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda c, h: PageCache(0), ValueError, "num_pages is 0"),
        (lambda c, h: PageCache(-3), ValueError, "num_pages is -3"),
        (lambda c, h: PageCache(2**31), ValueError, "2147483648"),
        (lambda c, h: PageCache(1, 0), ValueError, "page_size is 0"),
        (lambda c, h: c.open([-1]), ValueError, "-1 is out of range"),
        (lambda c, h: c.open([2**32]), ValueError, "4294967296 is out of range"),
        (lambda c, h: c.open(["a"]), TypeError, "token_ids"),
        (lambda c, h: c.open(7), TypeError, "int"),
        (lambda c, h: c.open(np.zeros((2, 2), np.int64)), ValueError, r"\[2, 2\]"),
        (lambda c, h: c.open(np.zeros(2, np.float32)), TypeError, "float32"),
        (lambda c, h: c.step([h], [1], np.zeros((1, 4), np.int64)), TypeError, "int64"),
        (lambda c, h: c.step([h], [1], np.zeros(4, np.int32)), ValueError, r"\[rows, pages\]"),
        (
            lambda c, h: c.step([h], [1], np.zeros((4, 1), np.int32).T[:, ::2]),
            ValueError,
            "contiguous",
        ),
        (lambda c, h: c.step([h], [1], np.zeros((0, 4), np.int32)), ValueError, "0 entries"),
        (lambda c, h: c.step([h], [3], np.zeros((1, 1), np.int32)), ValueError, "2 pages"),
        (lambda c, h: c.step([h], [1, 1], np.zeros((1, 4), np.int32)), ValueError, "counts"),
        (lambda c, h: c.step([h], [-1], np.zeros((1, 4), np.int32)), ValueError, "-1"),
        (lambda c, h: c.step([h, h], [1, 1], np.zeros((2, 4), np.int32)), ValueError, "twice"),
        (lambda c, h: c.step([0], [1], np.zeros((1, 4), np.int32)), ValueError, "handle 0"),
        (lambda c, h: c.commit([h], [1], True), ValueError, "computed is 1, allowed are 0"),
        (lambda c, h: c.commit([h], [0], [True, False]), ValueError, "publish"),
        (lambda c, h: c.commit([h], [0], "yes"), TypeError, "publish"),
        (lambda c, h: c.fork(-1), ValueError, "handle -1"),
        (lambda c, h: c.close(h + 1), ValueError, "names no open sequence"),
    ],
)
def test_unusable_arguments_are_refused_and_change_nothing(call, error, message) -> None:
    cache = PageCache(4, 2)
    handle, _ = cache.open([1])
    before = cache.stats()
    with pytest.raises(error, match=message):
        call(cache, handle)
    assert cache.stats() == before
    cache.audit()


def test_a_read_only_block_table_is_refused() -> None:
    cache = PageCache(4, 2)
    handle, _ = cache.open([])
    table = np.zeros((1, 4), np.int32)
    table.flags.writeable = False
    with pytest.raises(ValueError, match="read-only"):
        cache.step([handle], [1], table)


def test_threads_may_share_a_cache() -> None:
    cache, page = PageCache(64, 4), 4
    memory = np.full(64 * page, -1)
    errors: list[BaseException] = []
    hits: list[int] = []

    def work(number: int) -> None:
        table = np.zeros((1, 64), np.int32)
        try:
            for count in range(300):
                # Few different prompts, so that threads find each other's pages. One is large
                # enough to be worked on without the interpreter.
                ids = np.arange(6 + 4 * (count % 4)) + 100 * ((count + number) % 3)
                cache.open(np.arange(10_000), b"elsewhere", max_cached=40) if count == 7 else None
                handle, cached = cache.open(ids)
                cache.step([handle], [len(ids) - cached], table)
                rows = table[0, np.arange(len(ids)) // page] * page + np.arange(len(ids)) % page
                assert memory[rows[:cached]].tolist() == ids[:cached].tolist()
                memory[rows[cached:]] = ids[cached:]
                cache.commit([handle], [len(ids)], True)
                cache.close(cache.fork(handle))
                cache.close(handle)
                hits.append(cached)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    cache.audit()
    assert cache.stats()["free_pages"] == 64
    assert sum(hits) > 1000


@pytest.mark.parametrize("salt", [b"", b"\0", b"\0\0", "\ud7ff\U0001f600".encode(), b"x" * 100_000])
def test_any_bytes_are_a_salt_and_no_two_salts_share_a_page(salt: bytes) -> None:
    cache = PageCache(8, 2)
    for other in (salt, salt + b"\0", b"y" + salt):
        handle, cached = cache.open([1, 2, 3, 4], other)
        assert cached == 0
        cache.step([handle], [4], np.zeros((1, 8), np.int32))
        cache.commit([handle], [4], True)
        cache.close(handle)
        assert cache.open([1, 2, 3, 4], other)[1] == 4
    assert cache.stats()["shared_pages"] == 0
    for wrong in ("text", 7, None):
        with pytest.raises(TypeError):
            cache.open([1], wrong)


def test_every_kind_of_unusable_tensor_is_refused() -> None:
    torch = pytest.importorskip("torch")
    cache = PageCache(4, 2)
    handle, _ = cache.open([])
    table = torch.zeros(1, 4, dtype=torch.int32)
    ids = torch.zeros(4, dtype=torch.int64)
    bad = [
        (ids.to("meta"), TypeError),
        (ids.to_sparse(), TypeError),
        (ids.float(), TypeError),
        (torch.zeros(8, dtype=torch.int64)[::2], ValueError),
        (ids.view(2, 2), ValueError),
        (torch.frombuffer(bytearray(33), dtype=torch.uint8)[1:33].view(torch.uint8), TypeError),
    ]
    for tensor, error in bad:
        with pytest.raises(error):
            cache.open(tensor)
        with pytest.raises(error):
            cache.commit([handle], [0], True, tensor)
    misaligned = np.frombuffer(bytearray(33), np.uint8)[1:].view(np.int64)
    with pytest.raises(ValueError, match="aligned"):
        cache.open(misaligned)
    with pytest.raises(ValueError, match="shares memory"):
        cache.step([handle], [1], table, table[0])
    with pytest.raises(TypeError, match="meta"):
        cache.step([handle], [1], table.to("meta"))
    with pytest.raises(ValueError, match="at least 1 entries"):
        cache.step([handle], [1], table, np.zeros(0, np.int32))
    with pytest.raises(ValueError, match="written is 3"):
        cache.step([handle], [1], table, np.full(1, 3, np.int32))
    # Zero tokens, sequences and columns are fine.
    assert cache.open(ids[:0]) == (cache.open([])[0] - 1, 0)
    assert cache.step([], [], table[:0]) == []
    assert cache.step([handle], [0], torch.zeros(1, 0, dtype=torch.int32)) == []
    cache.commit([], [], True, [])
    assert cache.stats()["used_pages"] == 0
    cache.audit()


def test_a_large_cache_costs_no_memory_of_its_own() -> None:
    # 2**31 - 1 pages would take gigabytes if a number were kept for each from the beginning.
    cache = PageCache(2**31 - 1)
    handle, _ = cache.open([])
    cache.step([handle], [64], np.zeros((1, 1), np.int32))
    cache.audit()
    assert cache.stats()["free_pages"] == 2**31 - 2


def test_the_page_cache_needs_no_torch() -> None:
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from abyssal.kvcache import PageCache\n"
        "from array import array\n"
        "cache = PageCache(2, 2); handle, _ = cache.open([1])\n"
        "table = memoryview(bytearray(8)).cast('i', (1, 2))\n"
        "cache.step([handle], array('q', [4]), table)\n"
        "assert table.tolist() == [[0, 1]], table.tolist()\n"
        "assert 'numpy' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
