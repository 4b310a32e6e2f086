"""Answers come apart into reasoning, content and tool calls, however they are cut."""

from __future__ import annotations

import json
import random
import time
from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from abyssal.chat import AnswerParser, ChatFormat, Delta, to_message
from abyssal.chat.format import KINDS
from abyssal.errors import RequestError

from .answers import DSML, PIECES, SAMPLES, parse, parser_for, parts_of, random_cut, wild
from .talks import Talk, filled

STYLES = ("fenced", "plain", "function_calls", "tool_calls", None)
NAMES = [f"{name}-{place}" for place, (name, *_) in enumerate(SAMPLES)]


@pytest.mark.parametrize(("name", "options", "text", "wanted"), SAMPLES, ids=NAMES)
def test_an_answer_comes_apart(name, options, text, wanted, tokenizer) -> None:
    chat = ChatFormat(name, tokenizer)
    message = parse(parser_for(chat, options), [text])
    assert parts_of(message) == wanted
    assert message["complete"] == text.endswith("<｜end▁of▁sentence｜>")
    for call in message.get("tool_calls", ()):
        json.loads(call["function"]["arguments"])


@pytest.mark.parametrize(("name", "options", "text", "wanted"), SAMPLES, ids=NAMES)
def test_every_cut_gives_the_same(
    name, options, text, wanted, tokenizer, seed, full_profile
) -> None:
    """Into characters, at every place, at every pair of places (or a sample), at random ones."""
    chat = ChatFormat(name, tokenizer)
    whole = parse(parser_for(chat, options), [text])
    assert parse(parser_for(chat, options), list(text)) == whole
    places = range(len(text) + 1)
    rng = random.Random(seed)
    pairs = list(combinations(places, 2))
    if not full_profile:
        pairs = rng.sample(pairs, min(len(pairs), 1_000))
    for first, second in [(place, place) for place in places] + pairs:
        cut = [text[:first], text[first:second], text[second:]]
        assert parse(parser_for(chat, options), cut) == whole, cut
    for _ in range(3_000 if full_profile else 300):
        cut = random_cut(rng, text)
        assert parse(parser_for(chat, options), cut) == whole, cut


@pytest.mark.parametrize("style", STYLES)
def test_every_one_of_all_cuts_of_short_answers_gives_the_same(style) -> None:
    """Exhaustive: a text of n characters has 2 ** (n - 1) cuts."""
    for text in ("\na</think>", "<think>\nb", "x</think>y", "\n```json\n"):
        for begins in ("reasoning", "content", "either"):
            results = set()
            for bits in range(2 ** (len(text) - 1)):
                pieces, start = [], 0
                for place in range(1, len(text)):
                    if bits >> (place - 1) & 1:
                        pieces.append(text[start:place])
                        start = place
                parser = AnswerParser(style, begins=begins, call_id=str)
                results.add(json.dumps(parse(parser, [*pieces, text[start:]])))
            assert len(results) == 1, (text, results)


@given(
    pieces=st.lists(st.sampled_from(PIECES), max_size=20),
    style=st.sampled_from(STYLES),
    begins=st.sampled_from(("reasoning", "content", "either")),
    goes_on=st.booleans(),
    seed=st.integers(0, 2**32),
)
def test_any_text_in_any_cut_gives_the_same_and_never_raises(
    pieces, style, begins, goes_on, seed
) -> None:
    text = "".join(pieces)

    def parsed(cut):
        parser = AnswerParser(style, begins=begins, goes_on=goes_on, call_id=str)
        return parse(parser, cut)

    whole = parsed([text])
    assert parsed(list(text)) == whole
    assert parsed(pieces) == whole
    assert parsed(random_cut(random.Random(seed), text)) == whole


@pytest.mark.parametrize("name", KINDS)
def test_ids_in_any_cut_give_the_same_as_their_text(name, tokenizer, seed, full_profile) -> None:
    rng = random.Random(seed)
    chat = ChatFormat(name, tokenizer)
    options = {} if name in ("v3", "r1", "r1-0528") else {"thinking": True}
    for _ in range(3_000 if full_profile else 300):
        text = wild(rng)
        ids = tokenizer.encode(text)
        whole = parse(parser_for(chat, options), [text])
        assert parse(parser_for(chat, options), [ids]) == whole, text
        assert parse(parser_for(chat, options), ids) == whole, text
        assert parse(parser_for(chat, options), random_cut(rng, ids)) == whole, text


