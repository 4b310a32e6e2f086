"""How an answer is drawn: vLLM's names and meanings."""

from __future__ import annotations

from dataclasses import dataclass, field

from abyssal.engine.validate import check_sampling_params

#: Below this temperature the likeliest token is taken, as in vLLM.
GREEDY_TEMPERATURE = 1e-5


@dataclass
class SamplingParams:
    """How to draw the tokens of an answer, and when to stop.

    Attributes:
        n: Answers to one prompt, at least 1. They share the prompt's pages.
        presence_penalty: Subtracted from the logit of every token already in the answer, -2 to 2.
        frequency_penalty: Subtracted once for each time it occurs there, -2 to 2.
        repetition_penalty: Logits of tokens in prompt or answer are divided by it where positive
            and multiplied where negative; above 0, 1 is off.
        temperature: Divides the logits, at least 0; below 1e-5 the likeliest token is taken.
        top_p: Keep the fewest likeliest tokens that make up this probability, above 0 to 1.
        top_k: Keep this many likeliest tokens; 0 or -1 keeps all.
        min_p: Keep tokens of at least this share of the likeliest one's probability, 0 to 1.
        seed: Any integer of 64 bits. The token at a position depends on the seed, the position and
            its logits alone; answer ``i`` of ``n`` uses ``seed + i``. None: a new seed each time.
        stop: A string, or some of them, that end an answer; they are left out of its text.
        stop_token_ids: Token ids that end an answer.
        ignore_eos: Do not stop at the checkpoint's end tokens.
        max_tokens: Tokens of an answer at most; None: as many as the cache and the model allow.
        min_tokens: Before so many tokens nothing stops the answer.
        logprobs: Report for each token its log probability and those of the so many likeliest
            tokens (of the unmodified logits).
        include_stop_str_in_output: Leave the stop string or stop token in the text.
        skip_special_tokens: Leave control tokens out of the text.

    Raises:
        abyssal.errors.RequestError: (a ``ValueError``) a value out of range; the message has the
            value asked and what is allowed.

    Guarantees: ties go to the lowest token id.
    Source: vLLM ``vllm/sampling_params.py``.
    """

    n: int = 1
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    seed: int | None = None
    stop: str | list[str] | None = None
    stop_token_ids: list[int] | None = field(default=None)
    ignore_eos: bool = False
    max_tokens: int | None = 16
    min_tokens: int = 0
    logprobs: int | None = None
    include_stop_str_in_output: bool = False
    skip_special_tokens: bool = True

    def __post_init__(self) -> None:
        """Judge the values; the engine judges them again when it gets them."""
        check_sampling_params(self)

    @property
    def stop_strings(self) -> tuple[str, ...]:
        """The stop strings as a tuple."""
        if self.stop is None:
            return ()
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)

    @property
    def greedy(self) -> bool:
        """Whether the likeliest token is taken."""
        return self.temperature < GREEDY_TEMPERATURE
