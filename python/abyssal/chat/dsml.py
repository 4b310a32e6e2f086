"""V3.2 and V4: tool calls as DSML, results as text.

    <begin>system<User>question<Assistant><think>thought</think>answer<end>

A call is written with a parameter for each argument:

    <｜DSML｜invoke name="add">
    <｜DSML｜parameter name="left" string="false">1</｜DSML｜parameter>
    </｜DSML｜invoke>

V3.2 keeps the thoughts after the last user's message, and puts results after the call's turn; V4
has no tool role (results stand in a user's turn), and drops earlier thoughts unless tools are
offered. Only ``｜DSML｜`` is a token: ``<tool_result>`` is text that a result could write too.

Source: ``encoding/encoding_dsv32.py`` of DeepSeek-V3.2 and ``encoding/encoding_dsv4.py`` of
DeepSeek-V4; for V4 DeepSeek's ``deepseek-recipe`` 0.2.0, which goes further (system messages are
joined at the front, levels of effort) and with which this agrees.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from abyssal.chat.messages import Call, Conversation, Message, read_arguments, to_json
from abyssal.chat.prompt import Prompt
from abyssal.chat.spelling import ASSISTANT, BEGIN, DSML, END, END_THINK, REMINDER, THINK, USER

_HARD = """\
Reasoning Effort: Absolute maximum with no shortcuts permitted.
You MUST be very thorough in your thinking and comprehensively decompose the problem to resolve \
the root cause, rigorously stress-testing your logic against all potential paths, edge cases, and \
adversarial scenarios.
Explicitly write out your entire deliberation process, documenting every intermediate step, \
considered alternative, and rejected hypothesis to ensure absolutely no assumption is left \
unchecked.

"""
_HARDEST = """\
Reasoning Effort: Beyond maximum — exhaustive, relentless, and uncompromising.
You MUST reason with the utmost depth and rigor, leaving absolutely nothing to chance: \
exhaustively decompose the problem into its most fundamental components, trace every causal chain \
to its root, and resolve the underlying cause rather than any surface symptom.
Do not stop reasoning until you have independently verified the solution from multiple angles and \
are certain that no assumption remains unchecked and no error remains undiscovered.

"""
#: V4's levels of effort, and what each writes before the conversation.
EFFORTS = {"low": "", "high": _HARD, "xhigh": _HARD, "max": _HARDEST}

_EXAMPLE = f"""\
<{DSML}BLOCK>
<{DSML}invoke name="$NAME">
<{DSML}parameter name="$PARAMETER_NAME" string="true|false">$PARAMETER_VALUE</{DSML}parameter>
...
</{DSML}invoke>
<{DSML}invoke name="$NAME2">
...
</{DSML}invoke>
</{DSML}BLOCK>
"""
_V32_EXAMPLE = _EXAMPLE.replace("BLOCK", "function_calls").replace("$NAME", "$FUNCTION_NAME")
_V4_EXAMPLE = _EXAMPLE.replace("BLOCK", "tool_calls").replace("$NAME", "$TOOL_NAME")

_V32_TOOLS = (
    "\n\n## Tools\n\nYou have access to a set of tools you can use to answer the user's question.\n"
    f'You can invoke functions by writing a "<{DSML}function_calls>" block like the following as '
    f"part of your reply to the user:\n{_V32_EXAMPLE}\n"
    "String and scalar parameters should be specified as is without any escaping or quotes, while "
    'lists and objects should use JSON format. The "string" attribute should be set to "true" for '
    'string type parameters and "false" for other types (numbers, booleans, arrays, objects).\n\n'
    "If the thinking_mode is enabled, then after function results you should strongly consider "
    "outputting a thinking block. Here is an example:\n\n"
    f"<{DSML}function_calls>\n...\n</{DSML}function_calls>\n\n"
    "<function_results>\n...\n</function_results>\n\n"
    f"{THINK}...thinking about results{END_THINK}\n\n"
    "Here are the functions available in JSONSchema format:\n<functions>\n"
)
_V4_TOOLS = (
    "\n\n## Tools\n\nYou have access to a set of tools to help answer the user's question. You can "
    f'invoke tools by writing a "<{DSML}tool_calls>" block like the following:\n\n{_V4_EXAMPLE}\n'
    'String parameters should be specified as is and set `string="true"`. For all other types '
    "(numbers, booleans, arrays, objects), pass the value in JSON format and set "
    '`string="false"`.\n\n'
    f"If thinking_mode is enabled (triggered by {THINK}), you MUST output your complete reasoning "
    f"inside {THINK}...{END_THINK} BEFORE any tool calls or final response.\n\n"
    f"Otherwise, output directly after {END_THINK} with tool calls or final response.\n\n"
    "### Available Tool Schemas\n\n"
)


def write_v32(prompt: Prompt, talk: Conversation) -> None:
    """Write a conversation in V3.2's format."""
    prompt.template(BEGIN)
    messages = talk.messages
    if talk.tools and messages[0].role != "system":
        messages = (Message("system", ""), *messages)
    question = _last(messages, "user")
    due = 0  # results that have not come yet
    for place, message in enumerate(messages):
        thinks = talk.thinking and place > question
        if message.role == "system":
            prompt.content(message.content)
            if place == 0 and talk.tools:
                _define_v32(prompt, talk)
        elif message.role == "user":
            prompt.template(USER)
            prompt.content(message.content)
            if place + 1 < len(messages) or talk.opened:
                thinks = talk.thinking and place == question
                prompt.template(ASSISTANT + (THINK if thinks else END_THINK))
        elif message.role == "tool":
            prompt.template("\n\n<function_results>\n<result>" if due == 0 else "\n<result>")
            due = due or len(messages[place - 1].calls)
            prompt.content(message.content)
            prompt.template("</result>")
            due -= 1
            if due == 0:
                prompt.template("\n</function_results>")
                if place + 1 < len(messages) or talk.opened:
                    prompt.template("\n\n" + (THINK if thinks else END_THINK))
        else:
            if thinks:
                prompt.content(message.reasoning)
                prompt.template(END_THINK)
            prompt.content(message.content)
            _write_calls(prompt, message.calls, "function_calls", empty="\n")
            prompt.template(END)
    if talk.opened and messages[-1].role in ("assistant", "system"):
        prompt.template(ASSISTANT + (THINK if talk.thinking else END_THINK))


