"""Run a model over one sequence step by step, as an engine would, without an engine."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from abyssal.models.deepseek import DeepseekModel
from abyssal.models.watch import OnLayer
from abyssal.nn import Batch, Span


class Sequence:
    """One sequence in a paged cache of its own, its pages deliberately out of order.

    Args:
        model: The model.
        prompt_tokens: Length of the prompt; it decides which form of attention a token uses.
        max_tokens: Room for prompt and generated tokens together.
        page_size: Tokens a page.
        cache_dtype: Type of the cache, as for ``new_caches``; the model's where not given.
    """

    def __init__(
        self,
        model: DeepseekModel,
        prompt_tokens: int,
        max_tokens: int,
        *,
        page_size: int = 64,
        cache_dtype: torch.dtype | None = None,
    ) -> None:
        num_pages = -(-max_tokens // page_size)
        self.model, self.prompt_tokens, self.page_size = model, prompt_tokens, page_size
        self.caches = model.new_caches(num_pages * page_size, cache_dtype)
        for cache in self.caches:
            # A row that is read before it is written shows: bytes of 255 are NaN in each part.
            cache.fill_(255 if cache.dtype == torch.uint8 else float("nan"))
        self.block_table = torch.arange(num_pages, dtype=torch.int32).flip(0)
        self.position = 0

    def step(self, token_ids: Iterable[int], on_layer: OnLayer | None = None) -> torch.Tensor:
        """Append tokens and return the logits after each of them, f32 ``[tokens, vocab]``."""
        ids = torch.tensor(list(token_ids), dtype=torch.int64)
        positions = torch.arange(self.position, self.position + len(ids))
        pages = self.block_table[positions // self.page_size].long()
        slots = pages * self.page_size + positions % self.page_size
        span = Span(0, len(ids), self.position, self.prompt_tokens, self.block_table)
        batch = Batch(ids, positions, slots, (span,), self.page_size)
        self.position += len(ids)
        with torch.no_grad():
            logits: torch.Tensor = self.model(batch, self.caches, on_layer=on_layer)
        return logits
