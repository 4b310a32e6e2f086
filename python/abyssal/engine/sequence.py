"""A request and the sequences of tokens that answer it."""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass, field

import torch

from abyssal.engine.detokenizer import AnswerText
from abyssal.engine.outputs import CompletionOutput, Logprob, RequestMetrics, RequestOutput
from abyssal.engine.sampling_params import SamplingParams


@dataclass(eq=False)
class Sequence:
    """A prompt with one of its answers.

    ``token_ids`` holds prompt and answer; of these

    | tokens | state |
    |---|---|
    | ``[0, computed)`` | lie in the cache |
    | ``[computed, len(token_ids))`` | wait for a step |

    When all are computed but the last, a step yields the next one. ``handle`` is None while the
    sequence holds no pages: before it starts, after it was preempted, and when it has ended.
    """

    request: Request
    index: int
    token_ids: list[int]
    seed: int
    text: AnswerText | None
    handle: int | None = None
    computed: int = 0
    logprobs: list[dict[int, Logprob]] = field(default_factory=list)
    finish_reason: str | None = None
    stop_reason: int | str | None = None
    error: str | None = None
    #: True while a new token is being entered: an interruption then leaves it half done.
    torn: bool = False

    @property
    def finished(self) -> bool:
        """Whether the answer has ended."""
        return self.finish_reason is not None

    @property
    def waiting_tokens(self) -> int:
        """Tokens that are known but not computed."""
        return len(self.token_ids) - self.computed

    @property
    def answer(self) -> list[int]:
        """The tokens after the prompt."""
        return self.token_ids[self.request.prompt_tokens :]

    @property
    def order(self) -> tuple[int, int]:
        """Age: the request's number, then the answer's."""
        return (self.request.number, self.index)

    def finish(
        self, reason: str, *, stop: int | str | None = None, error: str | None = None
    ) -> None:
        """End the answer. A stop string has already ended its text."""
        if self.text is not None and not isinstance(stop, str):
            self.text.finish()
        self.finish_reason, self.stop_reason, self.error = reason, stop, error

    def output(self) -> CompletionOutput:
        """Copy the answer as it stands."""
        wanted = self.request.params is not None and self.request.params.logprobs is not None
        answer = self.answer
        drawn = zip(answer, self.logprobs, strict=False)
        return CompletionOutput(
            index=self.index,
            text=self.text.text if self.text else "",
            token_ids=answer,
            cumulative_logprob=sum(each[token].logprob for token, each in drawn)
            if wanted
            else None,
            logprobs=list(self.logprobs) if wanted else None,
            finish_reason=self.finish_reason,
            stop_reason=self.stop_reason,
            error=self.error,
        )


@dataclass(eq=False)
class Request:
    """What one prompt asks for.

    Attributes:
        number: Counts the engine's requests; the order in which they are served.
        prompt: The prompt's text; None for token ids.
        prompt_ids: Its tokens.
        params: How to answer; None wants the logits of the prompt itself.
        logits: f32 ``[tokens, vocab]`` to fill where ``params`` is None.
        streamed: Whether every step's output is kept in ``news`` for a stream to take.
        sequences: One until the prompt is computed, then ``n``.
        aborted: Nobody waits for the answer: its pages go back before the next step.
    """

    number: int
    prompt: str | None
    prompt_ids: list[int]
    params: SamplingParams | None
    logits: torch.Tensor | None = None
    streamed: bool = False
    news: deque[RequestOutput] = field(default_factory=deque)
    sequences: list[Sequence] = field(default_factory=list)
    aborted: bool = False
    metrics: RequestMetrics = field(default_factory=lambda: RequestMetrics(time.perf_counter()))

    @property
    def prompt_tokens(self) -> int:
        """Length of the prompt."""
        return len(self.prompt_ids)

    @property
    def finished(self) -> bool:
        """Whether every answer has ended."""
        return all(sequence.finished for sequence in self.sequences)

    @property
    def answers_to_come(self) -> int:
        """Sequences that forking the first one will add."""
        return (self.params.n if self.params else 1) - len(self.sequences)

    def output(self) -> RequestOutput:
        """Copy the answers as they stand."""
        return RequestOutput(
            request_id=str(self.number),
            prompt=self.prompt,
            prompt_token_ids=list(self.prompt_ids),
            outputs=[sequence.output() for sequence in self.sequences],
            finished=self.finished,
            metrics=RequestMetrics(**vars(self.metrics)),
        )
