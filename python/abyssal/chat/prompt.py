"""A prompt in parts: control tokens that the template places, and text that never becomes one.

The template says which is which while it writes, so nothing has to be recognized afterwards:
``template`` takes constants of this package, in which control tokens are written out; ``content``
takes everything else. Adjacent text, of the template or of content, is encoded in one piece, as it
would be in a rendered prompt.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any, NamedTuple

from abyssal.chat.spelling import BEGIN, CONTROLS, END
from abyssal.errors import RequestError, TokenizerError
from abyssal.tokenizer import Tokenizer


class Control(NamedTuple):
    """A control token: how it is spelled, and its id in this tokenizer."""

    spelling: str
    id: int


class Vocabulary:
    """A tokenizer's added tokens, by what they are to a chat format.

    Args:
        tokenizer: Any tokenizer.

    Attributes:
        tokenizer: The same.
        added: Spelling and id of every added token that is no mere letter.
        ids: Their ids: what content must never become.
        begin: The beginning token, None where there is none.
        end: The end token, likewise.

    Guarantees: whether a token is a control token follows from the tokenizer's list of added
    tokens, not from their ``special`` flag: the roles and tool tokens of DeepSeek's files carry
    ``special: false``.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        special = tokenizer.special_ids
        self.added: dict[str, int] = {
            spelling: token
            for spelling, token in tokenizer.added_tokens.items()
            # One character that is not special is a letter that the vocabulary lacked.
            if len(spelling) > 1 or token in special
        }
        self.ids = frozenset(self.added.values())
        self.begin = self._named(tokenizer.bos_token, BEGIN)
        self.end = self._named(tokenizer.eos_token, END)
        # The template's constants spell the sentence tokens as DeepSeek's own files do.
        named = {BEGIN: self.begin, END: self.end}
        self.controls: dict[str, Control] = {
            spelling: Control(spelling, self.added[spelling])
            for spelling in CONTROLS
            if spelling in self.added
        }
        self.controls |= {spelling: found for spelling, found in named.items() if found}
        longest_first = sorted(self.controls, key=len, reverse=True)
        # Literals only; an empty alternation would match everywhere.
        self._split = re.compile("(" + ("|".join(map(re.escape, longest_first)) or "(?!)") + ")")

    def _named(self, configured: str | None, usual: str) -> Control | None:
        for spelling in (configured, usual):
            if spelling in self.added:
                return Control(spelling, self.added[spelling])
        return None

    def parts_of(self, template: str) -> Iterable[Control | str]:
        """Cut a constant of the template at the control tokens that it spells."""
        for place, piece in enumerate(self._split.split(template)):
            if piece:
                yield self.controls[piece] if place % 2 else piece


class Prompt:
    """Parts of a prompt, in order.

    Args:
        vocabulary: Where control tokens are looked up.
    """

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary
        self._parts: list[Control | list[str]] = []

    def template(self, constant: str) -> None:
        """Add a part of the template; a control token that the tokenizer lacks stays text."""
        for part in self._vocabulary.parts_of(constant):
            if isinstance(part, Control):
                self._parts.append(part)
            else:
                self.content(part)

    def content(self, text: str) -> None:
        """Add text that stays text, whatever it spells."""
        if not text:
            return
        if self._parts and isinstance(self._parts[-1], list):
            self._parts[-1].append(text)
        else:
            self._parts.append([text])

    def render(self) -> str:
        """Return the prompt as one text, in which content and control tokens cannot be told."""
        return "".join(
            part.spelling if isinstance(part, Control) else "".join(part) for part in self._parts
        )

    def encode(self) -> list[int]:
        """Return the prompt's token ids.

        Raises:
            RequestError: the vocabulary lacks a byte of the text, or merges text into an added
                token (no published one does).

        Guarantees: ids of added tokens are those that ``template`` placed, in that order.
        """
        ids: list[int] = []
        for part in self._parts:
            if isinstance(part, Control):
                ids.append(part.id)
            else:
                ids += encode_text(self._vocabulary, "".join(part))
        return ids


def encode_text(vocabulary: Vocabulary, text: str, *, safe: bool = True) -> list[int]:
    """Encode text; if ``safe``, none of it may become a control token. Errors: `Prompt.encode`."""
    try:
        ids = as_list(vocabulary.tokenizer.encode(text, parse_special=not safe))
    except TokenizerError as error:
        raise RequestError(f"the conversation cannot be encoded: {error}") from error
    if safe and not vocabulary.ids.isdisjoint(ids):
        token = next(token for token in ids if token in vocabulary.ids)
        raise RequestError(
            f"this tokenizer turns plain text into its control token {token}: "
            "conversations cannot be told from forged ones"
        )
    return ids


def as_list(ids: Any) -> list[int]:  # noqa: ANN401 - a list or an array
    """Return ids as a list of Python's integers."""
    listed: list[int] = ids.tolist() if hasattr(ids, "tolist") else list(ids)
    return listed
