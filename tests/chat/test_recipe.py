"""V4 against DeepSeek's own encoder and stream parser, where they are installed."""

from __future__ import annotations

import json
import random
import re

import pytest

from abyssal.chat import AnswerParser, ChatFormat

from .talks import Talk, filled

recipe = pytest.importorskip("deepseek_recipe")
DSML = "｜DSML｜"
GROUNDING = re.compile("holder|polygon|point|box|ref")
EFFORTS = (None, "low", "high", "xhigh", "max")


def conversation(messages, tools, thinking, effort):
    body = {"model": "DeepSeek-V4-Pro", "messages": messages}
    body["thinking"] = {"type": "enabled" if thinking else "disabled"}
    body |= {"tools": tools} if tools else {}
    body |= {"reasoning_effort": effort} if effort else {}
    return recipe.ChatCompletionRequest(body).convert(recipe.ConversionOptions()).conversation


@pytest.mark.parametrize("thinking", [True, False])
def test_v4_has_the_ids_of_the_published_encoder(
    thinking, tokenizer, tokenizer_folder, seed, full_profile
) -> None:
    rng = random.Random(seed)
    published = recipe.DeepseekV4Encoding().with_tokenizer(
        recipe.Tokenizer.from_file(str(tokenizer_folder / "tokenizer.json"))
    )
    chat = ChatFormat("v4", tokenizer)
    # In an assistant's text the published encoder lets pairs of grounding tokens (boxes, points)
    # be tokens again; here no text is.
    tokens = [token for token in tokenizer.added_tokens if not GROUNDING.search(token)]
    for _ in range(5_000 if full_profile else 500):
        talk = Talk(rng, tools=True)
        texts = talk.texts(rng, tokens) | talk.simple_names()
        # Empty texts are joined in ways of their own.
        texts |= {place: "" for place in texts if rng.random() < 0.05 and place not in talk.plain}
        messages, tools = filled(talk.messages, texts), filled(talk.tools, texts)
        if rng.random() < 0.3:
            messages.insert(0, {"role": "user", "content": rng.choice(("", "before"))})
        effort = rng.choice(EFFORTS)
        wanted = published.encode(conversation(messages, tools, thinking, effort))
        options = {"thinking": thinking, "reasoning_effort": effort}
        assert chat.encode(messages, tools=tools, **options) == wanted


def published_parts(text: str, *, thinking: bool) -> tuple:
    """Parse an answer with the published stream parser."""
    request = recipe.ConversationRequest(
        recipe.Conversation([recipe.UserMessage("x")]), recipe.ModelVersion.DeepseekV4Pro
    )
    stage = recipe.ThinkingInitialStage.ReasoningStart if thinking else None
    processor = recipe.StreamProcessor(
        recipe.ChatCompletionRequest.chunk_generator(request, "id", "model"),
        recipe.ParsingOptions(parse_tool_calls=True, thinking_initial_stage=stage),
    )
    response = recipe.ChatCompletionResponse("id", "model", 0, 0, 0)
    chunks = processor.push(recipe.InferenceChunk.ready())
    chunks += processor.push(recipe.InferenceChunk.text(text, 1))
    chunks += processor.push(recipe.InferenceChunk.finish(recipe.InferenceFinishReason.Stop))
    for chunk in chunks + processor.finish():
        response.accumulate(chunk)
    return parts_of(json.loads(response.to_json())["choices"][0]["message"])


def parts_of(message: dict) -> tuple:
    calls = [call["function"] for call in message.get("tool_calls") or ()]
    return (
        message.get("reasoning_content") or "",
        message.get("content") or "",
        [(call["name"], call["arguments"]) for call in calls],
    )


def answer(rng: random.Random, *, thinking: bool) -> str:
    """An answer as a model writes it, with the newlines that models add."""
    text = rng.choice(("", "\n\n", "why", "why\n", "w <b>\n\nw\n")) + "</think>" if thinking else ""
    text += rng.choice(("", "\n\n", "ans", "\n\nans\n", "a\n\nb", "x < y", " \n x"))
    if rng.random() < 0.7:
        text += rng.choice(("", "\n\n", "\n")) + f"<{DSML}tool_calls>\n"
        for _ in range(rng.randint(1, 3)):
            text += f'<{DSML}invoke name="{rng.choice("fg")}">\n'
            for place in range(rng.randint(0, 3)):
                value, kind = rng.choice(
                    (
                        ("v", "true"), ("a<b", "true"), ('"\\\n', "true"), ("", "true"),
                        ("深", "true"), ("1", "false"), ('[1, {"z": null}]', "false"),
                    )
                )  # fmt: skip
                text += f'<{DSML}parameter name="k{place}" string="{kind}">{value}'
                text += f"</{DSML}parameter>\n"
            text += f"</{DSML}invoke>\n"
        text += f"</{DSML}tool_calls>" + rng.choice(("", "\n", "after"))
    return text


@pytest.mark.parametrize("thinking", [True, False])
def test_v4_answers_come_apart_as_in_the_published_parser(thinking, seed, full_profile) -> None:
    rng = random.Random(seed)
    for _ in range(20_000 if full_profile else 2_000):
        text = answer(rng, thinking=thinking)
        parser = AnswerParser("tool_calls", begins="reasoning" if thinking else "content")
        parser.push(text)
        parser.finish()
        assert parts_of(parser.message()) == published_parts(text, thinking=thinking), text
