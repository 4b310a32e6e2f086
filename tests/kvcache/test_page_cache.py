"""The compiled page cache against the plain one, and what it does with unusable arguments."""

from __future__ import annotations

import subprocess
import sys
import threading

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from abyssal.kvcache import OutOfPages, PageCache
from abyssal.reference import kvcache as reference

OPERATIONS = st.lists(
    st.one_of(
        st.tuples(st.just("open"), st.lists(st.integers(0, 99), max_size=5)),
        st.tuples(
            st.just("step"), st.lists(st.tuples(st.integers(0, 15), st.integers(0, 9)), max_size=4)
        ),
        st.tuples(st.just("commit"), st.integers(0, 15), st.integers(-2, 9), st.booleans()),
        st.tuples(st.just("fork"), st.integers(0, 15)),
        st.tuples(st.just("close"), st.integers(0, 15)),
        st.tuples(st.just("stale"), st.integers(0, 15)),
    ),
    max_size=60,
)


class Pair:
    """Both caches side by side; handles are paired by their place in a list."""

    def __init__(self, num_pages: int, page_size: int) -> None:
        self.ours = PageCache(num_pages, page_size)
        self.plain = reference.PageCache(num_pages, page_size)
        self.handles: list[tuple[int, int]] = []
        self.closed: list[tuple[int, int]] = []
        self.reserved: dict[int, int] = {}
        self.width = num_pages

    def both(self, name: str, ours: tuple, plain: tuple) -> tuple:
        """Call both; they return the like or raise the like."""
        results = []
        for cache, arguments in ((self.ours, ours), (self.plain, plain)):
            try:
                results.append(("returned", getattr(cache, name)(*arguments)))
            except (ValueError, RuntimeError) as error:
                pages = str(error) if "out of pages" in str(error) else ""
                results.append((type(error).__name__, pages))
        assert results[0][0] == results[1][0], (name, results)
        if results[0][0] != "returned":
            assert results[0] == results[1]
        return results[0][0] == "returned", results[0][1], results[1][1]

    def step(self, picks: list[tuple[int, int]]) -> None:
        """Step some sequences; tables and copies must agree."""
        if not self.handles:
            return
        chosen = [(self.handles[pick % len(self.handles)], count) for pick, count in picks]
        ours, plain = (np.full((len(chosen) + 1, self.width), -1, np.int32) for _ in range(2))
        counts = [count for _, count in chosen]
        done, copies, expected = self.both(
            "step",
            ([pair[0] for pair, _ in chosen], counts, ours),
            ([pair[1] for pair, _ in chosen], counts, plain),
        )
        assert ours.tobytes() == plain.tobytes()
        if done:
            assert copies == expected
        else:
            assert (ours == -1).all()

    def apply(self, operation: tuple) -> None:
        """Run one operation on both."""
        name, *rest = operation
        if name == "open":
            _, (ours, cached), (plain, _) = self.both("open", tuple(rest), tuple(rest))
            assert cached == 0
            assert ours not in {pair[0] for pair in (*self.handles, *self.closed)}
            self.handles.append((ours, plain))
        elif name == "step":
            self.step(rest[0])
        elif name == "stale" and self.closed:
            ours, plain = self.closed[rest[0] % len(self.closed)]
            table = np.zeros((1, self.width), np.int32)
            for call, tail in (("close", ()), ("fork", ()), ("step", ([1], table))):
                listed = call == "step"
                done, *_ = self.both(
                    call, ([ours] if listed else ours, *tail), ([plain] if listed else plain, *tail)
                )
                assert not done
        elif name in ("commit", "fork", "close") and self.handles:
            pair = self.handles[rest[0] % len(self.handles)]
            if name == "commit":
                self.commit(pair, rest[1], rest[2])
                return
            done, ours, plain = self.both(name, (pair[0],), (pair[1],))
            if name == "fork" and done:
                self.handles.append((ours, plain))
            elif name == "close":
                self.handles.remove(pair)
                self.closed.append(pair)

    def commit(self, pair: tuple[int, int], short: int, publish: bool) -> None:
        """Commit all reserved tokens but ``short``; below 0 is one too many."""
        count = max(self.plain._open[pair[1]].reserved - short, 0)
        self.both("commit", ([pair[0]], [count], publish), ([pair[1]], [count], [publish]))

    def check(self) -> None:
        """Both are whole, and count the same."""
        self.ours.audit()
        self.plain.audit()
        assert self.ours.stats() == self.plain.stats()
        assert self.ours.free_pages == self.plain.free_pages


@given(st.integers(1, 12), st.integers(1, 5), OPERATIONS)
def test_random_operations_behave_like_the_plain_cache(
    num_pages: int, page_size: int, operations: list[tuple]
) -> None:
    pair = Pair(num_pages, page_size)
    for operation in operations:
        pair.apply(operation)
        pair.check()
    for ours, _ in pair.handles:
        pair.ours.close(ours)
    pair.ours.audit()
    assert pair.ours.stats()["free_pages"] == num_pages


@pytest.mark.parametrize("kind", ["list", "tuple", "int32", "int64", "torch32", "torch64"])
def test_any_integer_sequence_is_taken(kind: str) -> None:
    def make(values: list[int]) -> object:
        if kind in ("list", "tuple"):
            return {"list": list, "tuple": tuple}[kind](values)
        if kind.startswith("torch"):
            torch = pytest.importorskip("torch")
            return torch.tensor(values, dtype={"32": torch.int32, "64": torch.int64}[kind[-2:]])
        return np.array(values, dtype=kind)

    cache = PageCache(4, 2)
    handle, _ = cache.open(make([5, 6, 7]), b"salt")
    # A first handle exceeds 32 bits: only the wide kinds can carry one.
    handles = make([handle]) if not kind.endswith("32") else [handle]
    table = np.full((1, 4), -1, np.int32)
    assert cache.step(handles, make([3]), table) == []
    assert table.tolist() == [[0, 1, -1, -1]]
    cache.commit(handles, make([3]), [True])
    cache.audit()


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
    cache = PageCache(64, 4)
    errors: list[BaseException] = []

    def work() -> None:
        table = np.zeros((1, 64), np.int32)
        try:
            for count in range(200):
                handle, _ = cache.open([])
                cache.step([handle], [count % 30], table)
                cache.commit([handle], [count % 30], False)
                cache.close(cache.fork(handle))
                cache.close(handle)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    cache.audit()
    assert cache.stats()["free_pages"] == 64


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
