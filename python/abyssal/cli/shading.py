"""Print generated text, each token shaded by the expert that weighed most in producing it."""

from __future__ import annotations

import colorsys
from collections import Counter
from typing import TYPE_CHECKING

from abyssal.cli.console import Speed, printable, steps
from abyssal.cli.experts import expert_layers, watch_routers

if TYPE_CHECKING:
    import torch
    from rich.console import Console

    from abyssal import LLM, SamplingParams


class ShadedText:
    """A running text on a console.

    Args:
        console: where to print; without color support the text is plain.
        experts: how many experts there are to tell apart.
    """

    def __init__(self, console: Console, experts: int) -> None:
        self.console = console
        self.experts = experts
        self.counts: Counter[int] = Counter()
        self._column = 0

    def style(self, expert: int) -> str:
        """Return the expert's color: equally spaced hues, light enough for black letters."""
        # Steps of the golden ratio keep neighboring numbers apart in hue.
        hue = (expert * 0.618034) % 1.0
        red, green, blue = colorsys.hls_to_rgb(hue, 0.78, 0.75)
        return f"black on #{int(red * 255):02x}{int(green * 255):02x}{int(blue * 255):02x}"

    def write(self, text: str, style: str = "none") -> None:
        """Print a piece of the text; a word at the border goes to a new line."""
        from rich.text import Text

        width = self.console.width
        for number, line in enumerate(printable(text).expandtabs(4).split("\n")):
            if number:
                self._newline()
            piece = line
            if piece.startswith(" ") and self._column + len(piece) > width - 12:
                self._newline()
                piece = piece[1:]
            while piece:
                room = max(width - self._column, 1)
                self.console.print(Text(piece[:room], style=style), end="", soft_wrap=True)
                self._column += len(piece[:room])
                piece = piece[room:]
                if piece:
                    self._newline()

    def _newline(self) -> None:
        self.console.print()
        self._column = 0

    def legend(self, layer: int) -> None:
        """Name the experts that led most often."""
        from rich.text import Text

        total = sum(self.counts.values())
        if not (self.console.is_terminal or self.console.record) or not total:
            return
        line = Text(f"shaded by the expert that weighed most in layer {layer}: ", style="dim")
        for expert, count in self.counts.most_common(8):
            line.append(f" {expert} ", style=self.style(expert))
            line.append(f" {100 * count / total:.0f}%  ", style="dim")
        rest = len(self.counts) - 8
        if rest > 0:
            line.append(f"and {rest} more of {self.experts}", style="dim")
        self.console.print(line, soft_wrap=not self.console.record)


def stream_shaded(
    llm: LLM, console: Console, prompt: str, params: SamplingParams
) -> tuple[str, list[int], Speed]:
    """Stream a continuation of ``prompt``.

    Returns:
        The text of the answer, the token ids of prompt and answer, and the clock.
    """
    layers = expert_layers(llm.model)
    layer = max(layers, default=-1)
    latest = 0

    def seen(number: int, _weights: torch.Tensor, indices: torch.Tensor) -> None:
        # The last row of a step belongs to the token that the next one is sampled from; best first.
        nonlocal latest
        if number == layer:
            latest = int(indices[-1, 0])

    shaded = ShadedText(console, layers.get(layer, 0))
    shaded.write(prompt, "bold")
    text, ids, speed = "", list[int](), Speed()
    with watch_routers(llm.model, seen):
        for answer in steps(llm.stream(prompt, params), speed):
            if layers:
                shaded.counts[latest] += 1
            shaded.write(answer.text[len(text) :], shaded.style(latest) if layers else "none")
            text, ids = answer.text, answer.token_ids
    console.print()
    if layers:
        shaded.legend(layer)
    return text, [*speed.prompt_token_ids, *ids], speed
