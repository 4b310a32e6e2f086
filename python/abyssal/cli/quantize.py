"""``abyssal quantize``: write a checkpoint again with packed weights, and say what it costs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from abyssal.cli.options import JsonOption, ThreadsOption, find_model
from abyssal.models.hub import human_bytes


def quantize(
    source: Annotated[str, typer.Argument(help="Checkpoint folder or owner/name.")],
    destination: Annotated[Path, typer.Argument(help="A new folder.")],
    to: Annotated[str, typer.Option("--to", metavar="FORMAT", help="fp8 or mxfp4.")],
    head: Annotated[bool, typer.Option("--head", help="Pack the output head too.")] = False,
    experts_only: Annotated[
        bool,
        typer.Option(
            "--experts-only",
            help="With mxfp4: routed experts alone; the other projections become FP8.",
        ),
    ] = False,
    text: Annotated[
        list[Path] | None,
        typer.Option(
            "--text",
            metavar="FILE",
            help="UTF-8 text to compare the two on; may be given several times.",
        ),
    ] = None,
    as_json: JsonOption = False,
    threads: ThreadsOption = None,
) -> None:
    """Write a checkpoint again with FP8 or MXFP4 weights.

    fp8 is the layout of DeepSeek-V3: projections in blocks of 128x128. mxfp4 halves it again:
    blocks of 32. Embedding, norms, routers and, without --head, the output head stay as they are.
    Reads and writes band by band, so that the model may be larger than memory.

    With --text, both are then scored: perplexity of each, the mean divergence (KL) of the packed
    one's predictions from the source's, and how often their likeliest tokens agree.
    """
    from abyssal.cli.console import loading, results, table
    from abyssal.cli.evaluate import read_text
    from abyssal.models import open_checkpoint
    from abyssal.models.repack import Packing, repack

    texts = [(str(file), read_text(file)) for file in text or []]
    folder = find_model(source)
    with loading(folder.name, done="written") as progress:
        size = repack(folder, destination, Packing(to, head, experts_only), progress=progress)
    before = open_checkpoint(folder).num_bytes
    report: dict[str, Any] = {
        "source": str(folder),
        "destination": str(destination),
        "to": to,
        "source_bytes": before,
        "bytes": size,
    }
    rows = [
        ("written", str(destination)),
        ("size", f"{human_bytes(size)}, {size / before:.2f} times {human_bytes(before)}"),
    ]
    if texts:
        from abyssal.cli.quality import compare

        quality = compare(folder, destination, texts, threads)
        report["quality"] = quality.figures()
        rows += quality.rows()
    if as_json:
        print(json.dumps(report, indent=2))
    else:
        table(results(), rows)
