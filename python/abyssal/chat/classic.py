"""V3, R1 and V3.1: turns between tokens, tool calls and results in tokens of their own.

    <begin>system<User>question<Assistant>answer<end><User>...

The three differ in how the assistant's turn opens (nothing, ``<think>`` and a newline, ``<think>``
or ``</think>``), in how a call is written (type, name and a fenced block of JSON; or name and
JSON), and in whether results stand in a block of their own. After a tool's result the assistant
goes on without a new opening.

Where the templates that the checkpoints bring give up on a conversation (a result that a user's
message follows leaves its block open; two assistant's messages in a row lose the second's
opening), the turn is written as in every other place.

Source: the ``chat_template`` in ``tokenizer_config.json`` of DeepSeek-V3-0324, DeepSeek-R1,
DeepSeek-R1-0528 and DeepSeek-V3.1; tool definitions: V3.1's model card, and for V3 and R1, whose
templates have none, vLLM's ``examples/tool_chat_template_deepseekv3.jinja`` and ``..._r1.jinja``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from abyssal.chat.messages import Call, Conversation, Message, to_json
from abyssal.chat.prompt import Prompt
from abyssal.chat.spelling import (
    ASSISTANT,
    BEGIN,
    CALL,
    CALLS,
    END,
    END_CALL,
    END_CALLS,
    END_OUTPUT,
    END_OUTPUTS,
    END_THINK,
    OUTPUT,
    OUTPUTS,
    SEPARATOR,
    THINK,
    USER,
)

Tools = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Classic:
    """How one of these formats differs from the others.

    Attributes:
        define: Writes tool definitions.
        fenced: Whether a call is ``function``, separator, name, and JSON in a fenced block; else
            it is name, separator, JSON.
        opens: What follows the assistant's token where an answer is to begin.
        opens_thinking: The same, when thinking is asked for.
        past: What follows the assistant's token in earlier turns.
        output_gap: What stands between two results.
        keep_from: Of a past content with ``</think>``, what is kept: "last" (after the last one),
            "first" (after the first one) or "all".
    """

    define: Callable[[Prompt, Tools], None]
    fenced: bool
    opens: str = ""
    opens_thinking: str = ""
    past: str = ""
    output_gap: str = "\n"
    keep_from: str = "last"


def write_classic(prompt: Prompt, talk: Conversation, style: Classic) -> None:
    """Write a conversation."""
    prompt.template(BEGIN)
    prompt.content("\n\n".join(each.content for each in talk.messages if each.role == "system"))
    if talk.tools:
        style.define(prompt, talk.tools)
    after_tools = False
    for message in talk.messages:
        if message.role == "system":
            continue
        if message.role == "tool":
            _write_output(prompt, message, style, first=not after_tools)
        elif after_tools and style.fenced:
            prompt.template(END_OUTPUTS)
        if message.role == "user":
            prompt.template(USER)
            prompt.content(message.content)
        elif message.role == "assistant":
            _write_answer(prompt, message, style, goes_on=after_tools)
        after_tools = message.role == "tool"
    if after_tools:
        prompt.template(END_OUTPUTS if style.fenced else "")
    elif talk.opened:
        prompt.template(ASSISTANT + (style.opens_thinking if talk.thinking else style.opens))


def _write_answer(prompt: Prompt, message: Message, style: Classic, *, goes_on: bool) -> None:
    if not goes_on:
        prompt.template(ASSISTANT + style.past)
    content = message.content
    if style.keep_from == "last":
        content = content.rpartition(END_THINK)[2]
    elif style.keep_from == "first" and not goes_on and not message.calls:
        content = content.partition(END_THINK)[2] if END_THINK in content else content
    prompt.content(content)
    if message.calls:
        prompt.template(CALLS)
        for index, call in enumerate(message.calls):
            _write_call(prompt, call, style, first=index == 0)
        prompt.template(END_CALLS)
    prompt.template(END)


def _write_call(prompt: Prompt, call: Call, style: Classic, *, first: bool) -> None:
    if style.fenced:
        prompt.template(("" if first else "\n") + CALL + "function" + SEPARATOR)
        prompt.content(call.name)
        prompt.template("\n```json\n")
        prompt.content(call.arguments)
        prompt.template("\n```" + END_CALL)
    else:
        prompt.template(CALL)
        prompt.content(call.name)
        prompt.template(SEPARATOR)
        prompt.content(call.arguments)
        prompt.template(END_CALL)


def _write_output(prompt: Prompt, message: Message, style: Classic, *, first: bool) -> None:
    if style.fenced:
        prompt.template(OUTPUTS if first else style.output_gap)
    prompt.template(OUTPUT)
    prompt.content(message.content)
    prompt.template(END_OUTPUT)


def _define_v3(prompt: Prompt, tools: Tools) -> None:
    prompt.template(
        "\n\n# Tools\n\nYou may call one or more functions to assist with the user query.\n\n"
        "You are provided with function signatures within <tools></tools> XML tags:\n<tools>"
    )
    for tool in tools:
        prompt.content("\n" + to_json({"type": "function", "function": tool}))
    prompt.template(
        f"\n</tools>\n\nFor function call returns, you should first print {CALLS}"
        "For each function call, you should return object like:\n"
        f"{CALL}function{SEPARATOR}<function_name>\n```json\n<function_arguments_in_json_format>"
        f"\n```{END_CALL}At the end of function call returns, you should print {END_CALLS}{END}"
    )


def _define_r1(prompt: Prompt, tools: Tools) -> None:
    prompt.template(
        "\n\nYou are a helpful assistant with tool calling capabilities. "
        "When a tool call is needed, you MUST use the following format to issue the call:\n"
        f"{CALLS}{CALL}function{SEPARATOR}FUNCTION_NAME\n"
        '```json\n{"param1": "value1", "param2": "value2"}\n```'
        f"{END_CALL}{END_CALLS}\n\nMake sure the JSON is valid.## Tools\n\n### Function\n\n"
        "You have the following functions available:\n\n"
    )
    for tool in tools:
        prompt.template("\n```json\n")
        prompt.content(to_json({"type": "function", "function": tool}))
        prompt.template("\n```\n")


def _define_v31(prompt: Prompt, tools: Tools) -> None:
    prompt.template("\n\n## Tools\nYou have access to the following tools:\n\n")
    for tool in tools:
        prompt.template("### ")
        prompt.content(tool["name"])
        prompt.template("\nDescription: ")
        prompt.content(tool.get("description") or "")
        prompt.template("\n\nParameters: ")
        prompt.content(to_json(tool.get("parameters") or {}))
        prompt.template("\n\n")
    prompt.template(
        "IMPORTANT: ALWAYS adhere to this exact format for tool use:\n"
        f"{CALLS}{CALL}tool_call_name{SEPARATOR}tool_call_arguments{END_CALL}"
        f"{{additional_tool_calls}}{END_CALLS}\n\nWhere:\n"
        "- `tool_call_name` must be an exact match to one of the available tools\n"
        "- `tool_call_arguments` must be valid JSON that strictly follows the tool's Parameters "
        "Schema\n- For multiple tool calls, chain them directly without separators or spaces"
    )


V3 = Classic(_define_v3, fenced=True, keep_from="all")
R1 = Classic(_define_r1, fenced=True, opens_thinking=THINK + "\n", output_gap="")
#: The first R1 and R1-0528: the model writes ``<think>`` itself.
R1_SELF = Classic(_define_r1, fenced=True)
V31 = Classic(
    _define_v31,
    fenced=False,
    opens=END_THINK,
    opens_thinking=THINK,
    past=END_THINK,
    keep_from="first",
)
