"""A checkpoint's own chat template, for formats that this package does not know itself.

The template is rendered in jinja2's immutable sandbox, and it must not be possible to forge a turn
of the conversation through it. A rendered text does not tell where its parts came from, so the
texts of messages and tools go in with a disguise: every character that the spelling of some added
token cannot do without ("<" and "｜", say) is replaced by a private one, and put back afterwards.
A control token in the rendered text has therefore been written by the template, even where a half
of one stood at the border of a message. The text between is encoded as text.

One spelling is left alone: ``<think>`` and ``</think>`` in the content of an assistant's messages,
which many templates look for to drop earlier reasoning. Where a template lets them stand, they
become the control tokens.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

import jinja2
from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

from abyssal.chat.beginning import parse_whole, parser_for
from abyssal.chat.messages import check_messages, check_text
from abyssal.chat.parser import AnswerParser, Style
from abyssal.chat.prompt import Vocabulary, encode_text
from abyssal.chat.spelling import CALLS, DSML, END_THINK
from abyssal.errors import RequestError
from abyssal.tokenizer import Tokenizer

ROLE = re.compile(r"[A-Za-z0-9_-]{1,64}")
_THOUGHT = re.compile("(</?think>)")
#: Where the private characters are taken from: the last plane of Unicode.
_PRIVATE = range(0x10FFFD, 0x100000, -1)


class TemplateFormat:
    """A chat template.

    Args:
        source: The template.
        tokenizer: The tokenizer of the checkpoint.
        where: What an error calls the checkpoint.

    Attributes:
        name: "template".

    Raises:
        RequestError: it does not parse.
    """

    name = "template"

    def __init__(self, source: str, tokenizer: Tokenizer, where: str = "this checkpoint") -> None:
        self._source = source
        self._vocabulary = Vocabulary(tokenizer)
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols]
        )
        environment.filters["tojson"] = _to_json
        environment.globals["raise_exception"] = _raise
        environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
        try:
            self._template = environment.from_string(source)
        except jinja2.TemplateError as error:
            raise RequestError(f"the chat template of {where} does not parse: {error}") from error
        longest_first = sorted(self._vocabulary.added, key=len, reverse=True)
        self._controls = re.compile("(" + ("|".join(map(re.escape, longest_first)) or "(?!)") + ")")
        self._telling = _telling_characters(longest_first)

    def encode(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        parse_control_tokens: bool = False,
        **variables: Any,  # noqa: ANN401 - whatever the template knows
    ) -> list[int]:
        """Encode a conversation.

        Args:
            messages: Dictionaries with ``role`` and ``content`` and what else the template knows.
            parse_control_tokens: Give up the protection: control tokens spelled anywhere in the
                conversation become control tokens.
            variables: Variables of the template: ``tools``, ``thinking``, and by default
                ``add_generation_prompt=True``; those that are None are left out.

        Returns:
            The token ids, the beginning token included where the template writes it.

        Raises:
            RequestError: messages of a wrong form, or that the template refuses.

        Guarantees: but for the exception above, every id of an added token was written by the
            template. Where contents spell no added token, the ids are those of the rendered text.
        """
        if parse_control_tokens:
            return encode_text(self._vocabulary, self.render(messages, **variables), safe=False)
        texts = list(_texts(messages)) + list(_texts(variables))
        put_on, take_off = self._disguise(texts)
        rendered = self._render(messages, variables, put_on)
        ids: list[int] = []
        plain: list[str] = []
        for place, piece in enumerate(self._controls.split(rendered)):
            text = piece if place % 2 else piece.translate(take_off)
            if text == piece:
                plain.append(piece)
                continue
            # Between control tokens nothing merges, so the pieces may be encoded one by one.
            ids += encode_text(self._vocabulary, "".join(plain), safe=False)
            ids += encode_text(self._vocabulary, text)
            plain.clear()
        return ids + encode_text(self._vocabulary, "".join(plain), safe=False)

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        **variables: Any,  # noqa: ANN401 - whatever the template knows
    ) -> str:
        """Return the prompt as text, for people to read; arguments and errors as `encode`."""
        return self._render(messages, variables, {})

    def parser(
        self,
        prompt: Iterable[int] | None = None,
        *,
        tools: bool = True,
        call_id: Callable[[int], str] | None = None,
    ) -> AnswerParser:
        """Make a parser for the answer to a prompt; as ``ChatFormat.parser``.

        Tool calls are found where the template itself writes them as DeepSeek's formats do.
        """
        style: Style | None = None
        if CALLS in self._source:
            style = "fenced" if "```json" in self._source else "plain"
        elif DSML in self._source:
            style = "function_calls" if "function_calls" in self._source else "tool_calls"
        return parser_for(
            () if prompt is None else prompt,
            style if tools else None,
            self._vocabulary,
            thoughts="free" if END_THINK in self._source else "none",
            call_id=call_id,
        )

    def parse(
        self, answer: str | Iterable[int], prompt: Iterable[int] | None = None
    ) -> dict[str, Any]:
        """Return a whole answer as a message in OpenAI's form; arguments as for `parser`."""
        return parse_whole(self.parser(prompt), answer)

    def _disguise(self, texts: list[str]) -> tuple[dict[int, str], dict[int, str]]:
        """Return what to replace in contents, and what to put back."""
        together = frozenset().union(*texts, self._source)
        free = (chr(code) for code in _PRIVATE if chr(code) not in together)
        put_on = {ord(telling): next(free) for telling in self._telling}
        return put_on, {ord(private): chr(telling) for telling, private in put_on.items()}

    def _render(
        self,
        messages: Any,  # noqa: ANN401 - what a caller gave
        variables: Mapping[str, Any],
        put_on: Mapping[int, str],
    ) -> str:
        check_messages(messages)
        for place, message in enumerate(messages):
            role = message["role"]
            if not isinstance(role, str) or not ROLE.fullmatch(role):
                raise RequestError(f"message {place} has the role {role!r}, expected a short word")
            for text in _texts(message):
                check_text(text, f"message {place}")
        given = {key: value for key, value in variables.items() if value is not None}
        tokenizer = self._vocabulary.tokenizer
        settings = {
            "add_generation_prompt": True,
            "bos_token": tokenizer.bos_token or "",
            "eos_token": tokenizer.eos_token or "",
            **_dressed(given, put_on),
        }
        try:
            dressed = [_dressed_message(message, put_on) for message in messages]
            return self._template.render(messages=dressed, **settings)
        except Exception as error:  # a template may fail in any way its functions can
            raise RequestError(f"the chat template refuses these messages: {error}") from error


