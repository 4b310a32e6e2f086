"""Options that several commands share, and opening the model that they name."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from pathlib import Path

    from abyssal import LLM, SamplingParams

ModelOption = Annotated[
    str | None,
    typer.Option(
        "--model",
        "-m",
        metavar="PATH",
        help="Checkpoint folder or owner/name on the hub; default: the bundled model.",
    ),
]
DtypeOption = Annotated[
    str | None,
    typer.Option(
        metavar="TYPE",
        help="Type of the activations: bfloat16 or float32; default: the checkpoint's.",
    ),
]
ThreadsOption = Annotated[
    int | None, typer.Option("--threads", metavar="N", help="Threads; default: all processors.")
]
MaxTokensOption = Annotated[
    int, typer.Option("--max-tokens", "-n", help="Tokens to generate at most.")
]
TemperatureOption = Annotated[
    float, typer.Option("--temperature", "-t", help="0 always takes the likeliest token.")
]
TopPOption = Annotated[
    float, typer.Option("--top-p", help="Keep the likeliest tokens that make up this probability.")
]
TopKOption = Annotated[int, typer.Option("--top-k", help="Keep this many tokens; 0 keeps all.")]
MinPOption = Annotated[
    float,
    typer.Option(
        "--min-p", help="Keep tokens of at least this share of the best one's probability."
    ),
]
SeedOption = Annotated[
    int | None,
    typer.Option("--seed", help="The same seed gives the same text; default: a new one each time."),
]
StopOption = Annotated[
    list[str] | None,
    typer.Option("--stop", help="End before this text; may be given several times."),
]
IgnoreEosOption = Annotated[bool, typer.Option("--ignore-eos", help="Go on after an end token.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]


def find_model(model: str | None) -> Path:
    """Return the folder of the named model, or of the bundled one."""
    from abyssal.models import hub

    return hub.bundled_model() if model is None else hub.resolve(model)


def open_model(
    model: str | None, dtype: str | None, threads: int | None, *, chat_format: str | None = None
) -> LLM:
    """Load the named model, or the bundled one, and show how far that is."""
    from abyssal.cli.console import loading

    folder = find_model(model)
    with loading(model or folder.name) as progress:
        from abyssal import LLM

        return LLM(
            str(folder),
            dtype=dtype,
            num_threads=threads,
            chat_format=chat_format,
            progress=progress,
        )


def sampling(
    *,
    max_tokens: int,
    temperature: float,
    top_p: float,
    top_k: int,
    min_p: float,
    seed: int | None,
    stop: list[str] | None,
    ignore_eos: bool = False,
) -> SamplingParams:
    """Build the engine's parameters; it judges them."""
    from abyssal import SamplingParams

    return SamplingParams(
        max_tokens=max_tokens,
        temperature=temperature,
        top_p=top_p,
        top_k=top_k,
        min_p=min_p,
        seed=seed,
        stop=stop or None,
        ignore_eos=ignore_eos,
    )
