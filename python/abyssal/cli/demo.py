"""``abyssal demo``: the first impression, measured in this run.

1. one line on what this is          3. a table of figures          5. what to type next
2. a continuation, shaded by expert  4. your own line (at a terminal)
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from abyssal.cli.options import ModelOption, ThreadsOption, find_model, open_model, sampling
from abyssal.models.hub import human_bytes

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

    from abyssal import LLM, SamplingParams
    from abyssal.cli.catalog import Published
    from abyssal.cli.console import Speed

OPENING = "And the engineer said unto the machine,"
#: Width of the recorded picture and of the text at a wide terminal.
WIDTH = 100


def demo(
    record: Annotated[
        Path | None,
        typer.Option("--record", metavar="FILE", help="Also write the screen as an SVG picture."),
    ] = None,
    model: ModelOption = None,
    seed: Annotated[int, typer.Option("--seed", help="Seed of the continuation.")] = 7,
    max_tokens: Annotated[
        int, typer.Option("--max-tokens", "-n", help="Tokens to generate.")
    ] = 160,
    threads: ThreadsOption = None,
) -> None:
    """Show what this is, with the bundled model.

    Generates a text with a fixed seed, measures the model while doing so, takes a line of yours at
    a terminal, and says what to type for a real DeepSeek checkpoint.
    """
    from abyssal.cli.console import table

    folder = find_model(model)
    console = _console(record)
    # f32 activations: the figures below then show the arithmetic, not the rounding of bf16.
    llm = open_model(str(folder) if model else None, "float32", threads)
    console.print(introduction(folder, llm), soft_wrap=not console.record)
    console.print()
    params = sampling(
        max_tokens=max_tokens,
        temperature=0.7,
        top_p=0.95,
        top_k=0,
        min_p=0.0,
        seed=seed,
        stop=None,
        ignore_eos=True,
    )
    from abyssal.cli.shading import stream_shaded

    text, ids, speed = stream_shaded(llm, console, OPENING, params)
    console.print()
    table(console, figures(folder, llm, text, ids, speed))
    console.print()
    if record is None and sys.stdin.isatty() and sys.stdout.isatty():
        _own_lines(llm, console, params)
    _next_steps(console)
    if record is not None:
        _save(console, record)


def introduction(folder: Path, llm: LLM) -> str:
    """Say in one line what this is."""
    from abyssal import __version__
    from abyssal.models import open_checkpoint

    size = human_bytes(open_checkpoint(folder).num_bytes)
    if folder.name == "king_james":
        return (
            f"abyssal {__version__}: a base model of {size} in DeepSeek-V3's architecture, trained "
            "here on the King James Bible alone; it continues text, it does not answer."
        )
    kind = llm.config.model_type
    return f"abyssal {__version__}: {folder.name}, {size} of weights in the architecture {kind}."


def figures(
    folder: Path, llm: LLM, text: str, ids: list[int], speed: Speed
) -> list[tuple[str, str]]:
    """Measure what the table shows, now and on this machine.

    Args:
        folder: the checkpoint.
        llm: the loaded model.
        text: what it wrote.
        ids: token ids of the prompt and of what it wrote.
        speed: the clock of that run.

    Returns:
        Names and values.
    """
    from abyssal import _core
    from abyssal.cli import measure
    from abyssal.cli.size import Sizes, human_count
    from abyssal.machine import processor_name
    from abyssal.models import open_checkpoint

    sizes = Sizes.of(llm.config)
    stored = open_checkpoint(folder).num_bytes
    extra = llm.config.num_mtp_layers * sizes.mtp_parameters
    kind = (
        llm.config.quantization.method.upper()
        if llm.config.quantization
        else str(llm.config.dtype)[6:]
    )
    latent, expanded = sizes.latent_bytes(2), sizes.expanded_bytes(2)
    difference, largest = measure.reference_difference(llm, ids)
    rows = [
        (
            "parameters",
            f"{human_count(sizes.parameters)}, {human_count(sizes.active_parameters)} active for a "
            f"token ({100 * sizes.active_parameters / sizes.parameters:.0f}%)",
        ),
        (
            "weights",
            f"{human_bytes(stored)} in {kind}, "
            f"{human_bytes(2 * (sizes.parameters + extra))} in bf16",
        ),
        (
            "cache",
            f"{latent:,} bytes a token; expanded keys and values: {expanded:,} "
            f"({expanded / latent:.1f} times)",
        ),
        (
            "speed",
            f"prompt {speed.prompt_rate:.1f} tokens/s, then {speed.decode_rate:.1f} tokens/s "
            f"({speed.answer_tokens} tokens)",
        ),
        ("processor", f"{processor_name()}, {_core.cpu_tier()} tier"),
        (
            "exactness",
            f"largest difference to plain PyTorch {difference:.1e} over {len(ids)} tokens "
            f"(logits up to {largest:.0f})",
        ),
    ]
    training = measure.training_text(folder)
    if training is not None:
        run = measure.longest_shared_run(text, training)
        total = len(measure.words(text))
        rows.append(
            (
                "copied",
                f"at most {len(run)} of its {total} words in a row stand in the training text: "
                f'"{" ".join(run)}"',
            )
        )
    return rows


def _own_lines(llm: LLM, console: Console, params: SamplingParams) -> None:
    """Continue lines that the user types, until an empty one."""
    from abyssal.cli.shading import stream_shaded

    console.print("Your own line for it to continue (an empty one ends):", style="bold")
    while True:
        try:
            line = input("> ")
        except EOFError:
            console.print()
            return
        if not line.strip():
            return
        _, _, speed = stream_shaded(llm, console, line, params)
        console.print(speed.line(), style="dim", markup=False)


def _next_steps(console: Console) -> None:
    """Say what to type for a real checkpoint, and which ones fit this machine."""
    from rich.text import Text

    from abyssal.cli.catalog import CATALOG
    from abyssal.machine import memory_bytes

    memory = memory_bytes()
    has = human_bytes(memory) if memory else "an unknown amount"
    console.print(
        Text(f"Real checkpoints, and the memory that each needs (this machine has {has}):", "bold"),
        soft_wrap=True,
    )
    for model in CATALOG:
        console.print(_fit_line(model, memory), soft_wrap=True)
    fitting = (
        model.name
        for model in CATALOG
        if memory is not None and model.needed_bytes(fp8=model.fp8) <= memory
    )
    example = next(fitting, CATALOG[0].name)
    for command in (
        f"abyssal chat --model {example}",
        f'abyssal generate --model {example} "The sea is"',
        "abyssal inspect FOLDER",
    ):
        console.print(Text(f"  {command}", style="cyan"), soft_wrap=True)


def _fit_line(model: Published, memory: int | None) -> Text:
    """Say how much memory a model needs in FP8 and in bf16, and whether that is there."""
    from rich.text import Text

    from abyssal.cli.size import human_count

    line = Text(f"  {model.name:<36} {human_count(model.sizes.parameters):>13}")
    for kind, fp8 in (("FP8", True), ("bf16", False)):
        needed = f"{human_bytes(model.needed_bytes(fp8=fp8)):>8} in {kind}"
        line.append(f" {needed}", style="none" if fp8 == model.fp8 else "dim")
    if memory is not None and model.needed_bytes(fp8=model.fp8) <= memory:
        line.append("  fits", style="green")
    elif memory is not None and model.needed_bytes(fp8=True) <= memory:
        line.append("  fits in FP8", style="yellow")
    else:
        line.append("  too large", style="dim")
    return line


def _console(record: Path | None) -> Console:
    from rich.console import Console

    from abyssal.cli.console import results

    if record is None:
        return results()
    if not record.parent.is_dir():
        raise ValueError(f"cannot write {record}: no folder {record.parent}")
    return Console(record=True, width=WIDTH, highlight=False)


def _save(console: Console, file: Path) -> None:
    """Write the recorded screen without the web font that rich's template would fetch."""
    picture = console.export_svg(title="abyssal demo", unique_id="abyssal-demo")
    file.write_text(
        re.sub(r"@font-face \{.*?\}\s*", "", picture, flags=re.DOTALL), encoding="utf-8"
    )
