"""``abyssal evaluate``: bits per byte and perplexity of text files.

Each file is scored from its beginning, with its own earlier text as context and nothing else:

    window k sees tokens [begin, end) and scores those that no window before it scored
    end = window, window + stride, ...;  begin = end - window (0 for the first)
    bits per byte = sum of -log2 p(token | context) over all tokens / UTF-8 bytes of the text

A file that fits the window is scored in one piece, every token with all the text before it. The
first token has the beginning token as context where the tokenizer's settings ask for one; without
it, it costs log2(vocabulary size), so that no byte is free. Every figure that the project reports
comes from this file.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from abyssal.cli.options import DtypeOption, JsonOption, ThreadsOption, open_model

if TYPE_CHECKING:
    import torch

    from abyssal import LLM
    from abyssal.cli.experts import ExpertLoad

#: The logits of one window stay below this many numbers, whatever the vocabulary.
MOST_LOGITS = 2**28


@dataclass(frozen=True)
class Score:
    """What one text costs.

    Attributes:
        name: the file.
        num_bytes: UTF-8 bytes.
        num_tokens: tokens of the text, without a beginning token.
        bits: sum of -log2 p over these tokens.
    """

    name: str
    num_bytes: int
    num_tokens: int
    bits: float

    def figures(self) -> dict[str, Any]:
        """Return the record for JSON."""
        return {
            "file": self.name,
            "bytes": self.num_bytes,
            "tokens": self.num_tokens,
            "bits": self.bits,
            "bits_per_byte": self.bits / self.num_bytes,
            "perplexity": perplexity(self.bits, self.num_tokens),
        }


def evaluate(
    path: Annotated[str, typer.Argument(help="Checkpoint folder or owner/name.")],
    files: Annotated[list[Path], typer.Argument(help="UTF-8 text files.")],
    window: Annotated[
        int | None,
        typer.Option(
            "--window",
            metavar="N",
            help="Tokens that a window sees; default: the model's context, at most 4096.",
        ),
    ] = None,
    stride: Annotated[
        int | None,
        typer.Option(
            "--stride",
            metavar="N",
            help="Tokens that each further window scores; default: half the window.",
        ),
    ] = None,
    as_json: JsonOption = False,
    dtype: DtypeOption = None,
    threads: ThreadsOption = None,
) -> None:
    """Score text files: bits per byte and perplexity.

    Each file is scored from its beginning with its own earlier text as context. Also reports, for
    each layer with experts, the load of its busiest expert over the mean, counted over every token
    of every file once.
    """
    from abyssal.cli.console import results, table
    from abyssal.cli.experts import ExpertLoad, watch_routers

    texts = [(str(file), read_text(file)) for file in files]
    llm = open_model(path, dtype, threads)
    window = (
        window
        if window is not None
        else default_window(llm.config.max_position, llm.config.vocab_size)
    )
    stride = stride if stride is not None else max(1, window // 2)
    check_window(window, stride, llm.config.max_position)
    scores = []
    load = ExpertLoad(llm.model)
    with watch_routers(llm.model, load.seen):
        for name, text in _with_progress(texts):
            scores.append(score(llm, name, text, window, stride, load))
    total = Score(
        "total",
        sum(each.num_bytes for each in scores),
        sum(each.num_tokens for each in scores),
        math.fsum(each.bits for each in scores),
    )
    loads = load.figures()
    report = {
        "path": path,
        "window": window,
        "stride": stride,
        "files": [each.figures() for each in scores],
        "total": {**total.figures(), "file": None},
        "expert_load": loads,
    }
    if as_json:
        print(json.dumps(report, indent=2))
        return
    shown = [*scores, total] if len(scores) > 1 else scores
    rows = [
        (
            each.name,
            f"{each.bits / each.num_bytes:.4f} bits per byte, perplexity "
            f"{perplexity(each.bits, each.num_tokens):.2f} over {each.num_tokens:,} tokens, "
            f"{each.num_bytes:,} bytes",
        )
        for each in shown
    ]
    rows.append(("window", f"{window} tokens, stride {stride}; each file from its beginning"))
    rows += [
        (
            f"layer {row['layer']}",
            f"busiest expert {row['busiest']}: {row['max_over_mean']:.2f} times the mean load",
        )
        for row in loads
    ]
    table(results(), rows)


def perplexity(bits: float, num_tokens: int) -> float:
    """Return 2 to the mean bits of a token."""
    return math.exp2(min(bits / num_tokens, 1023.0))


def read_text(file: Path) -> str:
    """Read a UTF-8 file that holds something."""
    data = file.read_bytes()
    if not data:
        raise ValueError(f"{file} is empty: there is nothing to score")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} is not UTF-8: byte {error.start} of {len(data)}") from None


def default_window(max_position: int, vocab_size: int) -> int:
    """Return the model's context, at most 4096, and less where the logits would fill memory."""
    return min(max_position, 4096, max(512, MOST_LOGITS // vocab_size))


def check_window(window: int, stride: int, max_position: int) -> None:
    """Refuse a window that the model cannot see or a stride that would skip tokens."""
    if not 2 <= window <= max_position:
        raise ValueError(
            f"--window {window} is out of range: 2 to the model's context of {max_position}"
        )
    if not 1 <= stride < window:
        raise ValueError(f"--stride {stride} is out of range: 1 to {window - 1}, below the window")


def windows(num_tokens: int, window: int, stride: int) -> Iterator[tuple[int, int, int]]:
    """Cut a text into windows.

    Yields:
        ``(begin, end, new)``: the window sees ``[begin, end)``, and ``[new, end)`` are the tokens
        that it is the first to see. The ``new`` ranges cover ``[0, num_tokens)`` without overlap.
    """
    begin, end, new = 0, min(window, num_tokens), 0
    while new < num_tokens:
        yield begin, end, new
        new, end = end, min(end + stride, num_tokens)
        begin = max(0, end - window)


def score(llm: LLM, name: str, text: str, window: int, stride: int, load: ExpertLoad) -> Score:
    """Score one text."""
    tokenizer = llm.require_tokenizer()
    ids = tokenizer.encode(text, parse_special=False)
    num_tokens, bits = len(ids), 0.0
    if tokenizer.add_bos_token and tokenizer.bos_token_id is not None:
        ids = [tokenizer.bos_token_id, *ids]
    else:
        bits = math.log2(llm.config.vocab_size)
    for begin, end, new in windows(len(ids), window, stride):
        load.start()
        logits = llm.logits(ids[begin:end])
        load.count(slice(new - begin, end - begin))
        # The very first token has no context: it is the beginning token, or was counted above.
        first = max(new, 1)
        bits += cross_entropy_bits(logits[first - 1 - begin : end - 1 - begin], ids[first:end])
    return Score(name, len(text.encode("utf-8")), num_tokens, bits)


def cross_entropy_bits(logits: torch.Tensor, targets: list[int]) -> float:
    """Sum -log2 p(target) over the rows of ``logits [n, vocab]``: rows in f32, the sum in f64."""
    import torch

    wanted = logits.gather(1, torch.tensor(targets, dtype=torch.int64).unsqueeze(1)).squeeze(1)
    return float((logits.logsumexp(dim=1) - wanted).double().sum()) / math.log(2.0)


def _with_progress(texts: list[tuple[str, str]]) -> Iterator[tuple[str, str]]:
    """Go through the texts, with a bar at a terminal."""
    from abyssal.cli.console import notes

    console = notes()
    if not console.is_terminal:
        yield from texts
        return
    from rich.progress import track

    yield from track(texts, description="scoring", console=console, transient=True)
