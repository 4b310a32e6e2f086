"""The loss curve of a run as a PNG."""

from __future__ import annotations

import math
from pathlib import Path

from abyssal.train.state import History


def write_curve(history: History, file: Path, *, bytes_per_token: float) -> None:
    """Draw the training losses over the tokens seen.

    Args:
        history: Of the run.
        file: The PNG.
        bytes_per_token: Of the training text, to show bits per byte.

    Raises:
        ModuleNotFoundError: matplotlib is not installed (the extra ``train``).
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    scale = bytes_per_token * math.log(2)
    figure = Figure(figsize=(8, 4.5), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    tokens = [(row[1] or 0) / 1e6 for row in history.steps]
    axes.plot(tokens, [(row[2] or math.nan) / scale for row in history.steps], label="next token")
    further = [math.nan if row[3] is None else row[3] / scale for row in history.steps]
    if any(map(math.isfinite, further)):
        axes.plot(tokens, further, label="prediction layer, the token after", alpha=0.6)
    axes.set_xlabel("training tokens, millions")
    axes.set_ylabel("bits per byte, with dropout")
    axes.grid(alpha=0.3)
    if tokens:
        axes.legend()
    figure.savefig(file)
