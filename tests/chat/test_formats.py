"""Each format against what its own published template or encoder renders."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from abyssal.chat import ChatFormat
from abyssal.chat.format import KINDS
from abyssal.errors import RequestError

FIXTURES = Path(__file__).parent / "fixtures"
BEGIN, END = "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>"
CALLS, END_CALLS = "<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>"
CALL, END_CALL, SEP = "<｜tool▁call▁begin｜>", "<｜tool▁call▁end｜>", "<｜tool▁sep｜>"
QUESTION = [{"role": "user", "content": "How deep?"}]
TOOL = {"name": "depth", "description": "Depth of a trench", "parameters": {"type": "object"}}
TOOLS = [{"type": "function", "function": TOOL}]


def cases():
    for name in KINDS:
        published = json.loads((FIXTURES / f"{name}.json").read_text("utf-8"))
        for place, case in enumerate(published["cases"]):
            yield pytest.param(name, case, id=f"{name}-{place}-{case['about']}")


@pytest.mark.parametrize(("name", "case"), list(cases()))
def test_a_conversation_is_written_as_the_published_template_does(name, case, tokenizer) -> None:
    chat = ChatFormat(name, tokenizer)
    options = case.get("options", {})
    assert chat.render(case["messages"], **options) == case["text"]
    assert chat.encode(case["messages"], **options) == tokenizer.encode(case["text"])


def test_v31_defines_tools_as_its_model_card_says(tokenizer) -> None:
    system = [{"role": "system", "content": "Be brief."}, *QUESTION]
    assert ChatFormat("v3.1", tokenizer).render(system, tools=TOOLS) == (
        f"{BEGIN}Be brief.\n\n## Tools\nYou have access to the following tools:\n\n"
        "### depth\nDescription: Depth of a trench\n\n"
        'Parameters: {"type": "object"}\n\n'
        "IMPORTANT: ALWAYS adhere to this exact format for tool use:\n"
        f"{CALLS}{CALL}tool_call_name{SEP}tool_call_arguments{END_CALL}"
        f"{{additional_tool_calls}}{END_CALLS}\n\nWhere:\n"
        "- `tool_call_name` must be an exact match to one of the available tools\n"
        "- `tool_call_arguments` must be valid JSON that strictly follows the tool's Parameters "
        "Schema\n- For multiple tool calls, chain them directly without separators or spaces"
        "<｜User｜>How deep?<｜Assistant｜></think>"
    )


@pytest.mark.parametrize("name", ["v3", "r1", "r1-0528"])
def test_v3_and_r1_define_tools_between_system_text_and_first_turn(name, tokenizer) -> None:
    chat = ChatFormat(name, tokenizer)
    text = chat.render(QUESTION, tools=TOOLS)
    bare = chat.render(QUESTION)
    turns = bare.removeprefix(BEGIN)
    assert text.startswith(BEGIN)
    assert text.endswith(turns)
    block = text.removeprefix(BEGIN).removesuffix(turns)
    assert json.dumps(TOOLS[0]) in block
    assert f"{CALL}function{SEP}" in block
    # What the definition shows of the format is the format: its tokens are control tokens.
    ids = chat.encode(QUESTION, tools=TOOLS)
    assert ids.count(tokenizer.token_to_id(CALL)) == 1


def test_thinking_is_a_choice_only_where_the_model_has_one(tokenizer) -> None:
    for name, thinks in (("v3", True), ("r1", False), ("r1-0528", False)):
        with pytest.raises(RequestError, match=f"chat format {name} (never|always) thinks"):
            ChatFormat(name, tokenizer).encode(QUESTION, thinking=thinks)
    for name in ("v3.1", "v3.2", "v4"):
        chat = ChatFormat(name, tokenizer)
        assert chat.render(QUESTION, thinking=True).endswith("<｜Assistant｜><think>")
        assert chat.render(QUESTION, thinking=False).endswith("<｜Assistant｜></think>")
        default = "<think>" if name == "v4" else "</think>"
        assert chat.render(QUESTION).endswith(f"<｜Assistant｜>{default}")
        with pytest.raises(RequestError, match="thinking is 'yes', allowed are True, False"):
            chat.encode(QUESTION, thinking="yes")


def test_without_a_generation_prompt_no_turn_is_opened(tokenizer) -> None:
    for name in KINDS:
        chat = ChatFormat(name, tokenizer)
        text = chat.render(QUESTION, add_generation_prompt=False)
        assert text.endswith("<｜User｜>How deep?"), name
        talk = [*QUESTION, {"role": "assistant", "content": "Very."}]
        assert chat.render(talk, add_generation_prompt=False).endswith(f"Very.{END}"), name
        # An answer can be asked for after an answer, too.
        assert "<｜Assistant｜>" in chat.render(talk).rpartition(END)[2], name


def test_efforts_are_words_of_v4_alone(tokenizer) -> None:
    with pytest.raises(RequestError, match="'medium', allowed are low, high, xhigh, max"):
        ChatFormat("v4", tokenizer).encode(QUESTION, reasoning_effort="medium")
    with pytest.raises(RequestError, match="reasoning_effort is 'high', allowed are none"):
        ChatFormat("v3.1", tokenizer).encode(QUESTION, reasoning_effort="high")


def test_an_unknown_format_is_named_with_those_there_are(tokenizer) -> None:
    with pytest.raises(RequestError, match="unknown chat format 'v5', known are v3, r1, r1-0528"):
        ChatFormat("v5", tokenizer)
    with pytest.raises(RequestError, match="not known by the tokenizer: name one of v3"):
        ChatFormat.for_tokenizer(tokenizer)
    assert ChatFormat.for_tokenizer(tokenizer, "v4").name == "v4"


def test_results_are_put_in_the_order_of_their_calls(tokenizer) -> None:
    calls = [
        {"id": each, "type": "function", "function": {"name": each, "arguments": "{}"}}
        for each in "ab"
    ]
    results = [{"role": "tool", "tool_call_id": each, "content": f"of {each}"} for each in "ab"]
    talk = [*QUESTION, {"role": "assistant", "content": None, "tool_calls": calls}]
    for name in KINDS:
        chat = ChatFormat(name, tokenizer)
        assert chat.encode([*talk, *results]) == chat.encode([*talk, *results[::-1]]), name


def test_contents_may_come_in_parts_and_arguments_as_objects(tokenizer) -> None:
    function = {"name": "f", "arguments": {"x": [1, "é"]}}
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    for name in KINDS:
        chat = ChatFormat(name, tokenizer)
        joined = "a\n\nb" if name == "v4" else "a\nb"
        talk = [
            {"role": "user", "content": parts},
            {"role": "assistant", "content": "", "tool_calls": [{"function": function}]},
            {"role": "tool", "content": parts},
        ]
        same = [
            {"role": "user", "content": joined},
            {
                "role": "assistant",
                "content": None,
                "tool_calls": [{"function": {"name": "f", "arguments": '{"x": [1, "é"]}'}}],
            },
            {"role": "tool", "content": joined},
        ]
        assert chat.encode(talk) == chat.encode(same), name


def test_arguments_that_are_no_object_are_one_argument(tokenizer) -> None:
    for arguments in ("not json", "[1]", "NaN", '{"a": NaN}', "[" * 100_000):
        call = {"function": {"name": "f", "arguments": arguments}}
        talk = [
            *QUESTION,
            {"role": "assistant", "content": "", "tool_calls": [call]},
            {"role": "tool", "content": "r"},
        ]
        for name in ("v3.2", "v4"):
            text = ChatFormat(name, tokenizer).render(talk)
            assert f'name="arguments" string="true">{arguments}</｜DSML｜parameter>' in text