@pytest.mark.parametrize("name", ["v3", "v3.1", "v3.2", "v4"])
def test_what_was_encoded_comes_back_whatever_it_spells(name, tokenizer, seed) -> None:
    """With ids, marks that the model only spells are text."""
    rng = random.Random(seed)
    chat = ChatFormat(name, tokenizer)
    options = {"v3": {}, "v3.1": {"thinking": False}}.get(name, {"thinking": True})
    tokens = [token for token in tokenizer.added_tokens if "holder" not in token]
    compared = 0
    for _ in range(400):
        talk = Talk(rng, tools=True)
        texts = talk.texts(rng, tokens) | talk.simple_names()
        messages = filled(talk.messages, texts)
        if messages[-1]["role"] != "tool":
            continue
        last = max(place for place, each in enumerate(messages) if each["role"] == "assistant")
        prompt = chat.encode(messages[:last], **options)
        full = chat.encode(messages[: last + 1], add_generation_prompt=False, **options)
        assert full[: len(prompt)] == prompt
        parser = chat.parser(prompt)
        parser.push(full[len(prompt) :])
        parser.finish()
        wanted = messages[last]
        reasoning, content, calls = parts_of(parser.message())
        assert content == wanted["content"]
        assert reasoning == (wanted.get("reasoning_content", "") if options.get("thinking") else "")
        assert [(name, json.loads(arguments)) for name, arguments in calls] == [
            (call["function"]["name"], json.loads(call["function"]["arguments"]))
            for call in wanted["tool_calls"]
        ]
        assert parser.complete
        compared += 1
    assert compared > 50


def test_ids_and_text_do_not_mix_and_nothing_follows_the_end(tokenizer) -> None:
    chat = ChatFormat("v4", tokenizer)
    parser = chat.parser()
    parser.push("a")
    with pytest.raises(RequestError, match="either text or token ids"):
        parser.push(5)
    assert [delta.text for delta in parser.finish()] == []
    assert parser.message()["reasoning_content"] == "a"
    assert not parser.complete
    with pytest.raises(RequestError, match="finished"):
        parser.push("b")
    with pytest.raises(RequestError, match="token ids need a tokenizer"):
        AnswerParser("fenced").push(1)


def test_an_id_that_no_token_has_is_left_out(tokenizer) -> None:
    """An embedding may have more rows than the tokenizer names, and the model draws one of them."""
    parser = ChatFormat("v3", tokenizer).parser()
    parser.push([*tokenizer.encode("before"), 10**6, *tokenizer.encode(" after")])
    parser.finish()
    assert parser.message()["content"] == "before after"


def test_where_a_parser_begins_is_read_from_the_prompt(tokenizer) -> None:
    question = [{"role": "user", "content": "<think>"}]
    talk = [*question, {"role": "assistant", "content": "One,", "prefix": True}]
    cases = [
        ("v3", question, {}, ("", "x")),
        ("v3.1", question, {"thinking": True}, ("x", "")),
        ("v4", question, {"thinking": False}, ("", "x")),
        ("v4", talk, {"thinking": False}, ("", "\n\nx")),
        (
            "v4",
            [*question, talk[1] | {"content": "", "reasoning_content": "Nu"}],
            {},
            ("\n\nx", ""),
        ),
    ]
    for name, messages, options, wanted in cases:
        chat = ChatFormat(name, tokenizer)
        parser = chat.parser(chat.encode(messages, **options))
        parser.push("\n\nx")
        parser.finish()
        assert parts_of(parser.message())[:2] == wanted, name


def test_without_tools_their_marks_are_text(tokenizer) -> None:
    text = f"a <{DSML}tool_calls> b"
    parser = ChatFormat("v4", tokenizer).parser(tools=False)
    parser.push("</think>" + text)
    parser.finish()
    assert parser.message()["content"] == text


def test_deltas_have_the_form_of_openais_chunks() -> None:
    parser = AnswerParser("plain", call_id="id-{}".format)
    text = "a<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>f<｜tool▁sep｜>{}<｜tool▁call▁end｜>"
    assert [delta.to_openai() for delta in parser.push(text)] == [
        {"content": "a"},
        {
            "tool_calls": [
                {
                    "index": 0,
                    "id": "id-0",
                    "type": "function",
                    "function": {"name": "f", "arguments": ""},
                }
            ]
        },
        {"tool_calls": [{"index": 0, "function": {"arguments": "{}"}}]},
    ]
    assert Delta("reasoning", "r").to_openai("reasoning") == {"reasoning": "r"}
    assert to_message([Delta("content", "a")]) == {"role": "assistant", "content": "a"}
    assert len({AnswerParser(None)._call_id(0) for _ in range(9)}) == 9


HOSTILE = {
    "beginnings of tags": f"<{DSML}x ",
    "calls": f'<{DSML}invoke name="f">\n</{DSML}invoke>\n',
    "parameters": f'<{DSML}parameter name="k" string="true">v</{DSML}parameter>\n',
    "newlines": "\n" * 8,
    "less-than signs": "<" * 8,
    "fences": "\n```",
    "quotes": '"\\' * 4,
}


@pytest.mark.parametrize("what", HOSTILE)
@pytest.mark.parametrize("step", [None, 7])
def test_time_is_linear_in_the_answer(what, step) -> None:
    def spent(count: int) -> float:
        text = f'<{DSML}tool_calls>\n<{DSML}invoke name="f">\n' + HOSTILE[what] * count
        pieces = [text] if step is None else [text[i : i + step] for i in range(0, len(text), step)]
        best = float("inf")
        for _ in range(3):
            parser = AnswerParser("tool_calls")
            start = time.process_time()
            for piece in pieces:
                parser.push(piece)
            best = min(best, time.process_time() - start)
        return best

    # A linear parser takes four times as long, a quadratic one sixteen.
    assert spent(4_000) <= 8 * spent(1_000)