def write_v4(prompt: Prompt, talk: Conversation) -> None:
    """Write a conversation in V4's format."""
    prompt.template(BEGIN)
    if talk.thinking:
        prompt.template(EFFORTS[talk.effort or "high"])
    system = [each.content for each in talk.messages if each.role == "system"]
    prompt.content("\n\n".join(filter(None, system)))
    if talk.tools:
        prompt.template(_V4_TOOLS)
        # A definition is its name, its description and its parameters, whatever else it has.
        prompt.content("\n".join(to_json(_definition(tool)) for tool in talk.tools))
        prompt.template(
            "\n\nYou MUST strictly follow the above defined tool name and parameter schemas to "
            "invoke tool calls.\n"
        )
    messages = _merged([each for each in talk.messages if each.role != "system"])
    question = max(_last(messages, "user"), _last(messages, "tool"))
    for place, message in enumerate(messages):
        if message.role in ("user", "tool"):
            goes_on = place > 0 and messages[place - 1].role in ("user", "tool")
            prompt.template("\n\n" if goes_on else USER)
            prompt.template("<tool_result>" if message.role == "tool" else "")
            prompt.content(message.content)
            prompt.template("</tool_result>" if message.role == "tool" else "")
        elif message.role == "latest_reminder":
            prompt.template(REMINDER)
            prompt.content(message.content)
        else:
            keeps = talk.thinking and (bool(talk.tools) or place > question)
            _write_v4_answer(prompt, message, keeps=keeps)
    if talk.opened and not (messages and messages[-1].prefix):
        prompt.template(ASSISTANT + (THINK if talk.thinking else END_THINK))


def _merged(messages: Sequence[Message]) -> list[Message]:
    """Make one message of a user's messages in a row."""
    merged: list[Message] = []
    for message in messages:
        if message.role == "user" and merged and merged[-1].role == "user":
            texts = filter(None, (merged[-1].content, message.content))
            merged[-1] = Message("user", "\n\n".join(texts))
        else:
            merged.append(message)
    return merged


def _write_v4_answer(prompt: Prompt, message: Message, *, keeps: bool) -> None:
    prompt.template(ASSISTANT + (THINK if keeps else ""))
    prompt.content(message.reasoning if keeps else "")
    if message.prefix and keeps and not message.content:
        return  # the thought itself is to be continued
    prompt.template(END_THINK)
    prompt.content(message.content)
    _write_calls(prompt, message.calls, "tool_calls", empty="")
    prompt.template("" if message.prefix else END)


def _write_calls(prompt: Prompt, calls: Sequence[Call], block: str, *, empty: str) -> None:
    """Write tool calls; ``empty`` stands where there are no parameters."""
    if not calls:
        return
    prompt.template(f"\n\n<{DSML}{block}>\n")
    for call in calls:
        prompt.template(f'<{DSML}invoke name="')
        prompt.content(call.name)
        prompt.template('">\n')
        parameters = read_arguments(call.arguments)
        for name, value in parameters.items():
            prompt.template(f'<{DSML}parameter name="')
            prompt.content(name)
            is_text = isinstance(value, str)
            prompt.template(f'" string="{"true" if is_text else "false"}">')
            prompt.content(value if is_text else to_json(value))
            prompt.template(f"</{DSML}parameter>\n")
        prompt.template(("" if parameters else empty) + f"</{DSML}invoke>\n")
    prompt.template(f"</{DSML}{block}>")


def _define_v32(prompt: Prompt, talk: Conversation) -> None:
    prompt.template(_V32_TOOLS)
    prompt.content("\n".join(map(to_json, talk.tools)))
    prompt.template("\n</functions>\n")


def _definition(tool: Any) -> dict[str, Any]:  # noqa: ANN401 - a mapping
    return {
        "name": tool["name"],
        "description": tool.get("description") or "",
        "parameters": tool.get("parameters") or {},
    }


def _last(messages: Sequence[Message], role: str) -> int:
    """Return the place of the last message of a role; -1 when there is none."""
    places = [place for place, message in enumerate(messages) if message.role == role]
    return places[-1] if places else -1
