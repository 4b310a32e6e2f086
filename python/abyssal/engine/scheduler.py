"""Which sequences take part in the next step, with how many tokens each.

Continuous batching over pages: every running sequence that only lacks its last token takes part;
what is left of the token budget goes to prompts, oldest first, in chunks. A waiting sequence starts
when the pages for all its tokens are free and not promised to an older one. When pages run out all
the same, the youngest sequence gives its pages back, waits, and is computed again from its tokens.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import torch

from abyssal.engine.sequence import Request, Sequence
from abyssal.kvcache import BlockTables, OutOfPages, PageCache
from abyssal.nn import SEGMENT

#: A request for logits takes part with so few tokens at once that its logits stay small.
LOGITS_CHUNK = 256
#: Prompt tokens beside answers at most: these wait for the whole step. A prompt alone takes more at
#: once, because every step rebuilds the keys of all tokens before it.
BESIDE_ANSWERS = 1024


@dataclass(frozen=True)
class Step:
    """One step: parallel lists, and a block table row for each sequence.

    Attributes:
        sequences: Who takes part.
        counts: With how many tokens, from ``computed`` on.
        block_tables: int32 ``[rows, pages]``; row ``i`` belongs to sequence ``i``.
        copies: Pages to copy, ``(from, to)``, before anything is written.
    """

    sequences: list[Sequence]
    counts: list[int]
    block_tables: torch.Tensor
    copies: list[tuple[int, int]]


class Scheduler:
    """Keeps the order of sequences and their pages.

    Args:
        cache: Deals out the pages.
        max_num_seqs: Sequences in a step at most.
        max_tokens: Tokens in a step at most, not below ``max_num_seqs``.
        max_length: Tokens of a sequence at most.
    """

    def __init__(
        self, cache: PageCache, *, max_num_seqs: int, max_tokens: int, max_length: int
    ) -> None:
        self.cache = cache
        self.max_num_seqs, self.max_tokens = max_num_seqs, max_tokens
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []
        width = min(cache.num_pages, -(-max_length // cache.page_size))
        self._block_tables = torch.zeros(max_num_seqs, width, dtype=torch.int32)
        self._tables = BlockTables(self._block_tables)

    def plan(self) -> Step | None:
        """Choose the next step and reserve its pages; None when there is nothing to do."""
        self._admit()
        while self.running:
            sequences, counts = self._share_budget()
            handles = [sequence.handle for sequence in sequences]
            try:
                copies = self.cache.step(handles, counts, self._tables)
            except OutOfPages:
                if len(self.running) == 1:
                    # The judge of requests lets no sequence in that does not fit alone.
                    raise
                self.preempt(max(self.running, key=lambda sequence: sequence.order))
                continue
            return Step(sequences, counts, self._block_tables, copies)
        return None

    def _share_budget(self) -> tuple[list[Sequence], list[int]]:
        """Give each running sequence its tokens: answers first, then prompts by age."""
        answers = sum(sequence.waiting_tokens == 1 for sequence in self.running)
        budget = self.max_tokens
        if answers:
            budget = min(budget, answers + BESIDE_ANSWERS)
        sequences, counts = [], []
        for sequence in sorted(
            self.running, key=lambda each: (each.waiting_tokens > 1, each.order)
        ):
            wanted = sequence.waiting_tokens
            count = min(wanted, budget)
            if sequence.request.logits is not None:
                count = min(count, LOGITS_CHUNK)
            end = sequence.computed + count
            if count < wanted and end % SEGMENT < count:
                # Chunks that end with a segment keep attention's tiles whole.
                count -= end % SEGMENT
            if count:
                sequences.append(sequence)
                counts.append(count)
                budget -= count
        return sequences, counts

    def _admit(self) -> None:
        """Start waiting sequences, oldest first, while their pages are free and unpromised."""
        while self.waiting:
            sequence = self.waiting[0]
            places = sum(1 + each.request.answers_to_come for each in (*self.running, sequence))
            if places > self.max_num_seqs:
                return
            promised = sum(self._pages_missing(each) for each in self.running)
            if self._pages_missing(sequence) > self.cache.free_pages - promised and self.running:
                return
            sequence.handle, sequence.computed = self.cache.open(sequence.token_ids)
            self.running.append(self.waiting.popleft())

    def _pages_missing(self, sequence: Sequence) -> int:
        """Pages that the sequence's known tokens need beyond those it holds."""
        size = self.cache.page_size
        return -(-len(sequence.token_ids) // size) - -(-sequence.computed // size)

    def preempt(self, sequence: Sequence) -> None:
        """Take a running sequence's pages; it will start again from its tokens."""
        self.release(sequence)
        sequence.computed = 0
        # Younger ones wait behind it.
        place = sum(each.order < sequence.order for each in self.waiting)
        self.waiting.insert(place, sequence)

    def release(self, sequence: Sequence) -> None:
        """Take a sequence out, wherever it is, and give its pages back."""
        if sequence in self.running:
            self.running.remove(sequence)
        if sequence in self.waiting:
            self.waiting.remove(sequence)
        if sequence.handle is not None:
            handle, sequence.handle = sequence.handle, None
            self.cache.close(handle)

    def start_over(self, cache: PageCache, requests: list[Request]) -> None:
        """Forget all pages: every unfinished sequence waits and will be computed again."""
        self.cache = cache
        self.running = []
        unfinished = [
            sequence
            for request in requests
            for sequence in request.sequences
            if not sequence.finished
        ]
        for sequence in unfinished:
            sequence.handle, sequence.computed = None, 0
        self.waiting = deque(sorted(unfinished, key=lambda sequence: sequence.order))
