"""The text of an answer against its definition, however it is cut into tokens."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from abyssal import SamplingParams
from abyssal.engine.detokenizer import AnswerText
from abyssal.errors import TokenizerError

PIECES = st.lists(st.text("ab", max_size=4), max_size=20)
STOPS = st.lists(st.text("ab", min_size=1, max_size=5), max_size=3)


class Pieces:
    """A stream whose token ``i`` is the ``i``-th piece; the last one comes with the end."""

    def __init__(self, pieces: list[str], rest: str = "") -> None:
        self.pieces, self.rest = pieces, rest

    def push(self, token_id: int) -> str:
        if token_id >= len(self.pieces):
            raise TokenizerError(f"no token {token_id}")
        return self.pieces[token_id]

    def finish(self) -> str:
        return self.rest


def first_stop(text: str, stops: list[str]) -> tuple[int, str] | None:
    """Where the stop string that is complete first begins; the longest of several."""
    for end in range(1, len(text) + 1):
        ended = [stop for stop in stops if text[:end].endswith(stop)]
        if ended:
            stop = max(ended, key=len)
            return end - len(stop), stop
    return None


@given(PIECES, STOPS, st.booleans())
def test_text_ends_before_the_first_stop_string(pieces, stops, include) -> None:
    params = SamplingParams(stop=stops, include_stop_str_in_output=include)
    answer = AnswerText(Pieces(pieces, "!"), params)
    expected = first_stop("".join(pieces), stops)
    shown = [""]
    found = None
    for token in range(len(pieces)):
        found = answer.push(token)
        shown.append(answer.text)
        if found:
            break
    if expected is None:
        assert found is None
        # What is held back might be the beginning of a stop string, and nothing else is.
        whole = "".join(pieces)
        held = whole[len(answer.text) :]
        assert whole.startswith(answer.text)
        assert not held or any(stop.startswith(held) for stop in stops)
        answer.finish()
        assert answer.text == whole + "!"
    else:
        start, stop = expected
        assert found == stop
        assert answer.text == "".join(pieces)[: start + len(stop) * include]
    # Nothing that was shown is ever taken back.
    assert all(later.startswith(text) for text, later in itertools.pairwise(shown))


@given(PIECES, STOPS, st.integers(0, 20))
def test_stop_strings_complete_too_early_are_text(pieces, stops, early) -> None:
    params = SamplingParams(stop=stops)
    answer = AnswerText(Pieces(pieces), params)
    before = len("".join(pieces[:early]))
    whole = "".join(pieces)
    ends = [
        (end, max((stop for stop in stops if whole[:end].endswith(stop)), key=len))
        for end in range(before + 1, len(whole) + 1)
        if any(whole[:end].endswith(stop) for stop in stops)
    ]
    found = None
    for token in range(len(pieces)):
        found = answer.push(token, may_stop=token >= early)
        if found:
            break
    assert found == (ends[0][1] if ends else None)
    if not found:
        answer.finish()
        assert answer.text == whole
    else:
        # A stop string that began before may have been shown in part already.
        end, stop = ends[0]
        assert whole[:end].removesuffix(stop) in (answer.text, answer.text[: end - len(stop)])


def test_tokens_that_the_tokenizer_does_not_name_have_no_text() -> None:
    answer = AnswerText(Pieces(["a", "b"]), SamplingParams())
    for token in (0, 99, 1):
        answer.push(token)
    assert answer.text == "ab"


def test_long_stop_strings_cost_linear_time() -> None:
    stop = "a" * 2000 + "b"
    answer = AnswerText(Pieces(["a" * 50_000]), SamplingParams(stop=stop))
    answer.push(0)
    assert answer.text == "a" * 48_000
    answer.finish()
    assert answer.text == "a" * 50_000
