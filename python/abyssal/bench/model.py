"""``abyssal bench model``: prefill and decode of a checkpoint at several contexts.

    pp512          a prompt of 512 random tokens until its first token: the whole call, clocked
    tg24 @ d512    24 further tokens after that prompt, each by the clock at its arrival

The names and columns are llama-bench's. A speed is the median of its samples: the repetitions of a
prompt, the single steps of a decode, the first of which are left out as they touch new memory.
"""

from __future__ import annotations

import itertools
import random
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from abyssal.engine import SamplingParams

if TYPE_CHECKING:
    from abyssal import LLM

#: Steps of a decode that are run and not counted.
WARM_STEPS = 3


@dataclass(frozen=True)
class Line:
    """One test.

    Attributes:
        context: tokens of the prompt.
        decoded: tokens that were clocked one by one; 0 for the prefill.
        seconds: of each sample: a prompt, or one step.
    """

    context: int
    decoded: int
    seconds: tuple[float, ...]

    @property
    def name(self) -> str:
        """The test as llama-bench writes it."""
        return f"tg{self.decoded} @ d{self.context}" if self.decoded else f"pp{self.context}"

    @property
    def tokens_per_second(self) -> float:
        """Tokens per second, from the median sample."""
        return (1 if self.decoded else self.context) / statistics.median(self.seconds)

    def figures(self) -> dict[str, Any]:
        """Return the record for JSON."""
        return {
            "test": self.name,
            "context": self.context,
            "decoded": self.decoded,
            "tokens_per_second": self.tokens_per_second,
            "seconds": list(self.seconds),
        }


def check(llm: LLM, contexts: Sequence[int], steps: int, repetitions: int) -> None:
    """Refuse numbers that the model cannot run.

    Raises:
        ValueError: a number that is not positive, or a context that the model or its cache does
            not hold.
    """
    for name, value in (("--decode", steps), ("--repetitions", repetitions)):
        if value < 1:
            raise ValueError(f"{name} is {value}; it must be at least 1")
    most = llm.limits.max_tokens - steps - WARM_STEPS - 1
    for context in contexts:
        if not 1 <= context <= most:
            raise ValueError(
                f"--context {context} is out of range: 1 to {most}, so that {steps} tokens can "
                "follow"
            )


def lines(llm: LLM, contexts: Sequence[int], steps: int, repetitions: int) -> Iterator[Line]:
    """Measure a model.

    Args:
        llm: the model.
        contexts: tokens of the prompts.
        steps: tokens that are clocked one by one after each prompt.
        repetitions: prompts of each length.

    Yields:
        Two tests for each context: its prefill, and the decode after it.

    Raises:
        ValueError: as ``check``.
    """
    check(llm, contexts, steps, repetitions)
    generator = random.Random(0)
    # The first pass finds the weights on the disk, and starts the threads.
    list(_arrivals(llm, [0] * min(16, min(contexts)), 1))
    for context in contexts:
        prompts, taken = [], []
        for _ in range(repetitions):
            ids = [generator.randrange(llm.config.vocab_size) for _ in range(context)]
            clock = list(_arrivals(llm, ids, steps + WARM_STEPS + 1))
            prompts.append(clock[1] - clock[0])
            arrivals = clock[1 + WARM_STEPS :]
            taken += [after - before for before, after in itertools.pairwise(arrivals)]
        yield Line(context, 0, tuple(prompts))
        yield Line(context, steps, tuple(taken))


def _arrivals(llm: LLM, ids: list[int], tokens: int) -> Iterator[float]:
    """Yield the time of the call and of each token of its answer."""
    params = SamplingParams(temperature=0.0, max_tokens=tokens, ignore_eos=True)
    yield time.perf_counter()
    for output in llm.stream(ids, params):
        if output.error:
            raise ValueError(f"the model stopped after {len(ids)} random tokens: {output.error}")
        yield time.perf_counter()


def plot(path: Path, results: Sequence[Line], title: str) -> None:
    """Draw speed against context.

    Raises:
        ModuleNotFoundError: matplotlib is not installed (the extra ``train``).
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for label, decode in (("prefill", False), ("decode", True)):
        chosen = [line for line in results if bool(line.decoded) == decode]
        contexts = [line.context for line in chosen]
        axes.plot(contexts, [line.tokens_per_second for line in chosen], "o-", label=label)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xlabel("tokens of context")
    axes.set_ylabel("tokens per second")
    axes.set_title(title)
    axes.legend()
    figure.savefig(path, dpi=150)
