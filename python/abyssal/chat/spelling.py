"""The control tokens of the DeepSeek chat formats, as the tokenizer files spell them.

Only spellings are written down here; ids are looked up in the tokenizer's own file.
"""

# ruff: noqa: RUF001 - the wide bars are part of the names

from __future__ import annotations

BEGIN = "<｜begin▁of▁sentence｜>"
END = "<｜end▁of▁sentence｜>"
USER = "<｜User｜>"
ASSISTANT = "<｜Assistant｜>"
REMINDER = "<｜latest_reminder｜>"
THINK = "<think>"
END_THINK = "</think>"

CALLS = "<｜tool▁calls▁begin｜>"
END_CALLS = "<｜tool▁calls▁end｜>"
CALL = "<｜tool▁call▁begin｜>"
END_CALL = "<｜tool▁call▁end｜>"
SEPARATOR = "<｜tool▁sep｜>"
OUTPUTS = "<｜tool▁outputs▁begin｜>"
END_OUTPUTS = "<｜tool▁outputs▁end｜>"
OUTPUT = "<｜tool▁output▁begin｜>"
END_OUTPUT = "<｜tool▁output▁end｜>"

DSML = "｜DSML｜"

#: Every token that a template may place.
CONTROLS = (
    BEGIN, END, USER, ASSISTANT, REMINDER, THINK, END_THINK, CALLS, END_CALLS, CALL, END_CALL,
    SEPARATOR, OUTPUTS, END_OUTPUTS, OUTPUT, END_OUTPUT, DSML,
)  # fmt: skip

#: What a tokenizer must have, or a conversation could not be told from its text.
REQUIRED = (USER, ASSISTANT)
