"""Answers as models write them, good ones and damaged ones, for the tests of the parser."""

from __future__ import annotations

import random
from itertools import pairwise

from abyssal.chat import AnswerParser, ChatFormat

DSML = "｜DSML｜"
CALLS, END_CALLS = "<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>"
CALL, END_CALL, SEP = "<｜tool▁call▁begin｜>", "<｜tool▁call▁end｜>", "<｜tool▁sep｜>"
END = "<｜end▁of▁sentence｜>"


def dsml(block: str) -> str:
    return (
        f'\n\n<{DSML}{block}>\n<{DSML}invoke name="depth">\n'
        f'<{DSML}parameter name="place" string="true">Mariana "Trench"\n深</{DSML}parameter>\n'
        f'<{DSML}parameter name="unit" string="false">{{"m": 1.50}}</{DSML}parameter>\n'
        f'</{DSML}invoke>\n<{DSML}invoke name="now">\n</{DSML}invoke>\n</{DSML}{block}>'
    )


FENCED = (
    f'{CALLS}{CALL}function{SEP}depth\n```json\n{{"place": "Mariana", "code": "```"}}\n```'
    f"{END_CALL}\n{CALL}function{SEP}now\n```json\n{{}}\n```{END_CALL}{END_CALLS}"
)
PLAIN = (
    f'{CALLS}{CALL}depth{SEP}{{"place": "Mariana"}}{END_CALL}'
    f"{CALL}now{SEP}{{}}{END_CALL}{END_CALLS}"
)
DSML_CALLS = [
    ("depth", '{"place": "Mariana \\"Trench\\"\\n深", "unit": {"m": 1.50}}'),
    ("now", "{}"),
]

#: Format, options of the prompt, answer, and what is in it: reasoning, content, calls.
SAMPLES = [
    ("v3", {}, f"It is <deep> </think>🙂.{END}", ("", "It is <deep> </think>🙂.", [])),
    (
        "v3", {}, f"Look:\n{FENCED}{END}",
        ("", "Look:", [("depth", '{"place": "Mariana", "code": "```"}'), ("now", "{}")]),
    ),
    ("r1", {}, f"Hm, 深.\n\nSo.\n</think>\n\nTwo.\n{END}", ("Hm, 深.\n\nSo.", "Two.\n", [])),
    ("r1-0528", {}, f"<think>\nHm.\n</think>\n\nTwo.{END}", ("Hm.", "Two.", [])),
    ("r1-0528", {}, f"No thought, <think> here.{END}", ("", "No thought, <think> here.", [])),
    (
        "r1-0528", {}, f"<think>\nHm.\n</think>\n{FENCED}{END}",
        ("Hm.", "", [("depth", '{"place": "Mariana", "code": "```"}'), ("now", "{}")]),
    ),
    ("v3.1", {"thinking": False}, f"Two.{END}", ("", "Two.", [])),
    ("v3.1", {"thinking": True}, f"Hm.</think>Two.{END}", ("Hm.", "Two.", [])),
    (
        "v3.1", {"thinking": False}, f"Look: {PLAIN}{END}",
        ("", "Look: ", [("depth", '{"place": "Mariana"}'), ("now", "{}")]),
    ),
    (
        "v3.2", {"thinking": True}, f"Hm.</think>Look.{dsml('function_calls')}{END}",
        ("Hm.", "Look.", DSML_CALLS),
    ),
    ("v4", {"thinking": False}, f"\n\nLook.{dsml('tool_calls')}{END}", ("", "Look.", DSML_CALLS)),
    # The calls end the reasoning, where the model forgets to.
    ("v4", {"thinking": True}, f"Hm.{dsml('tool_calls')}{END}", ("Hm.", "", DSML_CALLS)),
    ("v4", {"thinking": True}, "Hm, and so", ("Hm, and so", "", [])),
]  # fmt: skip

PIECES = (
    "a", "深", "🙂", "\n", "\n\n", " ", '"', "\\", "<", "</", "```", "```json\n", "\n```", "{", "}",
    "<think>", "</think>", "</thi", END, "<｜end▁of", CALLS, END_CALLS, CALL, END_CALL, SEP,
    "function", "name", "<｜tool▁", DSML, "｜DSML", f"<{DSML}tool_calls>\n", f"</{DSML}tool_calls>",
    f"<{DSML}function_calls>", f'<{DSML}invoke name="f">\n', f"</{DSML}invoke>\n", "<｜User｜>",
    f'<{DSML}parameter name="x" string="true">', f'<{DSML}parameter name="n" string="false">',
    f"</{DSML}parameter>\n", '">', '" string="', "true", "<｜Assistant｜>",
)  # fmt: skip


def wild(rng: random.Random) -> str:
    """Marks and parts of marks in any order."""
    return "".join(rng.choice(PIECES) for _ in range(rng.randint(1, 16)))


def random_cut(rng: random.Random, sequence):
    """Cut a text or a list into pieces, some of them empty."""
    places = sorted(rng.randint(0, len(sequence)) for _ in range(rng.randint(0, 12)))
    ends = [0, *places, len(sequence)]
    return [sequence[start:stop] for start, stop in pairwise(ends)]


def parser_for(chat: ChatFormat, options: dict) -> AnswerParser:
    prompt = chat.encode([{"role": "user", "content": "?"}], **options)
    return chat.parser(prompt, call_id="call {}".format)


def parse(parser: AnswerParser, pieces) -> dict:
    """Push pieces; the deltas and the message have to agree."""
    deltas = [delta for piece in pieces for delta in parser.push(piece)] + parser.finish()
    message = parser.message()
    text = {kind: "".join(d.text for d in deltas if d.kind == kind) for kind in ("content",)}
    assert (message["content"] or "") == text["content"]
    return message | {"complete": parser.complete}


def parts_of(message: dict) -> tuple:
    calls = [call["function"] for call in message.get("tool_calls") or ()]
    return (
        message.get("reasoning_content") or "",
        message.get("content") or "",
        [(call["name"], call["arguments"]) for call in calls],
    )
