"""One engine for several threads: each of them drives the steps that their requests share."""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch

from abyssal.engine.core import EngineCore
from abyssal.engine.sampling_params import SamplingParams
from abyssal.engine.sequence import Request
from abyssal.engine.threads import step_threads
from abyssal.errors import RequestError

#: A judged request: the prompt's text, its token ids, and how to answer (None: logits wanted).
Judged = tuple[str | None, list[int], SamplingParams | None]

#: Weights under this size give products that are not worth a second thread.
SMALL_MODEL_BYTES = 64_000_000


class SharedCore:
    """Guards an ``EngineCore`` with a lock and cleans up after every caller.

    Args:
        core: The engine.
        num_threads: Threads for a step; None leaves torch and the compiled operations their own.
    """

    def __init__(self, core: EngineCore, num_threads: int | None) -> None:
        self._core: EngineCore | None = core
        self._num_threads = num_threads
        self._lock = threading.RLock()
        self._callers = 0

    def _open(self) -> EngineCore:
        if self._core is None:
            raise RequestError("this LLM is closed")
        return self._core

    @contextmanager
    def working(
        self,
        judged: Sequence[Judged],
        *,
        streamed: bool = False,
        logits: torch.Tensor | None = None,
    ) -> Iterator[list[Request]]:
        """Enter requests for the length of a block; whatever ends it, their pages go back."""
        requests: list[Request] = []
        try:
            with self._lock:
                self._callers += 1
                core = self._open()
                for prompt, ids, params in judged:
                    request = Request(next(core.numbers), prompt, ids, params, logits, streamed)
                    requests.append(request)
                    given = params.seed if params else None
                    core.add(request, secrets.randbits(63) if given is None else given)
            yield requests
        finally:
            # Flags first: should a second Ctrl-C cut this short, the next step does the rest.
            for request in requests:
                request.aborted = True
            with self._lock:
                self._callers -= 1
                if self._core is not None:
                    self._core.tidy()

    def step(self) -> None:
        """Run one step, for whichever requests take part in it."""
        with self._lock, step_threads(self._num_threads):
            for request in self._open().step():
                if request.streamed:
                    request.news.append(request.output())
        if self._callers > 1:
            time.sleep(0)  # locks are not fair: let another thread have its turn

    def stats(self) -> dict[str, int]:
        """Count requests, pages and tokens."""
        with self._lock:
            core = self._open()
            core.tidy()
            return {"requests": len(core.requests), **core.cache.stats()}

    def audit(self) -> None:
        """Check the page table; raises ``RuntimeError`` when it is damaged."""
        with self._lock:
            core = self._open()
            core.tidy()
            core.cache.audit()

    def close(self) -> None:
        """Let go of the engine; every later call is refused."""
        with self._lock:
            self._core = None


def helpful_threads(model: torch.nn.Module) -> int | None:
    """Return one thread for a small model, and None (everybody's own number) for any other.

    The products of a small model are too short to share: a second thread brings nothing on an idle
    machine, and on a busy one every product waits until it gets its turn.
    """
    size = sum(weight.numel() * weight.itemsize for weight in model.parameters())
    return 1 if size < SMALL_MODEL_BYTES else None


@contextmanager
def progress_bar(total: int, shown: bool) -> Iterator[Callable[[int], None]]:
    """Show how many requests have ended."""
    if not shown:
        yield lambda done: None
        return
    from rich.progress import Progress

    with Progress(transient=True) as progress:
        task = progress.add_task("prompts", total=total)
        yield lambda done: progress.update(task, completed=done)
