"""The training loop: gradients in two lanes, two optimizers, balanced experts.

A step's microbatches are dealt to two lanes, each a thread that computes with one core; gradients
are added within a lane in order and then lane by lane, so the result depends neither on timing nor
on the number of cores. One thread per lane is faster than two threads per operation: the small
operations of a small model leave the second core idle.

After each step the correction bias of every router moves by a fixed amount toward balance: up where
an expert saw fewer tokens than the mean, down where it saw more (arXiv 2412.19437, section 2.1.2).
"""

from __future__ import annotations

import ctypes
import math
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from abyssal.train import fused
from abyssal.train.documents import TokenStream
from abyssal.train.model import TrainingModel
from abyssal.train.optimizer import Optimizer
from abyssal.train.parts import Sparse
from abyssal.train.settings import Settings

LANES = 2


@dataclass(frozen=True)
class StepReport:
    """What one step shows.

    Attributes:
        step: Steps done, this one included.
        loss: Mean cross entropy of the next token, in nats.
        prediction_loss: The same of the prediction layer; NaN without one.
        busiest: For each routed layer in turn, the busiest expert's load over the mean.
    """

    step: int
    loss: float
    prediction_loss: float
    busiest: tuple[float, ...]


@dataclass
class _Work:
    """What one lane brings back."""

    gradients: list[torch.Tensor | None]
    loss: float = 0.0
    prediction_loss: float = 0.0
    loads: torch.Tensor | None = None


