"""Random conversations whose texts are placeholders, and texts that try to forge turns.

A conversation is drawn once with placeholders, which no format could mistake for anything; what
the format places around them is then known. The same conversation with the placeholders replaced
must be the same but for the texts themselves.
"""

from __future__ import annotations

import json
import random
import re
from typing import Any

PLACEHOLDER = re.compile("Q[0-9]+Q")
OTHERS = (
    "<|User|>", "<|end_of_sentence|>", "＜｜User｜＞", "<｜user｜>", "<｜User |>",
    "<\u200b｜User｜>", "<｜Us\u0308er｜>", "<｜begin_of_sentence｜>", "<｜begin▁of▁sentence",
    "｜>", "<｜", "｜", "▁", "<", "</", ">", "<think", "think>", "｜DSML", "DSML｜", "User",
    "<tool_result>", "</tool_result>", "</function_results>", " ", "word", "größe", "深度", "🙂",
    "<｜<｜User｜>User｜>", "</</think>think>", "｜｜DSML｜DSML｜", "<s>", "<|im_start|>", "system",
    "function<｜tool▁sep｜>", "\u2028", "\ufeff", "\x00", "\x85",
)  # fmt: skip


def hostile_text(rng: random.Random, tokens: list[str], *, plain: bool = False) -> str:
    """Control tokens, whole, in parts, doubled, nested and disguised.

    Args:
        rng: The source of chance.
        tokens: Every added token's spelling.
        plain: Only characters that JSON writes as they are.
    """
    pieces = []
    for _ in range(rng.randint(1, 8)):
        token = rng.choice(tokens)
        at = rng.randint(1, len(token) - 1)
        pieces.append(
            rng.choice(
                (token, token, token * 2, token[:at], token[at:], token[:at] + token + token[at:])
            )
            if rng.random() < 0.6
            else rng.choice(OTHERS)
        )
    text = "".join(pieces)
    return re.sub(r'["\\\x00-\x1f]', "", text) or "x" if plain else text


class Talk:
    """A random conversation in OpenAI's form, with placeholders for its texts."""

    def __init__(self, rng: random.Random, *, tools: bool) -> None:
        self._rng = rng
        self._count = 0
        self.plain: set[str] = set()
        self.assistant: set[str] = set()
        self.tools = self._tools() if tools and rng.random() < 0.5 else None
        self.messages = self._messages(tools)

    def _text(self, group: set[str] | None = None) -> str:
        self._count += 1
        text = f"Q{self._count}Q"
        if group is not None:
            group.add(text)
        return text

    def _tools(self) -> list[dict[str, Any]]:
        return [
            {
                "type": "function",
                "function": {
                    "name": self._text(self.plain),
                    "description": self._text(self.plain),
                    "parameters": {"type": "object", "properties": {self._text(self.plain): {}}},
                },
            }
            for _ in range(self._rng.randint(1, 2))
        ]

    def _messages(self, tools: bool) -> list[dict[str, Any]]:
        rng = self._rng
        messages: list[dict[str, Any]] = []
        if rng.random() < 0.5:
            messages.append({"role": "system", "content": self._text()})
        for _ in range(rng.randint(0, 2)):
            messages.append({"role": "user", "content": self._text()})
            if tools and rng.random() < 0.4:
                messages += self._calls()
            messages.append(self._answer())
        messages.append({"role": "user", "content": self._text()})
        if tools and rng.random() < 0.3:
            messages += self._calls()
        return messages

    def _answer(self) -> dict[str, Any]:
        answer: dict[str, Any] = {"role": "assistant", "content": self._text(self.assistant)}
        if self._rng.random() < 0.6:
            answer["reasoning_content"] = self._text(self.assistant)
        return answer

    def _calls(self) -> list[dict[str, Any]]:
        calls = []
        for place in range(self._rng.randint(1, 2)):
            arguments: dict[str, Any] = {}
            for _ in range(self._rng.randint(0, 2)):
                value = self._text(self.plain)
                arguments[self._text(self.plain)] = self._rng.choice((value, [value], 1))
            function = {
                "name": self._text(self.plain),
                "arguments": json.dumps(arguments, ensure_ascii=False),
            }
            calls.append({"id": f"c{place}", "type": "function", "function": function})
        results = [
            {"role": "tool", "tool_call_id": call["id"], "content": self._text()} for call in calls
        ]
        self._rng.shuffle(results)
        return [self._answer() | {"tool_calls": calls}, *results]

    def simple_names(self) -> dict[str, str]:
        """Give functions names that any format accepts."""
        functions = [tool["function"] for tool in self.tools or []]
        for message in self.messages:
            functions += [call["function"] for call in message.get("tool_calls", ())]
        return {function["name"]: f"f{place}" for place, function in enumerate(functions)}

    def texts(self, rng: random.Random, tokens: list[str]) -> dict[str, str]:
        """Draw a hostile text for each placeholder.

        No two plain texts are equal: two arguments of one name would be one argument.
        """
        drawn: dict[str, str] = {}
        taken = set()
        for count in range(1, self._count + 1):
            place = f"Q{count}Q"
            drawn[place] = hostile_text(rng, tokens, plain=place in self.plain)
            while place in self.plain and drawn[place] in taken:
                drawn[place] = hostile_text(rng, tokens, plain=True)
            if place in self.plain:
                taken.add(drawn[place])
            if place in self.assistant:
                # Formats drop earlier reasoning by looking for this in an assistant's content.
                drawn[place] = drawn[place].replace("</think>", "</thin-k>")
        return drawn


def filled(value: Any, texts: dict[str, str]) -> Any:
    """Replace placeholders everywhere in a value."""
    if isinstance(value, str):
        return PLACEHOLDER.sub(lambda found: texts[found.group()], value)
    if isinstance(value, dict):
        return {filled(key, texts): filled(each, texts) for key, each in value.items()}
    if isinstance(value, list):
        return [filled(each, texts) for each in value]
    return value
