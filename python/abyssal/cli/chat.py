"""``abyssal chat``: talk with a model in its own chat format, turn by turn."""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any

import typer

from abyssal.cli.options import (
    DtypeOption,
    MaxTokensOption,
    ModelOption,
    SeedOption,
    ThreadsOption,
    open_model,
)

if TYPE_CHECKING:
    from collections.abc import Iterable

    from abyssal import LLM, SamplingParams
    from abyssal.chat import Delta

Message = dict[str, Any]


def chat(
    model: ModelOption = None,
    system: Annotated[
        str | None, typer.Option("--system", metavar="TEXT", help="A message that sets the tone.")
    ] = None,
    max_tokens: MaxTokensOption = 1024,
    temperature: Annotated[
        float | None,
        typer.Option("--temperature", "-t", help="Default: what the checkpoint recommends."),
    ] = None,
    top_p: Annotated[
        float | None, typer.Option("--top-p", help="Default: what the checkpoint recommends.")
    ] = None,
    seed: SeedOption = None,
    thinking: Annotated[
        bool | None,
        typer.Option(
            "--thinking/--no-thinking",
            help="Whether the model thinks first, where it has the choice; default: the format's.",
        ),
    ] = None,
    chat_format: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Chat format; default: found by the checkpoint's files."),
    ] = None,
    dtype: DtypeOption = None,
    threads: ThreadsOption = None,
) -> None:
    """Talk with a model that has a chat format.

    Each line is a message; an empty line or the end of the input ends the talk. Ctrl-C stops an
    answer, and at the prompt the talk. The chat format is the checkpoint's own; a model without
    one continues texts: use generate. What a model thinks goes to standard error.
    """
    from abyssal import SamplingParams

    asked: dict[str, Any] = {"max_tokens": max_tokens, "seed": seed}
    asked |= {"temperature": temperature} if temperature is not None else {}
    asked |= {"top_p": top_p} if top_p is not None else {}
    SamplingParams(**asked)  # judged before the model is loaded
    llm = open_model(model, dtype, threads, chat_format=chat_format)
    options = {} if thinking is None else {"thinking": thinking}
    start: list[Message] = [{"role": "system", "content": system}] if system else []
    # A checkpoint without a chat format is refused now, not after the first message.
    llm.chat_prompt([*start, {"role": "user", "content": "."}], **options)
    _talk(llm, start, replace(llm.get_default_sampling_params(), **asked), options)


def _talk(
    llm: LLM, messages: list[Message], params: SamplingParams, options: dict[str, Any]
) -> None:
    """Take lines and answer them until an empty one."""
    from abyssal.cli.console import notes
    from abyssal.errors import RequestError

    while True:
        line = _read_line()
        if not line:
            return
        messages.append({"role": "user", "content": line})
        try:
            messages.append(_answer(llm, llm.chat_prompt(messages, **options), params))
        except RequestError as error:
            # The message that could not be answered leaves the talk; what came before stays.
            messages.pop()
            notes().print(str(error), style="red", markup=False)
        except KeyboardInterrupt:
            messages.pop()
            sys.stdout.write("\n")
            notes().print("stopped; this turn is forgotten", style="dim", markup=False)


def _read_line() -> str:
    """Return the next message; empty at the end."""
    try:
        return input("> " if sys.stdin.isatty() else "").strip()
    except EOFError:
        return ""


def _answer(llm: LLM, prompt: list[int], params: SamplingParams) -> Message:
    """Stream one answer to standard output; its thoughts and its speed to standard error."""
    from abyssal.cli.console import Speed, notes, printable, steps

    speed, aside, done, thinks = Speed(), notes(), 0, False
    parser = llm.chat_format.parser(prompt, tools=False)

    def show(deltas: Iterable[Delta]) -> None:
        nonlocal thinks
        for delta in deltas:
            if thinks and delta.kind == "content":
                aside.print()
            thinks = delta.kind == "reasoning"
            if thinks:
                aside.print(printable(delta.text), style="dim", markup=False, end="")
            else:
                sys.stdout.write(printable(delta.text) if sys.stdout.isatty() else delta.text)
                sys.stdout.flush()

    for answer in steps(llm.stream(prompt, params), speed):
        show(parser.push(answer.token_ids[done:]))
        done = len(answer.token_ids)
    show(parser.finish())
    if thinks:
        aside.print()
    sys.stdout.write("\n")
    sys.stdout.flush()
    aside.print(speed.line(), style="dim", markup=False)
    return parser.message()
