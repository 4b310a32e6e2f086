"""Texts and ids that come in parts, and what arguments and errors become on their way to Rust."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy.typing as npt

from abyssal import _core
from abyssal.errors import TokenizerError


class DecodeStream:
    """Decodes one id at a time and never splits a character.

    What `push` and `finish` return, end to end, equals `Tokenizer.decode` of all ids. Bytes that
    may be the beginning of a character wait for the rest; bytes that cannot become one are U+FFFD.
    """

    def __init__(self, stream: _core.DecodeStream) -> None:
        """Wrap a stream; `Tokenizer.stream` makes them."""
        self._stream = stream

    def push(self, token_id: int) -> str:
        """Take the next id and return the text that is now certain, often empty.

        Raises:
            TokenizerError: the id is no token's; the stream is then as it was.
        """
        with clear_errors():
            return self._stream.push(token_id)

    def finish(self) -> str:
        """Return U+FFFD if the beginning of a character still waited, and begin anew."""
        return self._stream.finish()


class EncodeStream:
    """Takes a text in parts and gives ids as soon as they are certain.

    What `push` and `finish` return, end to end, equals `Tokenizer.encode` of the whole text. Text
    waits from the last place where cutting changes nothing: behind a newline, or before a space
    between two ASCII letters.
    """

    def __init__(self, stream: _core.EncodeStream) -> None:
        """Wrap a stream; `Tokenizer.encode_stream` makes them."""
        self._stream = stream

    def push(self, text: str) -> list[int]:
        """Take the next part and return the ids that are now certain, often none.

        Raises:
            TokenizerError: as `Tokenizer.encode`.
        """
        try:
            return self._stream.push(text)
        except ValueError as error:
            raise clear(error, text) from None

    def finish(self) -> list[int]:
        """Return the ids of the text that still waited, and begin anew."""
        with clear_errors():
            return self._stream.finish()


def as_list(ids: Sequence[int] | npt.NDArray[Any]) -> list[int]:
    """Return ids as a list: of a list, an array or a tensor."""
    to_list = getattr(ids, "tolist", None)
    listed: list[int] = to_list() if to_list is not None else list(ids)
    return listed


def as_batch(texts: Iterable[str]) -> list[str]:
    """Return texts as a list; one text alone is an error."""
    if isinstance(texts, str):
        raise TypeError("texts has to be a list of strings, and is a string")
    return list(texts)


def clear(error: ValueError, text: str) -> TokenizerError:
    """The exception to raise for what encoding ``text`` raised."""
    if isinstance(error, UnicodeEncodeError):
        position = error.start
        return TokenizerError(
            f"the text holds a lone surrogate, U+{ord(text[position]):04X}, at position "
            f"{position}; it has no UTF-8 form"
        )
    return TokenizerError(str(error))


def clear_batch(error: ValueError, texts: list[str]) -> TokenizerError:
    """As `clear`, naming the text's place."""
    if isinstance(error, UnicodeEncodeError):
        # Extracting the texts stops at the first that has no UTF-8 form.
        for index, text in enumerate(texts):
            try:
                text.encode()
            except UnicodeEncodeError as found:
                return TokenizerError(f"text {index}: {clear(found, text)}")
    return TokenizerError(str(error))


@contextmanager
def clear_errors() -> Iterator[None]:
    """Turn what handing ids over raises into the package's own exception."""
    try:
        yield
    except OverflowError:
        raise TokenizerError("a token id does not fit in 64 bits") from None
    except ValueError as error:
        raise TokenizerError(str(error)) from None