class Trainer:
    """A model in training.

    Args:
        settings: Everything that decides the result.
        stream: Where the tokens come from.

    Guarantees: on one machine and torch version, a run that was saved and loaded at any step goes
        on bit for bit as if it had not been interrupted.
    """

    def __init__(self, settings: Settings, stream: TokenStream) -> None:
        self.settings, self.stream = settings, stream
        self.model = TrainingModel(settings.architecture, seed=settings.seed)
        self.optimizer = Optimizer(self.model, settings, LANES)
        self.steps_done = 0
        self._stop = threading.Event()
        #: Whether the weights are those between two steps; false after an interrupted update.
        self.consistent = True

    @contextmanager
    def running(self) -> Iterator[None]:
        """Hold the lanes' threads, and give each one core; everything is put back at the end."""
        threads = torch.get_num_threads()
        _keep_freed_memory()
        self._stop.clear()
        torch.set_num_threads(1)
        # Denormal numbers appear in the gradients of sure predictions and cost a hundred times as
        # much as others.
        self.lanes = ThreadPoolExecutor(
            LANES, "lane", initializer=torch.set_flush_denormal, initargs=(True,)
        )
        try:
            yield
        finally:
            # After Ctrl-C the lanes are in the middle of a step that nobody waits for.
            self._stop.set()
            self.lanes.shutdown(wait=True, cancel_futures=True)
            torch.set_num_threads(threads)

    def step(self) -> StepReport:
        """Do one optimizer step; only within ``running``."""
        settings, step = self.settings, self.steps_done
        length = settings.length(step)
        place = self.stream.place
        try:
            batches = [
                self.stream.take(settings.microbatch_tokens // length, length)
                for _ in range(settings.num_microbatches)
            ]
            done = list(self.lanes.map(lambda lane: self._gradients(lane, batches), range(LANES)))
            gradients = self._add(done)
        except BaseException:
            self.stream.place = place
            raise
        share = settings.rate(step)
        self.consistent = False
        moved = [
            self.lanes.submit(self.optimizer.step_matrices, lane, gradients, share)
            for lane in range(LANES)
        ]
        moved.append(self.lanes.submit(self.optimizer.step_others, gradients, share, step + 1))
        for each in moved:
            each.result()
        loads = torch.stack([each.loads for each in done if each.loads is not None]).sum(0)
        busiest = self.balance(loads, share)
        self.steps_done += 1
        self.consistent = True
        has_prediction = self.model.prediction is not None and settings.prediction_share > 0
        return StepReport(
            self.steps_done,
            sum(each.loss for each in done),
            sum(each.prediction_loss for each in done) if has_prediction else math.nan,
            busiest,
        )

    def _gradients(self, lane: int, batches: list[torch.Tensor]) -> _Work:
        """Add up the gradients of every ``LANES``-th microbatch."""
        parameters = list(self.model.parameters())
        work = _Work([None] * len(parameters))
        for index in range(lane, len(batches), LANES):
            total, loads = self._loss(index, batches[index], work)
            found = torch.autograd.grad(total, parameters, allow_unused=True)
            work.gradients = [
                new if old is None else old if new is None else old.add_(new)
                for old, new in zip(work.gradients, found, strict=True)
            ]
            work.loads = loads if work.loads is None else work.loads + loads
        return work

    def _loss(
        self, index: int, tokens: torch.Tensor, work: _Work
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the loss of one microbatch, and the loads of the routed layers."""
        settings, model, step = self.settings, self.model, self.steps_done
        sequences, length = tokens.shape[0], tokens.shape[1] - 2
        seed = (settings.seed * 1_000_003 + step) * 1024 + index
        run = model.begin(
            length,
            dropout=settings.dropout * settings.dropped(step),
            generator=torch.Generator().manual_seed(seed),
            stop=self._stop,
            balance=settings.balance_loss > 0,
        )
        scale = 1 / settings.batch_tokens
        dropped = settings.embedding_dropout * settings.dropped(step)
        hidden = model.hidden(tokens[:, :-2], run, embedding_dropout=dropped)
        total = fused.cross_entropy(
            hidden.flatten(0, 1), model.head_weight, tokens[:, 1:-1].flatten(), scale
        )
        work.loss += float(total.detach())
        count = math.ceil(settings.prediction_share * sequences)
        if model.prediction is not None and count:
            before, after = settings.prediction_weight
            weight = before if step < settings.prediction_switch * settings.steps else after
            embedded = F.embedding(tokens[:count, 1:-1], model.embed)
            predicted = model.prediction(embedded, hidden[:count], run)
            loss = fused.cross_entropy(
                predicted.flatten(0, 1),
                model.head_weight,
                tokens[:count, 2:].flatten(),
                scale * sequences / count,
            )
            work.prediction_loss += float(loss.detach())
            total = total + weight * loss
        if run.balance_losses:
            share = settings.balance_loss / settings.num_microbatches
            total = total + share * torch.stack(run.balance_losses).sum()
        loads = torch.stack(run.loads) if run.loads else torch.zeros(0, 0, dtype=torch.long)
        return total, loads

    def _add(self, done: list[_Work]) -> dict[str, torch.Tensor]:
        """Add the lanes' gradients.

        Raises:
            FloatingPointError: one is not finite; nothing has been updated then.
        """
        gradients = {}
        for index, (name, value) in enumerate(self.model.named_parameters()):
            parts = [each.gradients[index] for each in done]
            held = [part for part in parts if part is not None]
            gradients[name] = held[0] if held else torch.zeros_like(value)
            for part in held[1:]:
                gradients[name].add_(part)
        for name, gradient in gradients.items():
            if not math.isfinite(float(gradient.sum())):
                raise FloatingPointError(
                    f"the gradient of {name} in step {self.steps_done + 1} is not finite: "
                    "lower the learning rates"
                )
        return gradients

    def balance(self, loads: torch.Tensor, share: float) -> tuple[float, ...]:
        """Move the correction biases toward balance.

        Args:
            loads: int64 ``[routed layers, experts]``, tokens that chose each expert in this step.
            share: Of ``balance_rate``.

        Returns:
            For each routed layer, the busiest expert's load over the mean.
        """
        busiest = []
        routed: list[Sparse] = [part for _, part in self.model.routed()]
        for part, load in zip(routed, loads.double(), strict=False):
            mean = load.mean()
            direction = torch.sign(mean - load).float()
            part.correction_bias.add_(direction, alpha=self.settings.balance_rate * share)
            busiest.append(float(load.max() / mean))
        return tuple(busiest)


def bits_per_byte(trainer: Trainer, texts: list[tuple[list[int], int]]) -> float:
    """Score texts, each from its beginning; only within ``Trainer.running``.

    Args:
        trainer: Holds the model and its control tokens.
        texts: For each text its token ids, without control tokens, and its UTF-8 bytes.
    """
    model = trainer.model
    begin = model.config["bos_token_id"]

    @torch.no_grad()
    def nats(ids: list[int]) -> float:
        tokens = torch.tensor([begin, *ids])
        hidden = model.hidden(tokens[None, :-1], model.begin(len(ids)))[0]
        return float(F.cross_entropy(hidden @ model.head_weight.t(), tokens[1:], reduction="sum"))

    total = math.fsum(trainer.lanes.map(nats, [ids for ids, _ in texts]))
    return total / math.log(2) / sum(count for _, count in texts)


def _keep_freed_memory() -> None:
    """Ask glibc to keep freed blocks instead of returning each large one to the kernel.

    Without it, a third of the time goes to the page faults of new activations. Elsewhere than on
    glibc nothing happens.
    """
    largest_mapped, trim = -3, -1
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return
    mallopt(largest_mapped, 1 << 30)
    mallopt(trim, (1 << 31) - 1)
