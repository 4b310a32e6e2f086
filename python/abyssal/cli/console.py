"""What the commands share on the screen: consoles, a table, loading progress, speeds.

Standard output carries results only; progress, speeds and errors go to standard error. Where a
stream is not a terminal, everything is plain lines without escape codes.
"""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Console

from abyssal.errors import RequestError

if TYPE_CHECKING:
    from abyssal import CompletionOutput, RequestOutput

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")

#: What a loader calls with the stage's name, the bytes done and the bytes in all.
Progress = Callable[[str, int, int], None]


def notes() -> Console:
    """Return a console on standard error."""
    return Console(stderr=True, highlight=False, soft_wrap=True)


def results() -> Console:
    """Return a console on standard output."""
    return Console(highlight=False, soft_wrap=not sys.stdout.isatty())


def printable(text: str) -> str:
    """Replace control characters but line ends and tabs: a text must not steer a terminal."""
    return _CONTROL.sub("\ufffd", text)


def table(console: Console, rows: Sequence[tuple[str, str]]) -> None:
    """Print names and values: aligned at a terminal, ``name: value`` elsewhere."""
    from rich.text import Text

    width = max((len(name) for name, _ in rows), default=0)
    for name, value in rows:
        if console.is_terminal or console.record:
            console.print(Text.assemble((f"  {name:<{width}}  ", "bold"), value))
        else:
            console.print(Text(f"{name}: {value}"), soft_wrap=True)


@contextmanager
def loading(name: str, *, done: str = "loaded") -> Iterator[Progress]:
    """Show how far loading a model is, or what else reports so; yields the function to call."""
    console = notes()
    started = time.perf_counter()
    if not console.is_terminal:
        console.print(f"{'loading' if done == 'loaded' else 'reading'} {name}", markup=False)
        yield lambda stage, done, total: None
        console.print(f"{done} in {time.perf_counter() - started:.1f} s", markup=False)
        return
    from rich.progress import BarColumn, DownloadColumn, TextColumn
    from rich.progress import Progress as Bars

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn())
    with Bars(*columns, console=console, transient=True) as bars:
        task = bars.add_task(f"loading {name}", total=None)

        def show(stage: str, done_bytes: int, total: int) -> None:
            bars.update(
                task, description=f"{stage} {name}", completed=done_bytes, total=total or None
            )

        yield show
    console.print(f"[dim]{done} in {time.perf_counter() - started:.1f} s[/dim]")


def steps(outputs: Iterable[RequestOutput], speed: Speed) -> Iterator[CompletionOutput]:
    """Go through a streamed answer, clocked.

    Raises:
        RequestError: the engine ended the request because of an error, after what came before it
            was yielded.
    """
    for output in outputs:
        speed.saw(output)
        if output.outputs:
            yield output.outputs[0]
        if output.error:
            raise RequestError(output.error)


class Speed:
    """Clock one answer: prompt tokens until its first token, then tokens per second.

    Example of the line: ``prompt 12 tokens, 210.4 tokens/s; answer 200 tokens, 41.0 tokens/s;
    length``.
    """

    def __init__(self) -> None:
        self._started = time.perf_counter()
        self._first: float | None = None
        self._last = self._started
        self.prompt_token_ids: list[int] = []
        self.answer_tokens = 0
        self.finish_reason: str | None = None

    def saw(self, output: RequestOutput) -> None:
        """Note one step of a streamed answer."""
        self.prompt_token_ids = output.prompt_token_ids
        if not output.outputs or not output.outputs[0].token_ids:
            return
        self._last = time.perf_counter()
        if self._first is None:
            self._first = self._last
        answer = output.outputs[0]
        self.answer_tokens = len(answer.token_ids)
        self.finish_reason = answer.finish_reason

    @property
    def prompt_rate(self) -> float:
        """Prompt tokens per second up to the first token of the answer."""
        seconds = (self._first or self._last) - self._started
        return len(self.prompt_token_ids) / seconds if seconds > 0 else 0.0

    @property
    def decode_rate(self) -> float:
        """Tokens per second after the first one; 0 for answers of one token."""
        seconds = self._last - (self._first or self._last)
        return (self.answer_tokens - 1) / seconds if seconds > 0 else 0.0

    def line(self) -> str:
        """Return the line that an answer ends with."""
        decode = f", {self.decode_rate:.1f} tokens/s" if self.answer_tokens > 1 else ""
        return (
            f"prompt {len(self.prompt_token_ids)} tokens, {self.prompt_rate:.1f} tokens/s; "
            f"answer {self.answer_tokens} tokens{decode}; {self.finish_reason or 'stopped'}"
        )