def _telling_characters(spellings: Iterable[str]) -> set[str]:
    """Return characters such that every spelling has at least one of them."""
    found: set[str] = set()
    for spelling in spellings:
        if found.isdisjoint(spelling):
            signs = [character for character in spelling if not character.isalnum()]
            found.add((signs or spelling)[0])
    return found


def _texts(value: Any) -> Iterable[str]:  # noqa: ANN401 - JSON
    """List every text in a value, keys included."""
    waiting = [value]
    seen: set[int] = set()
    while waiting:
        value = waiting.pop()
        if isinstance(value, str):
            yield value
        elif isinstance(value, Mapping | list | tuple) and id(value) not in seen:
            seen.add(id(value))
            waiting += value
            waiting += value.values() if isinstance(value, Mapping) else ()


def _dressed_message(message: Mapping[str, Any], put_on: Mapping[int, str]) -> dict[str, Any]:
    """Copy a message with its texts disguised, but for the marks of an assistant's reasoning."""
    dressed: dict[str, Any] = _dressed(message, put_on)
    for key in ("content", "reasoning_content", "reasoning"):
        text = message.get(key)
        if message["role"] == "assistant" and isinstance(text, str):
            pieces = enumerate(_THOUGHT.split(text))
            dressed[key] = "".join(p if i % 2 else p.translate(put_on) for i, p in pieces)
    return dressed


def _dressed(value: Any, put_on: Mapping[int, str]) -> Any:  # noqa: ANN401 - JSON
    """Copy a value with every text in it disguised."""
    if isinstance(value, str):
        return value.translate(put_on)
    if isinstance(value, Mapping):
        return {_dressed(key, put_on): _dressed(each, put_on) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_dressed(each, put_on) for each in value]
    return value


def _raise(message: str) -> None:
    raise jinja2.TemplateError(message)


def _to_json(
    value: Any,  # noqa: ANN401 - JSON
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    # jinja2's own filter escapes for HTML; templates mean plain JSON. Characters are never
    # escaped, whatever is asked: the disguise is taken off later.
    return json.dumps(
        value, ensure_ascii=False, indent=indent, separators=separators, sort_keys=sort_keys
    )
