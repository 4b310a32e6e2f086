"""What a request answers: vLLM's classes, as far as this engine fills them."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Logprob:
    """A token's log probability under the unmodified logits.

    Attributes:
        logprob: Natural logarithm.
        rank: 1 for the likeliest token; tokens of equal probability share a rank.
        decoded_token: The token alone as text; None without a tokenizer.
    """

    logprob: float
    rank: int
    decoded_token: str | None = None


@dataclass
class CompletionOutput:
    """One answer to a prompt.

    Attributes:
        index: Which of the ``n`` answers.
        text: The text so far, without stop strings and control tokens; empty without a tokenizer.
        token_ids: The tokens so far, a stop token included.
        cumulative_logprob: Sum over ``token_ids``; None unless log probabilities were asked for.
        logprobs: For each token a dictionary of the token itself and the likeliest ones; None
            unless asked for.
        finish_reason: ``"stop"``, ``"length"`` or ``"error"``; None while the answer grows.
        stop_reason: The stop string or stop token id that ended it; None for an end token.
        error: What went wrong where ``finish_reason`` is ``"error"``.
    """

    index: int
    text: str
    token_ids: list[int]
    cumulative_logprob: float | None = None
    logprobs: list[dict[int, Logprob]] | None = None
    finish_reason: str | None = None
    stop_reason: int | str | None = None
    error: str | None = None


@dataclass
class RequestMetrics:
    """When things happened, in seconds of ``time.perf_counter``.

    Attributes:
        arrival_time: The engine took the request.
        first_token_time: The first token of an answer was drawn; None before.
        last_token_time: The latest one was drawn; None before.
    """

    arrival_time: float
    first_token_time: float | None = None
    last_token_time: float | None = None


@dataclass
class RequestOutput:
    """A prompt and its answers so far.

    Attributes:
        request_id: Unique within the engine.
        prompt: The prompt's text; None for a prompt of token ids.
        prompt_token_ids: The prompt's tokens, a beginning token included.
        outputs: The ``n`` answers; fewer while the prompt is not yet computed.
        finished: Whether all answers have ended.
        metrics: When things happened.
        error: The first answer's error, if one ended so.
    """

    request_id: str
    prompt: str | None
    prompt_token_ids: list[int]
    outputs: list[CompletionOutput]
    finished: bool
    metrics: RequestMetrics = field(default_factory=lambda: RequestMetrics(0.0))

    @property
    def error(self) -> str | None:
        """The first error among the answers."""
        return next((output.error for output in self.outputs if output.error), None)
