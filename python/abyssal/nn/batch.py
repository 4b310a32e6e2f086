"""One engine step as a flat batch of tokens, and where each sequence's tokens stand in it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch.nn.utils.rnn import pad_sequence

#: Tokens of a full prompt segment, counted from position 0, use the expanded form of attention.
SEGMENT = 256


@dataclass(frozen=True)
class Span:
    """The tokens that one sequence brings to a step.

    Attributes:
        start: Offset of the span's first token in the flat batch.
        length: Number of tokens, at least 1.
        position: Position of the span's first token in its sequence.
        prompt_tokens: Length of the sequence's prompt; it decides the attention form of each token.
        block_table: int32 ``[pages]``, the sequence's page ids in order of position.
    """

    start: int
    length: int
    position: int
    prompt_tokens: int
    block_table: torch.Tensor

    @property
    def expanded_tokens(self) -> int:
        """How many of the span's first tokens belong to full prompt segments.

        The form of attention belongs to the token, never to the step, so that the cut of a prompt
        into chunks does not decide how a token is computed.
        """
        boundary = self.prompt_tokens // SEGMENT * SEGMENT
        return min(max(boundary - self.position, 0), self.length)


@dataclass(frozen=True)
class Batch:
    """A flat batch of tokens of several sequences.

    Attributes:
        token_ids: int64 ``[tokens]``.
        positions: int64 ``[tokens]``, each token's position in its own sequence.
        slots: int64 ``[tokens]``, each token's row of the cache: ``page * page_size + offset``.
        spans: One entry a sequence, in the order of the flat batch, covering it without gaps.
        page_size: Tokens a page.
    """

    token_ids: torch.Tensor
    positions: torch.Tensor
    slots: torch.Tensor
    spans: tuple[Span, ...]
    page_size: int

    @cached_property
    def layout(self) -> tuple[torch.Tensor, torch.Tensor]:
        """What attention needs to know of the spans, made once for all layers.

        Returns:
            int32 ``[sequences, 4]`` in CPU memory (start, length, position and expanded tokens of
            each), and int32 ``[sequences, pages]``, their block tables filled up with zeros.
        """
        numbers = [
            (span.start, span.length, span.position, span.expanded_tokens) for span in self.spans
        ]
        tables = [span.block_table for span in self.spans]
        spans = torch.tensor(numbers, dtype=torch.int32).view(-1, 4)
        if not tables:
            return spans, torch.empty((0, 0), dtype=torch.int32)
        return spans, pad_sequence(tables, batch_first=True).to(torch.int32)
