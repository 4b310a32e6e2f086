"""What a caller can get wrong, and the error that says in which message."""

from __future__ import annotations

import pytest

from abyssal.chat import ChatFormat
from abyssal.chat.format import KINDS
from abyssal.errors import RequestError

USER = {"role": "user", "content": "q"}


def call(name="f", call_id="a", **function):
    return {"id": call_id, "type": "function", "function": {"name": name, **function}}


def calls(*several):
    return {"role": "assistant", "content": None, "tool_calls": list(several)}


def result(call_id="a", content="r"):
    return {"role": "tool", "tool_call_id": call_id, "content": content}


BAD = [
    ([], "at least one dictionary"),
    ("hello", "messages must be a list"),
    (None, "messages must be a list"),
    ([USER, "hello"], "message 1 must be a dictionary"),
    ([USER, {"content": "a"}], "message 1 must be a dictionary with 'role'"),
    ([USER, {"role": "robot", "content": "a"}], "message 1 has the role 'robot', expected system"),
    ([USER, {"role": "User", "content": "a"}], "message 1 has the role 'User'"),
    ([USER, {"role": ["user"], "content": "a"}], "message 1 has the role ['user']"),
    ([{"role": "user", "content": 5}], "the content of message 0 must be a text, got int"),
    ([{"role": "user", "content": {"a": 1}}], "the content of message 0 must be a text, got dict"),
    ([{"role": "user", "content": None}], "the content of message 0 must be a text, got None"),
    ([{"role": "user"}], "the content of message 0 must be a text, got None"),
    ([USER, {"role": "user", "content": ["a"]}], "message 1: part 0 is 'str', expected a text"),
    (
        [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "image_url"}]}],
        "the content of message 0: part 1 is 'image_url', expected a text part",
    ),
    ([{"role": "user", "content": [{"type": "text", "text": 1}]}], "part 0 is 'text', expected"),
    ([USER, {"role": "assistant", "content": None}], "message 1, an assistant's, needs content"),
    (
        [USER, {"role": "assistant", "content": "a", "reasoning_content": 1}],
        "the reasoning_content of message 1 must be a text, got int",
    ),
    ([USER, {"role": "assistant", "content": "a", "reasoning": 1}], "of message 1 must be a text"),
    ([USER | {"tool_calls": [call()]}], "message 0 has tool_calls, which only an assistant's may"),
    ([USER | {"prefix": True}], "message 0 has prefix, which only an assistant's may have"),
    ([USER, calls({"type": "function"})], "message 1: tool call 0 has no function name"),
    ([USER, calls(call(), call(name=""))], "message 1: tool call 1 has no function name"),
    ([USER, calls({"function": {"arguments": "{}"}})], "message 1: tool call 0 has no function"),
    ([USER, calls("f")], "message 1: tool call 0 has no function name"),
    ([USER, calls() | {"tool_calls": "f"}], "message 1: tool_calls must be a list, got str"),
    ([USER, calls(call(arguments=[1]))], "tool call 0: arguments must be JSON text, got list"),
    ([USER, calls(call(arguments={"a": {1}}))], "tool call 0: arguments cannot be written as JSON"),
    ([USER, calls(call(call_id=7))], "message 1: tool call 0: id must be a text, got int"),
    ([USER, result()], "message 1 is a tool result, but message 0 calls none"),
    ([result(), USER], "message 0 is a tool result, but no message calls a tool before it"),
    (
        [USER, calls(call()), result(), result("b")],
        "message 1 has 1 tool calls, but 2 tool results",
    ),
    ([USER, calls(call(), call(call_id="b")), result(), USER], "message 1 has 2 tool calls, but"),
    ([USER, calls(call()), USER], "message 1 has 1 tool calls, but 0 tool results follow it"),
    ([USER, calls(call())], "message 1 has 1 tool calls, but 0 tool results follow it"),
    ([USER, calls(call()), result("z")], "message 2 has the tool_call_id 'z', but the calls of"),
    (
        [USER, calls(call(), call(call_id="b")), result("a"), result("a")],
        "message 3 repeats tool_call_id 'a'",
    ),
    ([USER, calls(call()), result(7)], "message 2: tool_call_id must be a text, got int"),
    (
        [USER, {"role": "user", "content": "ab\ud800c"}],
        "the content of message 1 holds a lone surrogate, U+D800, at position 2",
    ),
    (
        [USER, {"role": "assistant", "content": "", "reasoning_content": "\udfff"}],
        "the reasoning_content of message 1 holds a lone surrogate, U+DFFF, at position 0",
    ),
    ([USER, calls(call(name="\ud83d"))], "message 1: tool call 0: the function name holds a lone"),
    ([USER, calls(call(arguments="\ud83d"))], "message 1: tool call 0: arguments holds a lone"),
]


@pytest.mark.parametrize(("messages", "message"), BAD, ids=range(len(BAD)))
def test_bad_messages_are_refused_with_their_place(messages, message, tokenizer) -> None:
    for name in KINDS:
        with pytest.raises(RequestError) as caught:
            ChatFormat(name, tokenizer).encode(messages)
        assert message in str(caught.value), name


@pytest.mark.parametrize(
    ("tools", "message"),
    [
        ("f", "tools must be a list, got str"),
        ([{"type": "function"}], "tool 0 must be a dictionary with 'function'"),
        ([call(), call(name=None)], "tool 1 has no function name"),
        ([call(description=5)], "tool 0: its description must be a text"),
        ([call(parameters={"a": object()})], "tool 0 cannot be written as JSON"),
        ([call(description="\ud800")], "tool 0 holds a lone surrogate"),
    ],
)
def test_bad_tools_are_refused_with_their_place(tools, message, tokenizer) -> None:
    for name in KINDS:
        with pytest.raises(RequestError) as caught:
            ChatFormat(name, tokenizer).encode([USER], tools=tools)
        assert message in str(caught.value), name


def test_a_surrogate_that_json_escapes_in_arguments_is_refused_too(tokenizer) -> None:
    talk = [USER, calls(call(arguments='{"a": "\\ud800", "b\\udc00": 1}')), result()]
    for name in ("v3.2", "v4"):
        with pytest.raises(RequestError, match=r"message 1: tool call 0: arguments.*U\+D800"):
            ChatFormat(name, tokenizer).encode(talk)
    # Where arguments are written as they came, the escape is only letters.
    assert ChatFormat("v3.1", tokenizer).encode(talk)


def test_only_the_last_message_can_be_continued_and_only_in_v4(tokenizer) -> None:
    answer = {"role": "assistant", "content": "One,", "prefix": True}
    with pytest.raises(RequestError, match="message 1 has prefix: only format v4"):
        ChatFormat("v3.1", tokenizer).encode([USER, answer])
    with pytest.raises(RequestError, match="message 1 has prefix"):
        ChatFormat("v4", tokenizer).encode([USER, answer, USER])


def test_unknown_options_are_refused_and_enable_thinking_is_known(tokenizer) -> None:
    chat = ChatFormat("v3.1", tokenizer)
    with pytest.raises(RequestError, match=r"chat format v3\.1 has no option 'color'; there"):
        chat.encode([USER], color="red")
    assert chat.encode([USER], enable_thinking=True) == chat.encode([USER], thinking=True)


def test_a_reminder_is_a_role_of_v4_alone(tokenizer) -> None:
    talk = [USER, {"role": "latest_reminder", "content": "r"}]
    assert "<｜latest_reminder｜>r" in ChatFormat("v4", tokenizer).render(talk)
    with pytest.raises(RequestError, match="message 1 has the role 'latest_reminder'"):
        ChatFormat("v3.2", tokenizer).encode(talk)
