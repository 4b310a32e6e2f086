"""The engine's step: schedule, run, draw, and what happens when something goes wrong.

What must survive an interruption at any instruction (Ctrl-C, no memory) is one dictionary, the
unfinished requests. A step clears ``_clean`` first and sets it last; whoever finds it cleared
throws the page table away and has every sequence computed again from its tokens. An answer that was
just being extended ends with an error, all others go on as if nothing had been.
"""

from __future__ import annotations

import time
from collections.abc import Sequence as Ids
from contextlib import nullcontext
from itertools import count

import torch

from abyssal import ops
from abyssal.engine.runner import Runner
from abyssal.engine.sampler import logprobs, sample
from abyssal.engine.scheduler import Scheduler, Step
from abyssal.engine.sequence import Request, Sequence
from abyssal.engine.text import Texts
from abyssal.engine.threads import torch_threads
from abyssal.kvcache import PageCache
from abyssal.nn import SEGMENT


class EngineCore:
    """Requests in, tokens out, one step at a time. Not for several threads at once.

    Args:
        runner: Runs the model.
        texts: Decodes answers.
        cache: Deals out pages.
        eos_ids: Tokens that end an answer.
        max_length: Tokens of a sequence at most.
        max_num_seqs: Sequences in a step at most.
        max_tokens: Tokens in a step at most.
    """

    def __init__(
        self,
        runner: Runner,
        texts: Texts,
        cache: PageCache,
        *,
        eos_ids: Ids[int],
        max_length: int,
        max_num_seqs: int,
        max_tokens: int,
    ) -> None:
        self.runner, self.texts, self.cache = runner, texts, cache
        self.eos_ids, self.max_length = tuple(eos_ids), max_length
        self.scheduler = Scheduler(
            cache, max_num_seqs=max_num_seqs, max_tokens=max_tokens, max_length=max_length
        )
        self.requests: dict[int, Request] = {}
        self.numbers = count()
        self._clean = True

    def add(self, request: Request, seed: int) -> None:
        """Take a request that has been judged."""
        text = self.texts.answer(request.params) if request.params else None
        first = Sequence(request, 0, list(request.prompt_ids), seed, text)
        request.sequences = [first]
        self.requests[request.number] = request
        self.scheduler.waiting.append(first)

    def tidy(self) -> None:
        """Drop aborted requests and make good what an interrupted step left behind."""
        aborted = [each for each in self.requests.values() if each.aborted]
        if self._clean and not aborted:
            return
        if self._clean:
            self._clean = False
            for request in aborted:
                self._forget(request)
            self._clean = True
            return
        for request in aborted:
            self.requests.pop(request.number, None)
        for request in list(self.requests.values()):
            for sequence in request.sequences:
                if sequence.torn:
                    sequence.torn = False
                    sequence.finish("error", error="interrupted while a token was being added")
            if request.finished:
                self.requests.pop(request.number, None)
        self.cache = PageCache(self.cache.num_pages, self.cache.page_size, reuse=False)
        self.scheduler.start_over(self.cache, list(self.requests.values()))
        self._clean = True

    def step(self) -> list[Request]:
        """Run one step.

        Returns:
            The requests that got on: a new token, an end, or all their logits.
        """
        self.tidy()
        self._clean = False
        changed: dict[int, Request] = {}
        step = self.scheduler.plan()
        if step is not None:
            with torch.inference_mode():
                self._advance(step, self.runner.run(step), changed)
        for request in changed.values():
            if request.finished:
                self.requests.pop(request.number, None)
        self._clean = True
        return list(changed.values())

    def _forget(self, request: Request) -> None:
        for sequence in request.sequences:
            self.scheduler.release(sequence)
        self.requests.pop(request.number, None)

    def _advance(self, step: Step, logits: torch.Tensor, changed: dict[int, Request]) -> None:
        """Commit the step's tokens and use its logits."""
        self._commit(step)
        drawing = (sequence.request.params for sequence in step.sequences)
        greedy = all(params is None or params.greedy for params in drawing)
        # A row is too short to share, and threads that helped spin for milliseconds after it,
        # beside those that compute the next step.
        with nullcontext() if greedy else torch_threads(1):
            self._use(step, logits, changed)

    def _use(self, step: Step, logits: torch.Tensor, changed: dict[int, Request]) -> None:
        likeliest = ops.greedy(logits)
        row = 0
        for sequence, taken in zip(step.sequences, step.counts, strict=True):
            request = sequence.request
            sequence.computed += taken
            rows = taken if request.logits is not None else int(not sequence.waiting_tokens)
            if not rows:
                continue
            changed[request.number] = request
            if -1 in likeliest[row : row + rows]:
                self._fail(sequence)
            elif request.logits is not None:
                request.logits[sequence.computed - taken : sequence.computed] = logits[
                    row : row + rows
                ]
                if not sequence.waiting_tokens:
                    self._end(sequence, "stop")
            else:
                for each in (sequence, *self._forks(sequence)):
                    self._extend(each, logits[row], likeliest[row])
            row += rows

    def _commit(self, step: Step) -> None:
        """Tell the cache what is computed; whole segments of a prompt may be shared."""
        shared, shared_ends, handles, ends = [], [], [], []
        for sequence, taken in zip(step.sequences, step.counts, strict=True):
            end = sequence.computed + taken
            border = sequence.request.prompt_tokens // SEGMENT * SEGMENT
            if sequence.computed < border:
                shared.append(sequence.handle)
                shared_ends.append(min(end, border))
            handles.append(sequence.handle)
            ends.append(end)
        self.cache.commit(shared, shared_ends, True)
        self.cache.commit(handles, ends, False)

    def _forks(self, first: Sequence) -> list[Sequence]:
        """Make the request's other answers, which share the pages of the first."""
        request = first.request
        made = []
        for index in range(1, 1 + request.answers_to_come):
            text = self.texts.answer(request.params) if request.params else None
            ids = list(request.prompt_ids)
            fork = Sequence(request, index, ids, first.seed + index, text, computed=first.computed)
            assert first.handle is not None
            fork.handle = self.cache.fork(first.handle)
            made.append(fork)
        request.sequences += made
        self.scheduler.running += made
        return made

    def _extend(self, sequence: Sequence, row: torch.Tensor, best: int) -> None:
        """Draw the next token and decide whether it ends the answer."""
        request, params = sequence.request, sequence.request.params
        assert params is not None
        length = len(sequence.token_ids) - request.prompt_tokens
        ends = [] if params.ignore_eos else list(self.eos_ids)
        stops = list(params.stop_token_ids or ())
        token = sample(
            row,
            params,
            seed=sequence.seed,
            position=len(sequence.token_ids),
            prompt=request.prompt_ids if params.repetition_penalty != 1.0 else (),
            answer=sequence.answer,
            banned=ends + stops if length < params.min_tokens else (),
            best=best,
        )
        report = None if params.logprobs is None else logprobs(row, token, params.logprobs)
        sequence.torn = True
        sequence.token_ids.append(token)
        if report is not None:
            sequence.logprobs.append(self.texts.with_tokens(report))
        request.metrics.last_token_time = time.perf_counter()
        if request.metrics.first_token_time is None:
            request.metrics.first_token_time = request.metrics.last_token_time
        self._judge(sequence, token, length + 1, token in ends, token in stops)
        sequence.torn = False

    def _judge(self, sequence: Sequence, token: int, length: int, eos: bool, stop: bool) -> None:
        """Enter the new token's text and end the answer where something ends it."""
        params = sequence.request.params
        assert params is not None
        may_stop = length >= params.min_tokens
        ended = may_stop and (eos or stop)
        found = None
        if sequence.text is not None and (not ended or params.include_stop_str_in_output):
            found = sequence.text.push(token, may_stop=may_stop)
        if ended:
            self._end(sequence, "stop", stop=None if eos else token)
        elif found is not None:
            self._end(sequence, "stop", stop=found)
        elif length == params.max_tokens or len(sequence.token_ids) >= self.max_length:
            self._end(sequence, "length")

    def _fail(self, sequence: Sequence) -> None:
        """End a sequence whose logits are not finite."""
        where = self.runner.first_bad_layer(sequence)
        error = f"the logits are not finite; the first output that is not finite is that of {where}"
        self._end(sequence, "error", error=error)

    def _end(
        self,
        sequence: Sequence,
        reason: str,
        *,
        stop: int | str | None = None,
        error: str | None = None,
    ) -> None:
        sequence.finish(reason, stop=stop, error=error)
        self.scheduler.release(sequence)
