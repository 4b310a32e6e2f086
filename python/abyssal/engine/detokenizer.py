"""The text of an answer as it grows, and the stop strings that end it.

Text is released only when no stop string can begin in it any more, so what has been shown is never
taken back. Each stop string is followed through the text character by character (Knuth, Morris and
Pratt), which makes the result independent of how the text is cut into tokens.
"""

from __future__ import annotations

from typing import Protocol

from abyssal.engine.sampling_params import SamplingParams
from abyssal.errors import TokenizerError


class Stream(Protocol):
    """Decodes tokens one by one without splitting a character."""

    def push(self, token_id: int) -> str:
        """Return the text that the token completes."""

    def finish(self) -> str:
        """Return what is left."""


class _Matcher:
    """Follows one stop string: ``state`` of its characters are the last ones seen."""

    def __init__(self, stop: str) -> None:
        self.stop = stop
        self.state = 0
        # fall_back[n]: length of the longest proper prefix that is a suffix of stop[:n].
        self._fall_back = [0, 0]
        length = 0
        for character in stop[1:]:
            while length and stop[length] != character:
                length = self._fall_back[length]
            length += stop[length] == character
            self._fall_back.append(length)

    def feed(self, character: str) -> bool:
        """Take the next character; True when it completes the stop string."""
        if self.state == len(self.stop):
            self.state = self._fall_back[self.state]
        while self.state and self.stop[self.state] != character:
            self.state = self._fall_back[self.state]
        self.state += self.stop[self.state] == character
        return self.state == len(self.stop)


class AnswerText:
    """The text of one answer.

    Args:
        stream: Decodes this answer's tokens.
        params: Stop strings, and what to leave out.

    Guarantees: ``text`` only ever grows, and never holds a part of the stop string that ends it
    (unless ``include_stop_str_in_output``); the stop string that is complete first ends the answer,
    and of several that are complete with the same character the longest.
    """

    def __init__(self, stream: Stream, params: SamplingParams) -> None:
        self.text = ""
        self._held = ""
        self._stream = stream
        self._include = params.include_stop_str_in_output
        # Longest first: it wins where two end with the same character.
        stops = sorted(params.stop_strings, key=len, reverse=True)
        self._matchers = [_Matcher(stop) for stop in stops]

    def push(self, token_id: int, *, may_stop: bool = True) -> str | None:
        """Take the next token.

        Args:
            token_id: The token.
            may_stop: Whether a stop string that is complete now ends the answer.

        Returns:
            The stop string that ends the answer, else None.
        """
        try:
            piece = self._stream.push(token_id)
        except TokenizerError:
            return None  # an embedding may have more rows than the tokenizer names
        for character in piece:
            self._held += character
            ended = [matcher.stop for matcher in self._matchers if matcher.feed(character)]
            if ended and may_stop:
                stop = ended[0]
                self.text += self._held if self._include else self._held.removesuffix(stop)
                self._held = ""
                return stop
            # A completed stop string that must not end the answer is ordinary text.
            waiting = max(
                (each.state for each in self._matchers if each.state < len(each.stop)), default=0
            )
            released = len(self._held) - waiting
            self.text += self._held[:released]
            self._held = self._held[released:]
        return None

    def finish(self) -> None:
        """Release what was held back: the answer has ended otherwise."""
        self.text += self._held + self._stream.finish()
        self._held = ""
