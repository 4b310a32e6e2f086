"""The exceptions that this package raises on purpose.

Wrong arguments to a function raise `ValueError` and `TypeError`; `abyssal.OutOfPages`, a
`RuntimeError`, says that the page pool is exhausted. The classes here are for what comes from
outside: files, requests and text. Each is a `ValueError` too, so that a caller who knows nothing
of this package can still catch it.
"""

from __future__ import annotations


class AbyssalError(Exception):
    """Base of the exceptions below: one ``except`` for everything that bad input can cause."""


class CheckpointError(AbyssalError, ValueError):
    """A checkpoint is missing, damaged, contradictory or of an unsupported kind."""


class RequestError(AbyssalError, ValueError):
    """A request to the engine cannot be served; the engine itself is unharmed."""


class TokenizerError(AbyssalError, ValueError):
    """A tokenizer file is unsupported or damaged, or a text or token id cannot be translated."""


class SavedPrefixError(AbyssalError, ValueError):
    """A saved prefix is damaged, cut, extended, or was saved by another model."""
