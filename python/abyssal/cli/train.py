"""``abyssal train``: train a small model of the family, on any text or by the bundled recipe.

    abyssal train TEXT... --out DIR            train on text files, a document each
    abyssal train --recipe king-james --out DIR  train the bundled model again
    abyssal train ... --resume                  go on after Ctrl-C or a kill

The run's folder holds the model in the published layout at the end: every other command takes it.
"""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from abyssal.train.state import History
    from abyssal.train.trainer import StepReport

RECIPES = ("king-james", "king-james-dense")


def train(
    files: Annotated[
        list[Path] | None, typer.Argument(help="UTF-8 text files, each one document.")
    ] = None,
    out: Annotated[Path, typer.Option("--out", "-o", metavar="DIR", help="Folder of the run.")] = (
        Path("run")
    ),
    recipe: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="king-james trains the bundled model again, king-james-dense its dense twin.",
        ),
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="JSON: settings, or a config.json to start from."),
    ] = None,
    vocab: Annotated[
        int | None, typer.Option(metavar="N", help="Entries of the vocabulary; default: 4096.")
    ] = None,
    steps: Annotated[int | None, typer.Option(metavar="N", help="Optimizer steps.")] = None,
    seed: Annotated[int | None, typer.Option(metavar="N", help="Same seed, same model.")] = None,
    packing: Annotated[
        str, typer.Option(metavar="TYPE", help="Of the model written: fp8, bfloat16 or float32.")
    ] = "fp8",
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in DIR.")] = False,
) -> None:
    """Train a small model of the family."""
    from abyssal.cli.console import notes, results, table
    from abyssal.train import king_james
    from abyssal.train.curve import write_curve
    from abyssal.train.export import PACKINGS, write_model
    from abyssal.train.recipe import (
        KING_JAMES,
        count_parameters,
        dense_twin,
        king_james_texts,
        prepare,
        read_settings,
    )
    from abyssal.train.run import train as run

    if packing not in PACKINGS:
        raise ValueError(f"--packing must be one of {', '.join(PACKINGS)}, got {packing!r}")
    if (recipe is None) == (not files):
        raise ValueError("name text files to train on, or a --recipe, and not both")
    chapters: list[king_james.Chapter] = []
    if recipe is not None:
        if recipe not in RECIPES:
            raise ValueError(f"--recipe must be one of {', '.join(RECIPES)}, got {recipe!r}")
        if config or vocab or steps or seed is not None:
            raise ValueError("a recipe has its own --config, --vocab, --steps and --seed")
        settings = KING_JAMES if recipe == "king-james" else dense_twin(KING_JAMES)
        chapters, texts = king_james_texts(out / "king_james.txt")
    else:
        from abyssal.cli.evaluate import read_text

        settings = read_settings(config, vocab_size=vocab, steps=steps, seed=seed)
        texts = [read_text(file) for file in files or []]
    prepared = prepare(texts, settings, out, resume=resume)
    tokens = sum(len(each) for each in prepared.documents)
    notes().print(
        f"{len(texts)} documents, {tokens:,} tokens; {settings.steps:,} steps of "
        f"{settings.batch_tokens:,} tokens",
        markup=False,
    )
    with _Progress(settings.steps, prepared.num_bytes / tokens) as progress:
        trainer, history = run(
            prepared.settings, prepared.documents, out, resume=resume, on_step=progress
        )
    size = write_model(trainer.model, out, packing=packing)
    write_curve(history, out / "curve.png", bytes_per_token=prepared.num_bytes / tokens)
    if chapters:
        king_james.write_held_out(chapters, out / "held_out")
        king_james.write_training_text(chapters, out / "training_text.txt.xz")
    total, active = count_parameters(trainer.model)
    table(
        results(),
        [
            ("model", str(out)),
            ("parameters", f"{total:,}, {active:,} active"),
            ("weights", f"{size:,} bytes"),
            ("time", f"{history.wall_seconds:,.0f} s, {history.processor_seconds:,.0f} s of CPU"),
        ],
    )


class _Progress:
    """A bar at a terminal, a line every twenty steps elsewhere."""

    def __init__(self, steps: int, bytes_per_token: float) -> None:
        self.steps, self.scale = steps, bytes_per_token * math.log(2)
        self.bar: object | None = None

    def __enter__(self) -> _Progress:
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeRemainingColumn,
        )

        from abyssal.cli.console import notes

        self.console = notes()
        self.began = time.perf_counter()
        self.bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            console=self.console,
            disable=not self.console.is_terminal,
        )
        self.bars.start()
        self.task = self.bars.add_task("training", total=self.steps)
        return self

    def __exit__(self, *_: object) -> None:
        self.bars.stop()

    def __call__(self, report: StepReport, history: History) -> None:
        """Show one step."""
        rows = history.steps[-5:]
        loss = sum(row[2] or 0.0 for row in rows) / len(rows) if rows else report.loss
        text = f"{loss / self.scale:.3f} bits per byte"
        self.bars.update(self.task, completed=report.step, description=text)
        if not self.console.is_terminal and report.step % 20 == 0:
            busiest = " ".join(f"{each:.2f}" for each in report.busiest)
            experts = f"busiest experts {busiest}, " if busiest else ""
            self.console.print(
                f"step {report.step}/{self.steps}: {text}, {experts}"
                f"{time.perf_counter() - self.began:.0f} s",
                markup=False,
            )
