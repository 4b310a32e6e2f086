"""``abyssal bench``: speed beside a named peer, on this machine, in one run."""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any

import typer

from abyssal.cli.options import JsonOption

if TYPE_CHECKING:
    from abyssal.bench.rows import Row

#: What can be measured -> the modules that yield its rows.
SUBJECTS: dict[str, tuple[str, ...]] = {
    "ops": ("abyssal.bench.ops", "abyssal.bench.kvcache"),
}


def bench(
    subject: Annotated[str, typer.Argument(help=f"What to measure: {', '.join(SUBJECTS)}.")],
    threads: Annotated[
        int, typer.Option("--threads", metavar="N", help="Threads of each side.")
    ] = 1,
    as_json: JsonOption = False,
) -> None:
    """Measure speed beside a named peer.

    Results are compared before they are timed; both sides are timed in turn, in this process, on
    the same threads. The ratio says how many times better ours is; the limit is what this machine
    allows, measured in the same run.
    """
    if subject not in SUBJECTS:
        raise ValueError(f"'{subject}' cannot be measured; it must be one of {', '.join(SUBJECTS)}")
    if threads < 1:
        raise ValueError(f"--threads is {threads}; it must be at least 1")
    import torch

    from abyssal.bench.memory import describe
    from abyssal.bench.rows import record

    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        machine = describe()
        if as_json:
            print(json.dumps(record(machine, list(_rows(subject))), indent=2))
            return
        _print_table(machine, _rows(subject))
    finally:
        torch.set_num_threads(before)


def _rows(subject: str) -> Iterator[Row]:
    for module in SUBJECTS[subject]:
        yield from importlib.import_module(module).rows()


def _print_table(machine: dict[str, Any], rows: Iterator[Row]) -> None:
    """Print the machine and a line for each row as soon as it is measured."""
    from abyssal.cli.console import results

    console = results()
    threads = machine["threads"]
    header = (
        f"{machine['processor']} ({machine['tier']}), {threads} thread{'s' * (threads > 1)}, "
        f"reads {machine['read_gb_per_s']:.1f} GB/s; torch {machine['torch']}, "
        f"abyssal {machine['abyssal']}"
    )
    console.print(header, markup=False, soft_wrap=True)
    titles = f"{'ours':>10} {'peer':>10} {'unit':<13} {'ratio':>7} {'of limit':>9}  work"
    console.print(titles, markup=False, style="bold", soft_wrap=True)
    for row in rows:
        peer = f"{row.peer:10.3g}" if row.peer is not None else f"{'':>10}"
        ratio = f"{row.ratio:6.1f}x" if row.ratio is not None else f"{'':>7}"
        share = f"{row.share_of_limit:9.0%}" if row.share_of_limit is not None else f"{'':>9}"
        against = f" (peer: {row.peer_name})" if row.peer_name else ""
        line = f"{row.ours:10.3g} {peer} {row.unit:<13} {ratio} {share}  {row.name}{against}"
        console.print(line, markup=False, soft_wrap=True)
