"""An answer as it streams in, taken apart: reasoning, content, tool calls.

Pieces may be text or token ids. With ids, a control token is what the model drew, and text that
merely spells one is text; with text, spelling is all there is. What comes out, put together, is
the same however the answer was cut.

Newlines around the parts belong to the format, as in DeepSeek's own parser: those before and
after the reasoning, before the content, and between content and tool calls are left out. What
follows the tool calls is left out too.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any, Literal

from abyssal.chat.calls import AGAIN, DsmlCalls, TokenCalls
from abyssal.chat.parts import Delta, Kind, to_message
from abyssal.chat.prompt import Vocabulary
from abyssal.chat.scan import Marks, stretches
from abyssal.chat.spelling import DSML, END, END_THINK, THINK
from abyssal.errors import RequestError, TokenizerError

Style = Literal["fenced", "plain", "function_calls", "tool_calls"]
Part = Literal["reasoning", "content", "either"]
#: A lone surrogate stands for a control token; no decoded text holds one.
_FIRST = 0xD800
#: A piece before it is handed out: kind, index and id of the call, texts.
_Piece = tuple[Kind, int | None, str | None, list[str]]


class AnswerParser:
    """Takes an answer apart while it grows; `ChatFormat.parser` makes them.

    Args:
        style: How tool calls are written; None when they are not looked for.
        vocabulary: For token ids; None takes text only.
        begins: "reasoning", "content", or "either" where the model may open its own reasoning.
        goes_on: The prompt ends within the part, whose first newlines then count.
        thinks: Whether the tokens of reasoning mean anything; else they are text.
        call_id: Makes the id of the call with an index; None takes random ones.

    Guarantees: nothing that a model writes raises. Time is linear in the answer. The pieces of all
    pushes, put together, do not depend on how the answer was cut, whether into characters, words
    or all at once, into ids one by one or in lists.
    """

    def __init__(
        self,
        style: Style | None,
        vocabulary: Vocabulary | None = None,
        *,
        begins: Part = "content",
        goes_on: bool = False,
        thinks: bool = True,
        call_id: Callable[[int], str] | None = None,
    ) -> None:
        self._style = style
        self._vocabulary = vocabulary
        self._state: str = begins
        self._fresh = not goes_on
        self._thinks = thinks
        if call_id is None:
            name = secrets.token_hex(10)
            call_id = f"call_{{:02d}}_{name}".format
        self._call_id = call_id
        self._by_ids: bool | None = None
        self._held = ""
        self._newlines = 0
        self._num_calls = 0
        self._in_call = False
        self._ended_in = ""
        self._batch: list[_Piece] = []
        self._deltas: list[Delta] = []
        self._finished = False

    def push(self, piece: str | int | Iterable[int]) -> list[Delta]:
        """Take the next piece: a text, a token id or several.

        Returns:
            What is now certain, often nothing.

        Raises:
            RequestError: text after ids or ids after text, ids without a tokenizer, or a piece
                after ``finish``.
        """
        if self._finished:
            raise RequestError("this parser's answer is finished: make another one")
        by_ids = not isinstance(piece, str)
        if self._by_ids is None:
            self._begin(by_ids)
        if by_ids != self._by_ids:
            raise RequestError("a parser takes either text or token ids, not both")
        if isinstance(piece, str):
            self._feed(piece)
        else:
            self._take_ids(piece if isinstance(piece, Iterable) else [piece])
        return self._take()

    def finish(self) -> list[Delta]:
        """End the answer and return what was still kept back."""
        if self._finished:
            return []
        if self._by_ids is None:
            self._begin(by_ids=False)
        if self._by_ids:
            self._feed(self._stream.finish())
        held, self._held = self._held, ""
        if self._tag in held:
            held, self._newlines = "", 0  # a tag of a tool call that was cut short is no text
        while held and not self._step(held, ""):
            pass  # any other beginning of a mark is
        self._say_newlines()
        self._finished = True
        return self._take()

    @property
    def complete(self) -> bool:
        """Whether the answer stopped where one may: not within reasoning or a tool call."""
        state = self._ended_in or self._state
        return not self._in_call and state in ("content", "either", "block", "after")

    @property
    def num_calls(self) -> int:
        """Tool calls begun so far."""
        return self._num_calls

    def message(self) -> dict[str, Any]:
        """Return the message so far, in OpenAI's form; see `to_message`."""
        return to_message(self._deltas)

    def _begin(self, by_ids: bool) -> None:
        """Learn whether text or ids come, and with that what the marks look like."""
        self._by_ids = by_ids
        self._stand_ins: dict[int, str] = {}
        self._spelled: dict[int, str] = {}
        vocabulary = self._vocabulary
        if by_ids:
            if vocabulary is None:
                raise RequestError("token ids need a tokenizer")
            self._stream = vocabulary.tokenizer.stream(skip_special=True)
            for place, control in enumerate(vocabulary.controls.values(), _FIRST):
                self._stand_ins[control.id] = chr(place)
                self._spelled[place] = control.spelling

        def inside(mark: str) -> str:
            """Return what stands for a mark of the format in the text that is searched."""
            parts = [mark] if vocabulary is None else vocabulary.parts_of(mark)
            return "".join(
                part if isinstance(part, str) else self._stand_ins.get(part.id, part.spelling)
                for part in parts
            )

        self._think = inside(THINK) if self._thinks else ""
        self._end_think = inside(END_THINK) if self._thinks else ""
        self._end, self._tag = inside(END), inside(DSML)
        self._calls: TokenCalls | DsmlCalls | None = None
        if self._style in ("fenced", "plain"):
            self._calls = TokenCalls(inside, fenced=self._style == "fenced")
        elif self._style is not None:
            self._calls = DsmlCalls(inside, block=self._style)
        begin = self._calls.begin if self._calls else ""
        ends = (self._end_think, begin, self._end)
        self._marks = {
            "either": Marks(self._think, *ends),
            "reasoning": Marks(*ends),
            "content": Marks(*ends),
            "after": Marks(begin, self._end),
            "ended": Marks(),
            **(self._calls.marks if self._calls else {}),
        }

    def _take_ids(self, ids: Iterable[int]) -> None:
        """Decode ids; control tokens become their stand-ins, ids that no token has nothing."""
        pieces: list[str] = []
        for token in ids:
            stand_in = self._stand_ins.get(token)
            if stand_in is not None:
                pieces += self._stream.finish(), stand_in
                continue
            # A model's embedding may have more rows than its tokenizer names.
            with suppress(TokenizerError):
                pieces.append(self._stream.push(token))
        self._feed("".join(pieces))

    def _feed(self, text: str) -> None:
        for stretch in stretches(text):
            held, done = self._held + stretch, 0
            while True:
                marks = self._marks[self._state]
                found = marks.find(held, done)
                if found is None:
                    stop, mark = len(held) - marks.kept_back(held, done), ""
                else:
                    stop, mark = found
                before = self._state
                if (stop > done or mark) and not self._step(held[done:stop], mark):
                    continue  # the same text again, in another state
                done = stop + len(mark)
                if not mark and self._state == before:
                    break
            self._held = held[done:]

    def _step(self, text: str, mark: str) -> bool:
        """Take text and the mark after it; False when the state changed and they come again."""
        state = self._state
        if state == "either" and text.strip("\n"):
            self._state = "content"
            return False
        if state in ("reasoning", "content", "either"):
            self._say("reasoning" if state == "reasoning" else "content", text)
            if mark and mark == self._think:
                self._part("reasoning")
            elif mark and mark == self._end_think:
                if state == "reasoning":
                    self._part("content")
            elif mark and mark == self._end:
                self._say_newlines()
                self._end_answer()
            elif mark:
                self._part("block")
        elif state == "after":
            if mark == self._end:
                self._end_answer()
            elif mark:
                self._state = "block"
        elif self._calls is not None and state != "ended":
            following = self._calls.step(state, text, mark, self)
            if following.startswith(AGAIN):
                self._state = following.removeprefix(AGAIN)
                return False
            self._state = following
            if mark and mark == self._end:
                self._end_answer()
        return True

    def _end_answer(self) -> None:
        self._ended_in, self._state = self._state, "ended"

    def _part(self, state: str) -> None:
        """Begin another part; the newlines before it belong to neither."""
        self._state, self._newlines, self._fresh = state, 0, True

    def _say(self, kind: Kind, text: str) -> None:
        if self._fresh:
            text = text.lstrip("\n")
            self._fresh = not text
        body = text.rstrip("\n")
        if body:
            self._emit(kind, "\n" * self._newlines + body)
            self._newlines = 0
        self._newlines += len(text) - len(body)

    def _say_newlines(self) -> None:
        """Say the newlines at the very end."""
        kind: Kind = "reasoning" if self._state == "reasoning" else "content"
        self._emit(kind, "\n" * self._newlines)
        self._newlines = 0

    def open_call(self, name: str) -> None:
        """Begin a tool call (for the parts of this package)."""
        name = name.translate(self._spelled)
        index = self._num_calls
        self._batch.append(("call", index, self._call_id(index), [name]))
        self._num_calls, self._in_call = index + 1, True

    def argue(self, text: str) -> None:
        """Add to the arguments of the open call (for the parts of this package)."""
        if self._in_call:
            self._emit("arguments", text, self._num_calls - 1)

    def close_call(self) -> None:
        """End a tool call (for the parts of this package)."""
        self._in_call = False

    def _emit(self, kind: Kind, text: str, index: int | None = None) -> None:
        if not text:
            return
        text = text if text.isascii() else text.translate(self._spelled)
        if self._batch and self._batch[-1][:2] == (kind, index):
            self._batch[-1][3].append(text)
        else:
            self._batch.append((kind, index, None, [text]))

    def _take(self) -> list[Delta]:
        batch, self._batch = self._batch, []
        deltas = [Delta(kind, "".join(text), index, id_) for kind, index, id_, text in batch]
        self._deltas += deltas
        return deltas
