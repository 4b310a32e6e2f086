"""From a scheduled step to logits: builds the flat batch and calls the model."""

from __future__ import annotations

from itertools import accumulate

import torch

from abyssal.engine.scheduler import Step
from abyssal.engine.sequence import Sequence
from abyssal.models.deepseek import DeepseekModel
from abyssal.nn import SEGMENT, Batch, Span

#: What a layer reports, in words.
PARTS = {
    "attention": "attention",
    "expert_weights": "the router",
    "feed_forward": "the feed-forward part",
    "output": "the residual stream",
}


class Runner:
    """Owns the rows of the latent cache and runs the model over them.

    Args:
        model: The model.
        num_pages: Pages of the cache.
        page_size: Tokens in a page.
        dtype: Type of the cached rows.
    """

    def __init__(
        self, model: DeepseekModel, num_pages: int, page_size: int, dtype: torch.dtype
    ) -> None:
        self.model, self.page_size = model, page_size
        self.caches = model.new_caches(num_pages * page_size, dtype)
        self.device = model.embed.weight.device

    def run(self, step: Step) -> torch.Tensor:
        """Compute a step.

        Returns:
            f32 ``[rows, vocab]`` on the CPU: one row for each sequence whose known tokens are all
            computed now, all rows of the chunk for a request for logits; in the order of the step.
        """
        for cache in self.caches:
            pages = cache.view(-1, self.page_size, cache.shape[-1])
            for source, target in step.copies:
                pages[target] = pages[source]
        select: list[int] = []
        ends = accumulate(step.counts)
        for sequence, count, end in zip(step.sequences, step.counts, ends, strict=True):
            if sequence.request.logits is not None:
                select.extend(range(end - count, end))
            elif count == sequence.waiting_tokens:
                select.append(end - 1)
        starts = [sequence.computed for sequence in step.sequences]
        batch = self._batch(step.sequences, starts, step.counts, step.block_tables)
        rows = torch.tensor(select, dtype=torch.int64, device=self.device)
        logits: torch.Tensor = self.model(batch, self.caches, rows)
        return logits.to("cpu", torch.float32)

    def first_bad_layer(self, sequence: Sequence) -> str:
        """Compute a sequence again and name the first layer with a result that is not finite.

        Works on rows of its own, so that pages shared with other sequences stay as they are.

        Args:
            sequence: A sequence of which one of the computed tokens gave such a result.
        """
        found: list[str] = []

        def look(layer: int, name: str, tensor: torch.Tensor) -> None:
            bad = tensor.is_floating_point() and not bool(tensor.isfinite().all())
            if bad and not found:
                found.append(f"layer {layer} ({PARTS.get(name, name)})")

        pages = -(-sequence.computed // self.page_size)
        table = torch.arange(pages, dtype=torch.int32)[None]
        caches = self.model.new_caches(pages * self.page_size, self.caches[0].dtype)
        nothing = torch.empty(0, dtype=torch.int64, device=self.device)
        for start in range(0, sequence.computed, SEGMENT):
            count = min(SEGMENT, sequence.computed - start)
            batch = self._batch([sequence], [start], [count], table)
            if not bool(self.model.embed(batch.token_ids).isfinite().all()):
                return "the embedding"
            self.model(batch, caches, nothing, look)
            if found:
                return found[0]
        return "the output head"

    def _batch(
        self,
        sequences: list[Sequence],
        starts: list[int],
        counts: list[int],
        block_tables: torch.Tensor,
    ) -> Batch:
        """Lay the tokens ``[start, start + count)`` of each sequence one after the other."""
        token_ids: list[int] = []
        positions, slots, spans = [], [], []
        for sequence, start, count, table in zip(
            sequences, starts, counts, block_tables, strict=False
        ):
            place = torch.arange(start, start + count)
            page = table[place // self.page_size].long()
            positions.append(place)
            slots.append(page * self.page_size + place % self.page_size)
            used = -(-(start + count) // self.page_size)
            prompt_tokens = sequence.request.prompt_tokens
            pages = table[:used].to(self.device)
            spans.append(Span(len(token_ids), count, start, prompt_tokens, pages))
            token_ids += sequence.token_ids[start : start + count]
        return Batch(
            torch.tensor(token_ids, dtype=torch.int64, device=self.device),
            torch.cat(positions).to(self.device),
            torch.cat(slots).to(self.device),
            tuple(spans),
            self.page_size,
        )
