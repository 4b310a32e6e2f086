"""The compiled page cache against the plain one, call for call."""

from __future__ import annotations

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from abyssal.kvcache import BlockTables, PageCache
from abyssal.reference import kvcache as reference

PICK = st.integers(0, 15)
SALTS = st.sampled_from([b"", b"a", b"\0"])
# Few different tokens, so that prompts often begin alike.
IDS = st.lists(st.integers(0, 1), max_size=10)


class Caches(RuleBasedStateMachine):
    """Both caches side by side; handles are paired by their place in a list."""

    @initialize(pages=st.integers(1, 12), page_size=st.integers(1, 4), reuse=st.integers(0, 7))
    def start(self, pages: int, page_size: int, reuse: int) -> None:
        self.ours = PageCache(pages, page_size, reuse=reuse > 0)
        self.plain = reference.PageCache(pages, page_size, reuse=reuse > 0)
        self.width = pages
        self.handles: list[tuple[int, int]] = []
        self.closed: list[tuple[int, int]] = []
        self.rows: dict[int, np.ndarray] = {}
        self.written: dict[int, int] = {}
        self.tables = [
            kind(np.full((4, pages), -1, np.int32)) for kind in (BlockTables, reference.BlockTables)
        ]

    def both(self, name: str, ours: tuple, plain: tuple, **more) -> tuple:
        """Call both; they return the like or raise the like."""
        results = []
        for cache, arguments in ((self.ours, ours), (self.plain, plain)):
            try:
                results.append(("returned", getattr(cache, name)(*arguments, **more)))
            except (ValueError, RuntimeError) as error:
                pages = str(error) if "out of pages" in str(error) else ""
                results.append((type(error).__name__, pages))
        assert results[0][0] == results[1][0], (name, results)
        if results[0][0] != "returned":
            assert results[0] == results[1]
        return results[0][0] == "returned", results[0][1], results[1][1]

    @rule(ids=IDS, salt=SALTS, most=st.none() | st.integers(-1, 9), multiple=st.integers(0, 4))
    def open(self, ids: list[int], salt: bytes, most: int | None, multiple: int) -> None:
        limits = {"max_cached": most, "multiple_of": multiple}
        done, ours, plain = self.both("open", (ids, salt), (ids, salt), **limits)
        if done:
            assert ours[1] == plain[1]
            assert ours[0] not in {pair[0] for pair in (*self.handles, *self.closed)}
            self.handles.append((ours[0], plain[0]))
            self.written[ours[0]] = 0

    @rule(picks=st.lists(st.tuples(PICK, st.integers(0, 9)), max_size=4), keep=st.booleans())
    def step(self, picks: list[tuple[int, int]], keep: bool) -> None:
        if not self.handles:
            return
        chosen = [(self.handles[pick % len(self.handles)], count) for pick, count in picks]
        blank = np.full(self.width, -1, np.int32)
        rows = [self.rows.get(pair[0], blank) for pair, _ in chosen] if keep else []
        ours = np.stack([*rows, *[blank] * (len(chosen) + 1 - len(rows))])
        plain, before = ours.copy(), ours.copy()
        written = np.array([self.written[pair[0]] for pair, _ in chosen] + [7], np.int32)
        more, same = (written, written.copy()) if keep else (None, None)
        counts = [count for _, count in chosen]
        done, copies, expected = self.both(
            "step",
            ([pair[0] for pair, _ in chosen], counts, ours, more),
            ([pair[1] for pair, _ in chosen], counts, plain, same),
        )
        assert ours.tobytes() == plain.tobytes()
        if not done:
            assert (ours == before).all()
            return
        assert copies == expected
        if keep:
            assert written.tolist() == same.tolist()
        for row, (pair, _) in enumerate(chosen):
            self.rows[pair[0]] = ours[row].copy()
            self.written[pair[0]] = len(self.plain._open[pair[1]].pages)

    @rule(picks=st.lists(st.tuples(PICK, st.integers(0, 3)), max_size=4, unique_by=lambda p: p[0]))
    def step_with_tables_that_stay(self, picks: list[tuple[int, int]]) -> None:
        if not self.handles:
            return
        chosen = {self.handles[pick % len(self.handles)]: count for pick, count in picks}
        ours, plain = self.tables
        counts = list(chosen.values())
        done, copies, expected = self.both(
            "step",
            ([pair[0] for pair in chosen], counts, ours),
            ([pair[1] for pair in chosen], counts, plain),
        )
        assert ours.array.tobytes() == plain.array.tobytes()
        if done:
            assert copies == expected
            for row, pair in enumerate(chosen):
                self.rows[pair[0]] = ours.array[row].copy()
                self.written[pair[0]] = len(self.plain._open[pair[1]].pages)

    @rule(pick=PICK, short=st.integers(-1, 4), publish=st.booleans(), ids=st.none() | IDS)
    def commit(self, pick: int, short: int, publish: bool, ids: list[int] | None) -> None:
        """Commit all reserved tokens but ``short``; below 0 is one too many."""
        if not self.handles:
            return
        ours, plain = self.handles[pick % len(self.handles)]
        sequence = self.plain._open[plain]
        count = max(sequence.reserved - short, 0)
        if ids is not None and len(ids) > 2:
            # Mostly as many as are missing.
            missing = max(0, count - len(sequence.known))
            ids = (ids * missing)[:missing]
        self.both("commit", ([ours], [count], publish, ids), ([plain], [count], [publish], ids))

    @rule(pick=PICK)
    def fork(self, pick: int) -> None:
        if self.handles:
            pair = self.handles[pick % len(self.handles)]
            done, ours, plain = self.both("fork", (pair[0],), (pair[1],))
            if done:
                self.handles.append((ours, plain))
                self.written[ours] = 0

    @rule(pick=PICK)
    def close(self, pick: int) -> None:
        if self.handles:
            pair = self.handles.pop(pick % len(self.handles))
            self.both("close", (pair[0],), (pair[1],))
            self.closed.append(pair)

    @rule(pick=PICK)
    def use_a_closed_handle(self, pick: int) -> None:
        if self.closed:
            ours, plain = self.closed[pick % len(self.closed)]
            table = np.zeros((1, self.width), np.int32)
            for call, tail in (("close", ()), ("fork", ()), ("step", ([1], table))):
                listed = call == "step"
                done, *_ = self.both(
                    call, ([ours] if listed else ours, *tail), ([plain] if listed else plain, *tail)
                )
                assert not done

    @rule(sure=st.integers(0, 5))
    def clear(self, sure: int) -> None:
        if not sure:
            self.both("clear", (), ())

    @invariant()
    def both_are_whole_and_count_the_same(self) -> None:
        if hasattr(self, "ours"):
            self.ours.audit()
            self.plain.audit()
            assert self.ours.stats() == self.plain.stats()
            assert self.ours.free_pages == self.plain.free_pages

    def teardown(self) -> None:
        if hasattr(self, "ours"):
            for ours, _ in self.handles:
                self.ours.close(ours)
            self.ours.audit()
            assert self.ours.free_pages == self.width


Caches.TestCase.settings = settings(
    max_examples=2 * settings.default.max_examples, stateful_step_count=60
)
TestCaches = Caches.TestCase
