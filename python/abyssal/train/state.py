"""Save and load a run, so that it goes on after a kill as if nothing had been.

A saved run is two files: ``state-STEP.safetensors`` (weights, correction biases, optimizer) and
``state.json`` (settings, place in the text, history), which names the first. The second is replaced
in one step after the first is on the disk; whatever moment a kill hits, one complete pair is there.
"""

from __future__ import annotations

import json
import math
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from abyssal.errors import CheckpointError
from abyssal.train.settings import Settings
from abyssal.train.trainer import StepReport, Trainer

STATE = "state.json"
#: Steps of one row of the history.
ROW = 10


@dataclass
class History:
    """What a run has shown so far.

    Attributes:
        steps: Rows ``[step, tokens, loss, prediction loss]``: means over the steps since the row
            before, in nats a token; null without a prediction layer.
        pending: Losses of the steps since the last row.
        wall_seconds: Time spent in training.
        processor_seconds: The same, over all cores.
    """

    steps: list[list[float | None]] = field(default_factory=list)
    pending: list[tuple[float, float]] = field(default_factory=list)
    wall_seconds: float = 0.0
    processor_seconds: float = 0.0

    def add(self, report: StepReport, tokens: int) -> None:
        """Add a step; ``tokens`` is how many the run has seen."""
        self.pending.append((report.loss, report.prediction_loss))
        if len(self.pending) == ROW:
            loss, prediction = (math.fsum(each) / ROW for each in zip(*self.pending, strict=True))
            known = prediction if math.isfinite(prediction) else None
            self.steps.append([report.step, tokens, loss, known])
            self.pending = []


def _tensors(trainer: Trainer) -> dict[str, torch.Tensor]:
    """Return every tensor of a run under a stable name, not copied."""
    model = {f"model.{name}": value for name, value in trainer.model.state_dict().items()}
    return {**model, **{f"optimizer.{name}": each for name, each in trainer.optimizer.tensors()}}


def save_state(trainer: Trainer, history: History, folder: Path) -> None:
    """Save a run between two steps."""
    folder.mkdir(parents=True, exist_ok=True)
    name = f"state-{trainer.steps_done:06}.safetensors"
    save_file({key: value.contiguous() for key, value in _tensors(trainer).items()}, folder / name)
    _flush(folder / name)
    values = {
        "settings": json.loads(trainer.settings.to_json()),
        "tensors": name,
        "steps_done": trainer.steps_done,
        "place": trainer.stream.place,
        "history": history.__dict__,
    }
    draft = folder / f"{STATE}.new"
    draft.write_text(json.dumps(values), encoding="utf-8")
    _flush(draft)
    os.replace(draft, folder / STATE)
    for other in folder.glob("state-*.safetensors"):
        if other.name != name:
            other.unlink()


def _flush(file: Path) -> None:
    """Wait until a file is on the disk."""
    with file.open("rb") as handle:
        os.fsync(handle.fileno())


def read_state(folder: Path) -> dict[str, Any]:
    """Read ``state.json``.

    Raises:
        CheckpointError: the folder holds no saved run, or a damaged one.
    """
    file = folder / STATE
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{folder} holds no saved run: there is no {STATE}") from None
    except ValueError as error:
        raise CheckpointError(f"{file} cannot be read as JSON: {error}") from None
    if not isinstance(values, dict):
        raise CheckpointError(f"{file} must hold an object, found {type(values).__name__}")
    missing = [
        key
        for key in ("settings", "tensors", "steps_done", "place", "history")
        if key not in values
    ]
    if missing:
        raise CheckpointError(f"{file} lacks {', '.join(missing)}")
    return values


def load_state(trainer: Trainer, folder: Path) -> History:
    """Put a saved run into a trainer with the same settings.

    Raises:
        CheckpointError: no saved run, a damaged one, or one with other settings.
    """
    values = read_state(folder)
    saved = Settings.from_dict(values["settings"])
    if saved != trainer.settings:
        changed = [
            key for key in saved.__dict__ if getattr(saved, key) != getattr(trainer.settings, key)
        ]
        raise CheckpointError(
            f"the run in {folder} was started with other settings: {', '.join(changed)} differ"
        )
    file = folder / values["tensors"]
    try:
        held = load_file(file)
    except Exception as error:
        raise CheckpointError(f"{file} cannot be read: {error}") from None
    wanted = _tensors(trainer)
    if set(held) != set(wanted):
        names = sorted(set(held) ^ set(wanted))
        raise CheckpointError(f"{file} and the settings disagree about {names[0]}")
    for name, value in wanted.items():
        if held[name].shape != value.shape:
            raise CheckpointError(
                f"{file}: {name} has the shape {tuple(held[name].shape)}, "
                f"the settings ask for {tuple(value.shape)}"
            )
        value.detach().copy_(held[name])
    trainer.steps_done, trainer.stream.place = values["steps_done"], values["place"]
    history = History(**values["history"])
    history.pending = [(loss, prediction) for loss, prediction in history.pending]
    return history
