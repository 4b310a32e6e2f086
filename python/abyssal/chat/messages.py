"""Conversations in OpenAI's form: dictionaries in, checked records out.

Everything a caller may get wrong is found here, before anything is rendered, and the error says
in which message: roles, types of contents, tool calls without a name, results without a call,
text that is no Unicode.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from abyssal.errors import RequestError

ROLES = ("system", "user", "assistant", "tool")


@dataclass(frozen=True, slots=True)
class Call:
    """A tool call: the function's name, its arguments as JSON text, and the call's id."""

    name: str
    arguments: str
    id: str | None = None


@dataclass(frozen=True, slots=True)
class Message:
    """One message.

    Attributes:
        role: One of the roles of the format.
        content: The text; empty where an assistant only called tools.
        reasoning: What an assistant thought.
        calls: An assistant's tool calls.
        has_content: False where an assistant's content was None.
        prefix: The last message, an assistant's, is to be continued.
    """

    role: str
    content: str
    reasoning: str = ""
    calls: tuple[Call, ...] = ()
    has_content: bool = True
    prefix: bool = False


@dataclass(frozen=True, slots=True)
class Conversation:
    """What a format writes.

    Attributes:
        messages: The messages; tool results stand in the order of their calls.
        tools: The functions offered, as the dictionaries ``{"name": ...}``.
        thinking: Whether the model is to think.
        effort: How hard, in the words of the format.
        opened: Whether the assistant's turn is opened at the end.
    """

    messages: tuple[Message, ...]
    tools: tuple[Mapping[str, Any], ...] = field(default=())
    thinking: bool = False
    effort: str | None = None
    opened: bool = True


def check_messages(messages: Any) -> None:  # noqa: ANN401 - what a caller gave
    """Check what holds for every chat format: a list of dictionaries with a role.

    Raises:
        RequestError: it does not; the message says where.
    """
    if isinstance(messages, str | Mapping) or not isinstance(messages, Sequence) or not messages:
        raise RequestError("messages must be a list of at least one dictionary")
    for place, message in enumerate(messages):
        if not isinstance(message, Mapping) or "role" not in message:
            raise RequestError(f"message {place} must be a dictionary with 'role' and 'content'")
        if not isinstance(message.get("content", ""), str | list | tuple | None):
            kind = type(message["content"]).__name__
            raise RequestError(f"the content of message {place} must be a text, got {kind}")


def read_messages(
    messages: Any,  # noqa: ANN401 - what a caller gave
    *,
    roles: Sequence[str] = ROLES,
    joiner: str = "\n",
    as_objects: bool = False,
) -> tuple[Message, ...]:
    """Check a conversation.

    Args:
        messages: Dictionaries in OpenAI's form: ``role``, ``content`` (a text, or a list of text
            parts), and an assistant's ``reasoning_content`` (or ``reasoning``) and ``tool_calls``;
            a tool's ``tool_call_id``.
        roles: The roles that the format has.
        joiner: What stands between the parts of a content.
        as_objects: Whether the format writes the arguments of calls one by one.

    Returns:
        The messages, tool results in the order of their calls.

    Raises:
        RequestError: anything of a wrong form; the message names the index.
    """
    check_messages(messages)
    read = [_read(message, place, roles, joiner) for place, message in enumerate(messages)]
    for place, message in enumerate(read if as_objects else ()):
        for index, call in enumerate(message.calls):
            # An escape in JSON text may stand for what has no UTF-8 form.
            where = f"message {place}: tool call {index}: arguments"
            to_json(read_arguments(call.arguments), where)
    if read[0].role == "tool":
        raise RequestError("message 0 is a tool result, but no message calls a tool before it")
    place = 0
    while place < len(read):
        calls = read[place].calls
        stop = place + 1
        while stop < len(read) and read[stop].role == "tool":
            stop += 1
        if stop > place + 1 or (calls and stop < len(read)):
            asked = [message.get("tool_call_id") for message in messages[place + 1 : stop]]
            order = _order_of_results(calls, asked, place)
            read[place + 1 : stop] = [read[place + 1 + each] for each in order]
        place = stop
    return tuple(read)


def _order_of_results(calls: tuple[Call, ...], ids: list[Any], place: int) -> list[int]:
    """Return the results' places in the order of the calls of message ``place``.

    The formats write no ids, so the order is all that tells which result belongs to which call.
    """
    if not calls:
        raise RequestError(f"message {place + 1} is a tool result, but message {place} calls none")
    if len(ids) != len(calls):
        raise RequestError(
            f"message {place} has {len(calls)} tool calls, but {len(ids)} tool results follow it"
        )
    known = [call.id for call in calls]
    if None in known or None in ids or len(set(known)) < len(known):
        return list(range(len(ids)))
    for offset, call_id in enumerate(ids):
        if call_id not in known:
            raise RequestError(
                f"message {place + 1 + offset} has the tool_call_id {call_id!r}, "
                f"but the calls of message {place} are {', '.join(map(repr, known))}"
            )
        if call_id in ids[:offset]:
            raise RequestError(f"message {place + 1 + offset} repeats tool_call_id {call_id!r}")
    return [ids.index(call_id) for call_id in known]


def _read(message: Mapping[str, Any], place: int, roles: Sequence[str], joiner: str) -> Message:
    role = message["role"]
    if not isinstance(role, str) or role not in roles:
        raise RequestError(f"message {place} has the role {role!r}, expected {', '.join(roles)}")
    where = f"message {place}"
    call_id = message.get("tool_call_id")
    if role == "tool" and not isinstance(call_id, str | None):
        raise RequestError(f"{where}: tool_call_id must be a text, got {type(call_id).__name__}")
    content = _text(message.get("content"), f"the content of {where}", joiner)
    if role != "assistant":
        for key in ("tool_calls", "prefix"):
            if message.get(key):
                raise RequestError(f"{where} has {key}, which only an assistant's may have")
        if content is None:
            raise RequestError(f"the content of {where} must be a text, got None")
        return Message(role, content)
    calls = _calls(message.get("tool_calls"), where)
    if content is None and not calls:
        raise RequestError(f"{where}, an assistant's, needs content or tool_calls")
    thought = message.get("reasoning_content")
    thought = message.get("reasoning") if thought is None else thought
    reasoning = _text(thought, f"the reasoning_content of {where}", joiner) or ""
    prefix = message.get("prefix")
    return Message(role, content or "", reasoning, calls, content is not None, prefix is True)


def _text(value: Any, where: str, joiner: str) -> str | None:  # noqa: ANN401 - JSON
    """Return a text or the text of parts; None stays None."""
    if value is None:
        return None
    if isinstance(value, list | tuple):
        texts = []
        for index, part in enumerate(value):
            kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
            if kind != "text" or not isinstance(part.get("text"), str):
                raise RequestError(f"{where}: part {index} is {kind!r}, expected a text part")
            texts.append(part["text"])
        value = joiner.join(texts)
    if not isinstance(value, str):
        raise RequestError(f"{where} must be a text, got {type(value).__name__}")
    return check_text(value, where)


def _calls(value: Any, where: str) -> tuple[Call, ...]:  # noqa: ANN401 - JSON
    if value is None:
        return ()
    if not isinstance(value, list | tuple):
        raise RequestError(f"{where}: tool_calls must be a list, got {type(value).__name__}")
    found = []
    for index, call in enumerate(value):
        here = f"{where}: tool call {index}"
        function = call.get("function") if isinstance(call, Mapping) else None
        name = function.get("name") if isinstance(function, Mapping) else None
        if not isinstance(function, Mapping) or not isinstance(name, str) or not name:
            raise RequestError(f"{here} has no function name")
        arguments = function.get("arguments")
        if arguments is None:
            arguments = "{}"
        if isinstance(arguments, Mapping):
            arguments = to_json(arguments, f"{here}: arguments")
        if not isinstance(arguments, str):
            kind = type(arguments).__name__
            raise RequestError(f"{here}: arguments must be JSON text, got {kind}")
        call_id = call.get("id")
        if not isinstance(call_id, str | None):
            raise RequestError(f"{here}: id must be a text, got {type(call_id).__name__}")
        check_text(name, f"{here}: the function name")
        found.append(Call(name, check_text(arguments, f"{here}: arguments"), call_id))
    return tuple(found)


def read_tools(tools: Any) -> tuple[Mapping[str, Any], ...]:  # noqa: ANN401 - what a caller gave
    """Check tool definitions ``{"type": "function", "function": {"name": ...}}``.

    Returns:
        The inner dictionaries.

    Raises:
        RequestError: a definition of a wrong form; the message names its place.
    """
    if tools is None:
        return ()
    if not isinstance(tools, list | tuple):
        raise RequestError(f"tools must be a list, got {type(tools).__name__}")
    found = []
    for index, tool in enumerate(tools):
        function = tool.get("function") if isinstance(tool, Mapping) else None
        if not isinstance(function, Mapping):
            raise RequestError(f"tool {index} must be a dictionary with 'function'")
        name = function.get("name")
        if not isinstance(name, str) or not name:
            raise RequestError(f"tool {index} has no function name")
        if not isinstance(function.get("description"), str | None):
            raise RequestError(f"tool {index}: its description must be a text")
        to_json(function, f"tool {index}")
        found.append(function)
    return tuple(found)


def read_arguments(arguments: str) -> dict[str, Any]:
    """Return a call's arguments; text that is no JSON object is one argument of that name."""
    try:
        value = json.loads(arguments, parse_constant=_refuse)
    except (ValueError, RecursionError):
        value = None
    return value if isinstance(value, dict) else {"arguments": arguments}


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")


def to_json(value: Any, where: str = "the value") -> str:  # noqa: ANN401 - JSON
    """Return JSON as the published encoders write it: one line, characters as they are.

    Raises:
        RequestError: it has no JSON form; ``where`` says what it was.
    """
    try:
        text = json.dumps(value, ensure_ascii=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise RequestError(f"{where} cannot be written as JSON: {error}") from None
    return check_text(text, where)


def check_text(text: str, where: str) -> str:
    """Return the text, or raise ``RequestError`` when it holds a lone surrogate."""
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise RequestError(
                f"{where} holds a lone surrogate, U+{ord(text[error.start]):04X}, at position "
                f"{error.start}; it has no UTF-8 form"
            ) from None
    return text
