"""Tool calls as the models write them, each style as a table of states and marks.

A style is told the text before a mark, and the mark, and says which state follows. Its states:
"block" (between calls), those inside a call, and "after" (the block is closed). Whatever a model
writes leads to some state; nothing raises.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Protocol

from abyssal.chat.scan import Marks
from abyssal.chat.spelling import (
    CALL,
    CALLS,
    DSML,
    END,
    END_CALL,
    END_CALLS,
    SEPARATOR,
)

#: Turns a mark of the format into what stands for it in the parser's text.
Inside = Callable[[str], str]
#: What `step` returns for text that belongs to the state it names.
AGAIN = "again:"


class Calls(Protocol):
    """Where a style puts what it finds."""

    def open_call(self, name: str) -> None:
        """Begin a call."""

    def argue(self, text: str) -> None:
        """Add JSON text to the arguments of the call."""

    def close_call(self) -> None:
        """End the call."""


class TokenCalls:
    """Calls between tokens, of V3 and R1 (fenced) and of V3.1.

    Args:
        inside: Turns marks into the parser's text.
        fenced: ``function<sep>name``, a newline, and JSON in a fenced block; else
            ``name<sep>JSON``.
    """

    def __init__(self, inside: Inside, *, fenced: bool) -> None:
        self.begin = inside(CALLS)
        self._call, self._sep, self._end_call = inside(CALL), inside(SEPARATOR), inside(END_CALL)
        self._end_calls = inside(END_CALLS)
        self._fenced = fenced
        self._end = inside(END)
        ends = (self._end_call, self._end_calls, self._end)
        fences = ("\n```" + self._end_call, "```" + self._end_call) if fenced else ()
        self.marks: Mapping[str, Marks] = {
            "block": Marks(self._call, self._end_calls, self._end),
            "type": Marks(self._sep, *ends),
            "name": Marks("\n" if fenced else self._sep, *ends),
            "fence": Marks("```json\n", "```\n", *ends),
            "arguments": Marks(*fences, *ends),
        }
        self._name: list[str] = []

    def step(self, state: str, text: str, mark: str, out: Calls) -> str:
        """Take text and the mark after it ("" for none yet); return the next state."""
        if state == "fence" and text:
            return AGAIN + "arguments"  # not fenced after all
        if state == "arguments":
            out.argue(text)
        elif state == "name":
            self._name.append(text)
        if not mark:
            return state
        if mark == self._call:
            self._name = []
            return "type" if self._fenced else "name"
        if state == "type" and mark == self._sep:
            return "name"
        name = "".join(self._name).strip() if state == "name" else ""
        if state == "name" and mark in ("\n", self._sep):
            if not name:
                return state  # a blank line before it
            out.open_call(name)
            return "fence" if self._fenced else "arguments"
        if state == "fence" and mark.startswith("```"):
            return "arguments"
        if mark == self._end:
            return state  # the answer ends within the call
        if name:
            out.open_call(name)  # a call without arguments
        out.close_call()
        return "after" if mark == self._end_calls else "block"


class DsmlCalls:
    """Calls as DSML, of V3.2 and V4; arguments come out as a JSON object.

    Args:
        inside: Turns marks into the parser's text.
        block: The name of the block.
    """

    def __init__(self, inside: Inside, *, block: str) -> None:
        self.begin = inside(f"<{DSML}{block}>")
        end = inside(END)
        self._end_block = inside(f"</{DSML}{block}>")
        self._invoke, self._end_invoke = inside(f'<{DSML}invoke name="'), inside(f"</{DSML}invoke>")
        self._parameter = inside(f'<{DSML}parameter name="')
        self._end_parameter = inside(f"</{DSML}parameter>")
        self.marks: Mapping[str, Marks] = {
            "block": Marks(self._invoke, self._end_block, end),
            "name": Marks('">', end),
            "invoke": Marks(self._parameter, self._end_invoke, self._end_block, end),
            "key": Marks('" string="', '">', end),
            "kind": Marks('false">', '">', end),
            "value": Marks(self._end_parameter, end),
        }
        self._word: list[str] = []
        self._is_text = True
        self._parameters = 0

    def step(self, state: str, text: str, mark: str, out: Calls) -> str:
        """Take text and the mark after it ("" for none yet); return the next state."""
        if state in ("name", "key"):
            self._word.append(text)
        elif state == "value":
            out.argue(escaped(text) if self._is_text else text)
        if mark == self._invoke:
            self._word = []
            return "name"
        if mark == self._parameter:
            self._word = []
            return "key"
        if state == "name" and mark == '">':
            out.open_call("".join(self._word))
            self._parameters = 0
            return "invoke"
        if state == "key" and mark == '" string="':
            return "kind"
        if state in ("key", "kind") and mark.endswith('">'):
            # A parameter that does not say what it is is a text.
            self._is_text = mark == '">'
            out.argue(", " if self._parameters else "{")
            out.argue(f'"{escaped("".join(self._word))}": ' + ('"' if self._is_text else ""))
            self._parameters += 1
            return "value"
        if mark == self._end_parameter:
            out.argue('"' if self._is_text else "")
            return "invoke"
        if mark in (self._end_invoke, self._end_block) and state == "invoke":
            out.argue("}" if self._parameters else "{}")
            out.close_call()
        if mark == self._end_block:
            return "after"
        return "block" if mark == self._end_invoke else state


def escaped(text: str) -> str:
    """Return a text as it stands inside a JSON string."""
    return json.dumps(text, ensure_ascii=False)[1:-1]
