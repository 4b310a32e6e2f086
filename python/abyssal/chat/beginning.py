"""Where in an answer a parser begins: read from how the prompt ends."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Literal

from abyssal.chat.parser import AnswerParser, Part, Style
from abyssal.chat.prompt import Vocabulary, as_list
from abyssal.chat.spelling import THINK

#: "none": text may spell the tokens of reasoning; "opened": the prompt opens it or there is none;
#: "free": where the prompt did not open it, the answer may.
Thoughts = Literal["none", "opened", "free"]


def parser_for(
    prompt: Iterable[int],
    style: Style | None,
    vocabulary: Vocabulary,
    *,
    thoughts: Thoughts,
    call_id: Callable[[int], str] | None = None,
) -> AnswerParser:
    """Make a parser for the answer to a prompt, by how the prompt ends.

    Args:
        prompt: Token ids.
        style: As for `AnswerParser`.
        vocabulary: As for `AnswerParser`.
        thoughts: Who opens the reasoning.
        call_id: As for `AnswerParser`.
    """
    ids = as_list(prompt)
    place = len(ids) - 1
    while place >= 0 and ids[place] not in vocabulary.ids:
        place -= 1
    tail = vocabulary.tokenizer.decode(ids[place + 1 :])
    think = vocabulary.controls.get(THINK)
    thinks = think is not None and place >= 0 and ids[place] == think.id
    if think is None and tail.rstrip("\n").endswith(THINK):
        thinks, tail = True, ""
    goes_on = bool(tail.strip("\n"))
    begins: Part = (
        "reasoning" if thinks else "either" if thoughts == "free" and not tail else "content"
    )
    return AnswerParser(
        style,
        vocabulary,
        begins=begins,
        goes_on=goes_on,
        thinks=thinks or thoughts != "none",
        call_id=call_id,
    )


def parse_whole(parser: AnswerParser, answer: str | Iterable[int]) -> dict[str, Any]:
    """Take a whole answer apart; return the message in OpenAI's form."""
    parser.push(answer)
    parser.finish()
    return parser.message()
