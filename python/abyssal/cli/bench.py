"""``abyssal bench``: speed beside a named peer, on this machine, in one run."""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from abyssal.cli.options import JsonOption

if TYPE_CHECKING:
    from abyssal import LLM
    from abyssal.bench.model import Line
    from abyssal.bench.rows import Row

#: What can be measured beside a peer -> the modules that yield its rows.
SUBJECTS: dict[str, tuple[str, ...]] = {
    "ops": ("abyssal.bench.ops", "abyssal.bench.kvcache"),
    "tokenizer": ("abyssal.bench.tokenizer",),
}


MODEL = "model"
CONTEXTS = (512, 2048, 8192)


def bench(
    subject: Annotated[
        str, typer.Argument(help=f"What to measure: {', '.join([*SUBJECTS, MODEL])}.")
    ],
    path: Annotated[
        str | None,
        typer.Argument(
            help="For model: checkpoint folder or owner/name; default: the bundled model.",
            show_default=False,
        ),
    ] = None,
    threads: Annotated[
        int, typer.Option("--threads", metavar="N", help="Threads of each side.")
    ] = 1,
    context: Annotated[
        list[int] | None,
        typer.Option(
            "--context",
            metavar="N",
            help="For model: tokens of the prompt; may be given several times. Default: those of "
            f"{', '.join(map(str, CONTEXTS))} that the model holds.",
        ),
    ] = None,
    decode: Annotated[
        int, typer.Option("--decode", metavar="N", help="For model: tokens after each prompt.")
    ] = 24,
    repetitions: Annotated[
        int, typer.Option("--repetitions", metavar="N", help="For model: prompts of each length.")
    ] = 3,
    plot: Annotated[
        Path | None,
        typer.Option("--plot", metavar="FILE", help="For model: draw speed against context."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Measure speed beside a named peer, or the speed of a model.

    ops and tokenizer: results are compared before they are timed; both sides are timed in turn, in
    this process, on the same threads. The ratio says how many times better ours is; the limit is
    what this machine allows, measured in the same run.

    model: prefill and decode of a checkpoint at several contexts, in llama-bench's columns; medians
    of single prompts and of single steps.
    """
    if subject not in (*SUBJECTS, MODEL):
        raise ValueError(
            f"'{subject}' cannot be measured; it must be one of {', '.join([*SUBJECTS, MODEL])}"
        )
    if threads < 1:
        raise ValueError(f"--threads is {threads}; it must be at least 1")
    if subject != MODEL and (path is not None or context or plot is not None):
        raise ValueError(f"a path, --context and --plot go with {MODEL}, not with {subject}")
    import torch

    from abyssal._core import get_num_threads, set_num_threads
    from abyssal.bench.memory import describe
    from abyssal.bench.rows import record

    before = torch.get_num_threads(), get_num_threads()
    torch.set_num_threads(threads)
    set_num_threads(threads)
    try:
        machine = describe()
        if subject == MODEL:
            _model(machine, path, threads, context, decode, repetitions, plot, as_json)
            return
        if as_json:
            print(json.dumps(record(machine, list(_rows(subject))), indent=2))
            return
        _print_table(machine, _rows(subject))
    finally:
        torch.set_num_threads(before[0])
        set_num_threads(before[1])


def _rows(subject: str) -> Iterator[Row]:
    for module in SUBJECTS[subject]:
        yield from importlib.import_module(module).rows()


def _print_table(machine: dict[str, Any], rows: Iterator[Row]) -> None:
    """Print the machine and a line for each row as soon as it is measured."""
    from abyssal.cli.console import results

    console = results()
    console.print(_header(machine), markup=False, soft_wrap=True)
    titles = f"{'ours':>10} {'peer':>10} {'unit':<13} {'ratio':>7} {'of limit':>9}  work"
    console.print(titles, markup=False, style="bold", soft_wrap=True)
    for row in rows:
        peer = f"{row.peer:10.3g}" if row.peer is not None else f"{'':>10}"
        ratio = f"{row.ratio:6.1f}x" if row.ratio is not None else f"{'':>7}"
        share = f"{row.share_of_limit:9.0%}" if row.share_of_limit is not None else f"{'':>9}"
        against = f" (peer: {row.peer_name})" if row.peer_name else ""
        line = f"{row.ours:10.3g} {peer} {row.unit:<13} {ratio} {share}  {row.name}{against}"
        console.print(line, markup=False, soft_wrap=True)


def _header(machine: dict[str, Any]) -> str:
    threads, tier = machine["threads"], machine["kernel_tier"]
    return (
        f"{machine['processor']} ({tier}), {threads} thread{'s' * (threads > 1)}, "
        f"reads {machine['read_gb_per_s']:.1f} GB/s; torch {machine['torch']}, "
        f"abyssal {machine['abyssal']}"
    )


def _model(
    machine: dict[str, Any],
    path: str | None,
    threads: int,
    contexts: list[int] | None,
    decode: int,
    repetitions: int,
    plot: Path | None,
    as_json: bool,
) -> None:
    """Measure one model, and print a line for each test as soon as it is measured."""
    from abyssal.bench import model as measured
    from abyssal.cli.console import results
    from abyssal.cli.options import open_model

    llm = open_model(path, None, threads)
    if not contexts:
        room = llm.limits.max_tokens - decode - measured.WARM_STEPS - 1
        contexts = [each for each in CONTEXTS if each <= room] or [max(1, room)]
    measured.check(llm, contexts, decode, repetitions)
    model = _describe_model(llm)
    found: list[Line] = []
    console = results()
    if not as_json:
        console.print(_header(machine), markup=False, soft_wrap=True)
        titles = "| model | size | params | backend | threads | test | t/s |"
        for text in (titles, "| --- | --- | --- | --- | --- | --- | --- |"):
            console.print(text, markup=False, soft_wrap=True)
    for line in measured.lines(llm, contexts, decode, repetitions):
        found.append(line)
        if not as_json:
            cells = (*model.values(), str(threads), line.name, f"{line.tokens_per_second:.2f}")
            console.print(f"| {' | '.join(cells)} |", markup=False, soft_wrap=True)
    if as_json:
        record = {"machine": machine, "model": model, "tests": [each.figures() for each in found]}
        print(json.dumps(record, indent=2))
    if plot is not None:
        measured.plot(plot, found, f"{model['model']}, {threads} threads")


def _describe_model(llm: LLM) -> dict[str, str]:
    """Return llama-bench's first columns: what the model is, its bytes and its parameters."""
    from abyssal.cli.size import Sizes, human_count
    from abyssal.models.hub import human_bytes

    packed = llm.config.quantization
    kind = packed.method if packed else str(llm.config.dtype).removeprefix("torch.")
    if packed and packed.expert_method != packed.method:
        kind = f"{kind} + {packed.expert_method}"
    size = sum(each.numel() * each.element_size() for each in _tensors(llm))
    return {
        "model": f"{llm.config.model_type} {kind}",
        "size": human_bytes(size),
        "params": human_count(Sizes.of(llm.config).parameters),
        "backend": "CPU",
    }


def _tensors(llm: LLM) -> Iterator[Any]:
    yield from llm.model.parameters()
    yield from llm.model.buffers()
