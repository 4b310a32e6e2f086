"""An endless stream of training tokens, and the place in it that a resumed run goes on from.

Documents stand behind one another in a new order each epoch, each between the beginning and the end
token. The stream is a function of (documents, seed) alone and its place is one number, so that
nothing else has to be saved.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch


class TokenStream:
    """Cut the shuffled documents into sequences.

    Args:
        documents: Token ids of each document, without control tokens.
        bos_id: Put before each document.
        eos_id: Put after each document.
        seed: Of the order.
        place: Tokens already given out.

    Raises:
        ValueError: no document holds a token.
    """

    def __init__(
        self,
        documents: Sequence[Sequence[int]],
        *,
        bos_id: int,
        eos_id: int,
        seed: int,
        place: int = 0,
    ) -> None:
        self.documents = [torch.tensor([bos_id, *ids, eos_id]) for ids in documents if len(ids)]
        if not self.documents:
            raise ValueError("there is nothing to train on: no document holds a token")
        self.epoch_tokens = sum(len(each) for each in self.documents)
        self.seed, self.place = seed, place
        self._epoch, self._tokens = -1, torch.zeros(0, dtype=torch.long)

    def epoch(self, number: int) -> torch.Tensor:
        """Return the tokens of one epoch in its own order."""
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + number)
        order = torch.randperm(len(self.documents), generator=generator).tolist()
        return torch.cat([self.documents[index] for index in order])

    def read(self, begin: int, count: int) -> torch.Tensor:
        """Return the tokens ``[begin, begin + count)`` of the stream."""
        parts = []
        while count:
            number, offset = divmod(begin, self.epoch_tokens)
            if number != self._epoch:
                self._epoch, self._tokens = number, self.epoch(number)
            part = self._tokens[offset : offset + count]
            parts.append(part)
            begin, count = begin + len(part), count - len(part)
        return torch.cat(parts)

    def take(self, sequences: int, length: int) -> torch.Tensor:
        """Return the next ``sequences`` pieces, int64 ``[sequences, length + 2]``.

        The two tokens more are targets: of the last position, and of its prediction layer. They
        come again as the first tokens of the next piece.
        """
        rows = []
        for _ in range(sequences):
            rows.append(self.read(self.place, length + 2))
            self.place += length
        return torch.stack(rows)
