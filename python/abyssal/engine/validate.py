"""The one judge of requests: whichever door a request came through, it is checked here.

Every message says what was wrong, the value asked and the values allowed. A request that passes
can be served by the engine that the limits describe, alone at least.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, SupportsFloat

from abyssal.errors import RequestError

if TYPE_CHECKING:
    from abyssal.engine.sampling_params import SamplingParams

#: Bounds that keep one request from taking all memory.
MAX_N = 1024
MAX_STOPS = 64
MAX_STOP_LENGTH = 4096
SEED_RANGE = (-(2**63), 2**63 - 1)


@dataclass(frozen=True)
class Limits:
    """What an engine can serve.

    Attributes:
        vocab_size: Token ids are below it.
        model_tokens: Longest sequence the model was made for.
        cache_tokens: Tokens that the page pool holds.
        max_num_seqs: Sequences in one step, so answers of one request.
        max_logprobs: Most log probabilities for a token.
        has_tokenizer: Whether texts can be read and written.
    """

    vocab_size: int
    model_tokens: int
    cache_tokens: int
    max_num_seqs: int
    max_logprobs: int
    has_tokenizer: bool

    @property
    def max_tokens(self) -> int:
        """Longest sequence, prompt and answer together."""
        return min(self.model_tokens, self.cache_tokens)


def check_prompt(token_ids: Sequence[int], limits: Limits, *, answer: bool = True) -> list[int]:
    """Check a prompt's token ids.

    Args:
        token_ids: Integers of any kind: a list, an array, a one-dimensional tensor.
        limits: What the engine can serve.
        answer: Whether room for at least one more token is needed.

    Returns:
        The ids as a list of Python ints.

    Raises:
        RequestError: no tokens, something that is no integer, an id outside the vocabulary, or
            more tokens than fit.
    """
    values = token_ids.tolist() if hasattr(token_ids, "tolist") else token_ids
    if isinstance(values, str | bytes) or not isinstance(values, Sequence):
        raise RequestError(f"token ids must be a list of integers, got {type(token_ids).__name__}")
    # Length first: a prompt far too long is refused without being read.
    _check_length(len(values), limits, answer)
    ids = []
    for place, value in enumerate(values):
        number = _integer(f"token id at position {place}", value)
        if not 0 <= number < limits.vocab_size:
            raise RequestError(
                f"token id {number} at position {place} is out of range: "
                f"allowed are 0 to {limits.vocab_size - 1}"
            )
        ids.append(number)
    return ids


def _check_length(count: int, limits: Limits, answer: bool) -> None:
    if count == 0:
        raise RequestError("the prompt is empty: at least one token is needed")
    room = 1 if answer else 0
    if count + room > limits.model_tokens:
        raise RequestError(
            f"the prompt has {count} tokens, but the model takes at most "
            f"{limits.model_tokens - room}{' and one generated token' if answer else ''}"
        )
    if count + room > limits.cache_tokens:
        raise RequestError(
            f"the prompt has {count} tokens, but the page pool is too small: at most "
            f"{limits.cache_tokens - room} tokens would fit"
            f"{' beside one generated token' if answer else ''}; "
            f"raise kv_cache_tokens (now {limits.cache_tokens})"
        )


def check_request(params: SamplingParams, limits: Limits) -> None:
    """Check sampling parameters against an engine.

    Raises:
        RequestError: as ``check_sampling_params``, or more than this engine can do.
    """
    check_sampling_params(params)
    if params.n > limits.max_num_seqs:
        raise RequestError(f"n is {params.n}, allowed are 1 to {limits.max_num_seqs}")
    if params.logprobs is not None and params.logprobs > limits.max_logprobs:
        raise RequestError(
            f"logprobs is {params.logprobs}, allowed are 0 to {limits.max_logprobs} (max_logprobs)"
        )
    if params.top_k > limits.vocab_size:
        raise RequestError(f"top_k is {params.top_k}, allowed are -1 to {limits.vocab_size}")
    for token in params.stop_token_ids or ():
        if token >= limits.vocab_size:
            raise RequestError(
                f"stop_token_ids has {token}, allowed are 0 to {limits.vocab_size - 1}"
            )
    if params.stop_strings and not limits.has_tokenizer:
        raise RequestError("stop strings need a tokenizer, and this checkpoint has none")


def check_sampling_params(params: SamplingParams) -> None:
    """Check what can be checked without an engine.

    Raises:
        RequestError: a value of a wrong type or out of range.
    """
    params.n = _bounded("n", params.n, 1, MAX_N)
    params.presence_penalty = _number("presence_penalty", params.presence_penalty, -2.0, 2.0)
    params.frequency_penalty = _number("frequency_penalty", params.frequency_penalty, -2.0, 2.0)
    params.repetition_penalty = _number("repetition_penalty", params.repetition_penalty, 0.0, None)
    if params.repetition_penalty == 0.0:
        raise RequestError("repetition_penalty is 0.0, allowed are numbers above 0")
    params.temperature = _number("temperature", params.temperature, 0.0, None)
    params.top_p = _number("top_p", params.top_p, 0.0, 1.0)
    if params.top_p == 0.0:
        raise RequestError("top_p is 0.0, allowed are numbers above 0 up to 1")
    params.top_k = _bounded("top_k", params.top_k, -1, None)
    params.min_p = _number("min_p", params.min_p, 0.0, 1.0)
    if params.seed is not None:
        params.seed = _bounded("seed", params.seed, *SEED_RANGE)
    if params.max_tokens is not None:
        params.max_tokens = _bounded("max_tokens", params.max_tokens, 1, None)
    params.min_tokens = _bounded("min_tokens", params.min_tokens, 0, params.max_tokens)
    if params.logprobs is not None:
        params.logprobs = _bounded("logprobs", params.logprobs, 0, None)
    _check_stops(params)


def _check_stops(params: SamplingParams) -> None:
    given: object = params.stop
    if not isinstance(given, str | list | tuple | None):
        kind = type(given).__name__
        raise RequestError(f"stop must be a string or a list of strings, got {kind}")
    stops = params.stop_strings
    if len(stops) > MAX_STOPS:
        raise RequestError(f"stop has {len(stops)} strings, allowed are at most {MAX_STOPS}")
    if kinds := {type(stop).__name__ for stop in stops} - {"str"}:
        raise RequestError(f"stop must hold strings, got {', '.join(sorted(kinds))}")
    for stop in stops:
        if not 1 <= len(stop) <= MAX_STOP_LENGTH:
            raise RequestError(
                f"a stop string has {len(stop)} characters, allowed are 1 to {MAX_STOP_LENGTH}"
            )
    for token in params.stop_token_ids or ():
        _bounded("a stop token id", token, 0, None)


def _integer(name: str, value: object) -> int:
    if isinstance(value, bool):
        raise RequestError(f"{name} must be an integer, got {value}")
    try:
        return operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        kind = type(value).__name__
        raise RequestError(f"{name} must be an integer, got {kind}") from None


def _bounded(name: str, value: object, least: int, most: int | None) -> int:
    number = _integer(name, value)
    if number < least or (most is not None and number > most):
        allowed = f"{least} and more" if most is None else f"{least} to {most}"
        raise RequestError(f"{name} is {number}, allowed are {allowed}")
    return number


def _number(name: str, value: object, least: float, most: float | None) -> float:
    if isinstance(value, bool) or not isinstance(value, SupportsFloat):
        raise RequestError(f"{name} must be a number, got {type(value).__name__}")
    number = float(value)
    # A NaN fails every comparison, and so this one.
    if not (math.isfinite(number) and number >= least and (most is None or number <= most)):
        allowed = f"finite numbers from {least}" if most is None else f"{least} to {most}"
        raise RequestError(f"{name} is {number}, allowed are {allowed}")
    return number
