"""What a streaming parser gives back: pieces of an answer, and the message they make."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

Kind = Literal["reasoning", "content", "call", "arguments"]


@dataclass(frozen=True, slots=True)
class Delta:
    """A piece of an answer.

    Attributes:
        kind: "reasoning" and "content" bring text; "call" begins a tool call; "arguments" brings
            a piece of its arguments' JSON text.
        text: The text; the function's name for "call".
        index: Which tool call, from 0 on; None for text.
        id: The call's id, for "call".
    """

    kind: Kind
    text: str
    index: int | None = None
    id: str | None = None

    def to_openai(self, reasoning_key: str = "reasoning_content") -> dict[str, Any]:
        """Return the ``delta`` of a chunk in OpenAI's streaming form."""
        if self.kind == "reasoning":
            return {reasoning_key: self.text}
        if self.kind == "content":
            return {"content": self.text}
        call: dict[str, Any] = {"index": self.index}
        if self.kind == "call":
            function = {"name": self.text, "arguments": ""}
            call |= {"id": self.id, "type": "function", "function": function}
        else:
            call["function"] = {"arguments": self.text}
        return {"tool_calls": [call]}


def to_message(deltas: Iterable[Delta]) -> dict[str, Any]:
    """Put pieces together.

    Args:
        deltas: In their order.

    Returns:
        An assistant's message in OpenAI's form: ``content`` (None where there are only tool
        calls), and ``reasoning_content`` and ``tool_calls`` where there are any.
    """
    texts: dict[str, list[str]] = {"reasoning": [], "content": []}
    calls: list[dict[str, Any]] = []
    arguments: list[list[str]] = []
    for delta in deltas:
        if delta.kind == "call":
            function = {"name": delta.text, "arguments": ""}
            calls.append({"id": delta.id, "type": "function", "function": function})
            arguments.append([])
        elif delta.kind == "arguments":
            arguments[-1].append(delta.text)
        else:
            texts[delta.kind].append(delta.text)
    for call, pieces in zip(calls, arguments, strict=True):
        call["function"]["arguments"] = "".join(pieces)
    content = "".join(texts["content"])
    message: dict[str, Any] = {"role": "assistant", "content": content}
    if calls and not content:
        message["content"] = None
    if reasoning := "".join(texts["reasoning"]):
        message["reasoning_content"] = reasoning
    if calls:
        message["tool_calls"] = calls
    return message
