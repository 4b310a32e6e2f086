"""Chat messages as tokens, in the format that the checkpoint itself brings.

The template is rendered in jinja2's immutable sandbox. A message must not be able to forge a turn
of the conversation, so control tokens written out in its text are hidden from the template behind
a random mark and, after rendering, encoded as the plain text that they are; the template's own
control tokens stay what they are. Without such text in a message the tokens are exactly those of
the rendered text.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import jinja2
from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

from abyssal.errors import RequestError
from abyssal.tokenizer import Tokenizer

NO_TEMPLATE = "this is a base model: use generate ({folder} has no chat_template)"
ROLE = re.compile(r"[A-Za-z0-9_-]{1,64}")


class ChatFormat:
    """A checkpoint's chat template.

    Args:
        folder: The checkpoint.
        tokenizer: Its tokenizer.

    Raises:
        RequestError: it has no template, or one that does not parse.
    """

    def __init__(self, folder: Path, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        source = tokenizer.chat_template
        if source is None:
            raise RequestError(NO_TEMPLATE.format(folder=folder))
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols]
        )
        environment.filters["tojson"] = _to_json
        environment.globals["raise_exception"] = _raise
        environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
        try:
            self._template = environment.from_string(source)
        except jinja2.TemplateError as error:
            raise RequestError(f"the chat template of {folder} does not parse: {error}") from error
        # Longest first, so that no control token hides a part of a longer one.
        special = tokenizer.special_ids
        names = [name for name, number in tokenizer.added_tokens.items() if number in special]
        written = sorted(filter(None, names), key=len, reverse=True)
        self._control = re.compile("|".join(map(re.escape, written))) if written else None

    def encode(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        add_generation_prompt: bool = True,
        **variables: Any,  # noqa: ANN401 - whatever the template knows
    ) -> list[int]:
        """Encode a conversation.

        Args:
            messages: Dictionaries with ``role`` and ``content`` and what else the template knows.
            add_generation_prompt: Whether to open the assistant's turn.
            variables: Further variables of the template, for example ``thinking=True``.

        Returns:
            The token ids, beginning token included where the template writes it.

        Raises:
            RequestError: messages of a wrong form, or that the template refuses.
        """
        _check(messages)
        mark = secrets.token_hex(16)
        hidden: list[str] = []
        try:
            rendered = self._template.render(
                messages=[self._hide(message, mark, hidden) for message in messages],
                add_generation_prompt=add_generation_prompt,
                bos_token=self._tokenizer.bos_token or "",
                eos_token=self._tokenizer.eos_token or "",
                **variables,
            )
        except Exception as error:  # a template may fail in any way its functions can
            raise RequestError(f"the chat template refuses these messages: {error}") from error
        ids: list[int] = []
        # Odd pieces are the numbers of hidden texts.
        for place, piece in enumerate(re.split(f"{mark}:([0-9]+);", rendered)):
            text = hidden[int(piece)] if place % 2 else piece
            ids += self._tokenizer.encode(text, parse_special=place % 2 == 0)
        return ids

    def _hide(self, value: Any, mark: str, hidden: list[str]) -> Any:  # noqa: ANN401 - JSON
        """Copy a message with every written-out control token replaced by its number."""
        if isinstance(value, str):
            if self._control is None:
                return value

            def number(match: re.Match[str]) -> str:
                hidden.append(match.group())
                return f"{mark}:{len(hidden) - 1};"

            return self._control.sub(number, value)
        if isinstance(value, Mapping):
            return {key: self._hide(each, mark, hidden) for key, each in value.items()}
        if isinstance(value, list | tuple):
            return [self._hide(each, mark, hidden) for each in value]
        return value


def _check(messages: Sequence[Mapping[str, Any]]) -> None:
    if isinstance(messages, str | Mapping) or not isinstance(messages, Sequence) or not messages:
        raise RequestError("messages must be a list of at least one dictionary")
    for place, message in enumerate(messages):
        if not isinstance(message, Mapping) or "role" not in message:
            raise RequestError(f"message {place} must be a dictionary with 'role' and 'content'")
        role = message["role"]
        if not isinstance(role, str) or not ROLE.fullmatch(role):
            raise RequestError(f"message {place} has the role {role!r}, expected a short word")
        if not isinstance(message.get("content", ""), str | list | tuple | None):
            kind = type(message["content"]).__name__
            raise RequestError(f"the content of message {place} must be a text, got {kind}")


def _raise(message: str) -> None:
    raise jinja2.TemplateError(message)


def _to_json(value: Any, indent: int | None = None) -> str:  # noqa: ANN401 - JSON
    # jinja2's own filter escapes for HTML; templates mean plain JSON.
    return json.dumps(value, ensure_ascii=False, indent=indent)
