"""One training run from settings and documents to a trained model, saved as it goes.

Ctrl-C saves the steps that were done and ends the run; ``resume`` goes on from there.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path

from abyssal.errors import CheckpointError
from abyssal.train.documents import TokenStream
from abyssal.train.settings import Settings
from abyssal.train.state import STATE, History, load_state, save_state
from abyssal.train.trainer import StepReport, Trainer

#: Seconds between two saved states.
SAVE_SECONDS = 180.0
OnStep = Callable[[StepReport, History], None]


def train(
    settings: Settings,
    documents: Sequence[Sequence[int]],
    folder: Path,
    *,
    resume: bool = False,
    on_step: OnStep | None = None,
    save_seconds: float = SAVE_SECONDS,
) -> tuple[Trainer, History]:
    """Train, or go on training, until the settings' last step.

    Args:
        settings: What to do.
        documents: Token ids of each document, without control tokens.
        folder: Where the state is kept.
        resume: Go on from the state in ``folder``.
        on_step: Called after every step.
        save_seconds: Seconds between two saved states.

    Returns:
        The trainer, whose model is done, and the history.

    Raises:
        CheckpointError: ``resume`` without a usable state, or a state where a new run was to start.
        KeyboardInterrupt: the steps that were done have been saved.
        FloatingPointError: a gradient is not finite; the last saved state is the one before.
    """
    config = settings.architecture
    stream = TokenStream(
        documents, bos_id=config["bos_token_id"], eos_id=config["eos_token_id"], seed=settings.seed
    )
    trainer, history = Trainer(settings, stream), History()
    if resume:
        history = load_state(trainer, folder)
    elif (folder / STATE).exists():
        raise CheckpointError(f"{folder} holds a run already: resume it or name another folder")
    saved = began = time.perf_counter()
    processor = time.process_time()
    try:
        with trainer.running():
            while trainer.steps_done < settings.steps:
                report = trainer.step()
                now, used = time.perf_counter(), time.process_time()
                history.wall_seconds += now - began
                history.processor_seconds += used - processor
                began, processor = now, used
                history.add(report, stream.place)
                if on_step:
                    on_step(report, history)
                if now - saved > save_seconds:
                    save_state(trainer, history, folder)
                    saved = now
    except KeyboardInterrupt:
        # An interrupted update has changed some weights and not others: the state before it, on
        # the disk, is the one to go on from.
        if trainer.consistent:
            save_state(trainer, history, folder)
        raise
    save_state(trainer, history, folder)
    return trainer, history
