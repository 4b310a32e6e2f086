"""``abyssal generate``: continue a text."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from abyssal.cli.options import (
    DtypeOption,
    IgnoreEosOption,
    MaxTokensOption,
    MinPOption,
    ModelOption,
    SeedOption,
    StopOption,
    TemperatureOption,
    ThreadsOption,
    TopKOption,
    TopPOption,
    open_model,
    sampling,
)


def generate(
    prompt: Annotated[
        str | None,
        typer.Argument(
            help="The text to continue; without it, or as -, standard input.", show_default=False
        ),
    ] = None,
    token_ids: Annotated[
        str | None,
        typer.Option(
            "--token-ids",
            metavar="IDS",
            help="Token ids in place of a text, as in 5,17,3; prints ids.",
        ),
    ] = None,
    model: ModelOption = None,
    max_tokens: MaxTokensOption = 200,
    temperature: TemperatureOption = 0.8,
    top_p: TopPOption = 0.95,
    top_k: TopKOption = 0,
    min_p: MinPOption = 0.0,
    seed: SeedOption = None,
    stop: StopOption = None,
    ignore_eos: IgnoreEosOption = False,
    dtype: DtypeOption = None,
    threads: ThreadsOption = None,
) -> None:
    """Continue a text.

    Standard output gets the continuation as it comes (at a terminal, after the prompt); standard
    error gets the progress of loading and, at the end, the tokens per second of prompt and answer.
    """
    from abyssal.cli.console import Speed, notes, printable, steps

    if prompt is not None and token_ids is not None:
        raise typer.BadParameter("a prompt and --token-ids exclude each other")
    request = _ids(token_ids) if token_ids is not None else _text(prompt)
    params = sampling(
        max_tokens=max_tokens,
        temperature=temperature,
        top_p=top_p,
        top_k=top_k,
        min_p=min_p,
        seed=seed,
        stop=stop,
        ignore_eos=ignore_eos,
    )
    llm = open_model(model, dtype, threads)
    if isinstance(request, str) and sys.stdout.isatty():
        sys.stdout.write(f"\x1b[2m{request}\x1b[0m")
    show = printable if sys.stdout.isatty() else str
    speed, shown = Speed(), 0
    for answer in steps(llm.stream(request, params), speed):
        if isinstance(request, str):
            sys.stdout.write(show(answer.text[shown:]))
            shown = len(answer.text)
        else:
            sys.stdout.write("".join(f"{token} " for token in answer.token_ids[shown:]))
            shown = len(answer.token_ids)
        sys.stdout.flush()
    sys.stdout.write("\n")
    sys.stdout.flush()
    notes().print(speed.line(), style="dim", markup=False)


def _text(prompt: str | None) -> str:
    """Return the prompt of the command line or of standard input."""
    if prompt not in (None, "-"):
        return prompt or ""
    if sys.stdin.isatty():
        raise typer.BadParameter("give the text to continue, or pipe it in")
    data = sys.stdin.buffer.read()
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"standard input is not UTF-8: byte {error.start} of {len(data)}"
        ) from None


def _ids(words: str) -> list[int]:
    """Read token ids separated by commas or spaces."""
    try:
        return [int(word) for word in words.replace(",", " ").split()]
    except ValueError:
        raise typer.BadParameter(f"--token-ids takes numbers, found {words!r}") from None
