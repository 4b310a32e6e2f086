"""What packing a checkpoint costs: the packed model's predictions beside the source's on real text.

    perplexity        2 to the mean of -log2 p(token | context), of each model
    divergence (KL)   mean of sum p log2(p / q), p the source's prediction, q the packed one's
    agreement         share of tokens after which both give the same token the largest probability

Both see the same windows of the same tokens (``evaluate``), one window at a time.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from abyssal.cli.evaluate import cross_entropy_bits, default_window, perplexity, windows

if TYPE_CHECKING:
    import torch


@dataclass
class Quality:
    """Sums over the tokens that were scored.

    Attributes:
        num_tokens: tokens with a prediction.
        source_bits: sum of -log2 p of the source.
        packed_bits: the same of the packed model.
        divergence_bits: sum of the divergences.
        num_agreed: tokens after which the likeliest token is the same.
    """

    num_tokens: int = 0
    source_bits: float = 0.0
    packed_bits: float = 0.0
    divergence_bits: float = 0.0
    num_agreed: int = 0

    def add(self, source: torch.Tensor, packed: torch.Tensor, targets: list[int]) -> None:
        """Count a window: logits ``[n, vocab]`` of both and the ``n`` tokens that followed."""
        self.num_tokens += len(targets)
        self.source_bits += cross_entropy_bits(source, targets)
        self.packed_bits += cross_entropy_bits(packed, targets)
        p, q = source.float().log_softmax(dim=1), packed.float().log_softmax(dim=1)
        self.divergence_bits += float((p.exp() * (p - q)).double().sum()) / math.log(2.0)
        self.num_agreed += int((source.argmax(dim=1) == packed.argmax(dim=1)).sum())

    def figures(self) -> dict[str, Any]:
        """Return the record for JSON."""
        return {
            "tokens": self.num_tokens,
            "source_perplexity": perplexity(self.source_bits, self.num_tokens),
            "perplexity": perplexity(self.packed_bits, self.num_tokens),
            "kl_bits_per_token": self.divergence_bits / self.num_tokens,
            "agreement": self.num_agreed / self.num_tokens,
        }

    def rows(self) -> list[tuple[str, str]]:
        """Return the lines of the report."""
        figures = self.figures()
        return [
            (
                "perplexity",
                f"{figures['perplexity']:.4f}, the source's {figures['source_perplexity']:.4f}, "
                f"over {self.num_tokens:,} tokens",
            ),
            ("divergence", f"{figures['kl_bits_per_token']:.5f} bits per token (KL)"),
            ("agreement", f"{figures['agreement']:.2%} of the likeliest tokens"),
        ]


def compare(
    source: Path, packed: Path, texts: list[tuple[str, str]], threads: int | None
) -> Quality:
    """Score texts with both models.

    Args:
        source: the checkpoint before packing.
        packed: the one after.
        texts: names and texts.
        threads: as ``--threads``.

    Raises:
        ValueError: texts without a token that has another before it.
    """
    from abyssal.cli.options import open_model

    models = [open_model(str(folder), None, threads) for folder in (source, packed)]
    shape = models[0].config
    window = default_window(shape.max_position, shape.vocab_size)
    tokenizer = models[0].require_tokenizer()
    quality = Quality()
    for _, text in texts:
        ids = tokenizer.encode(text, parse_special=False)
        if tokenizer.add_bos_token and tokenizer.bos_token_id is not None:
            ids = [tokenizer.bos_token_id, *ids]
        for begin, end, new in windows(len(ids), window, window // 2):
            first = max(new, 1)
            if first == end:
                continue
            rows = slice(first - 1 - begin, end - 1 - begin)
            one, other = (model.logits(ids[begin:end])[rows] for model in models)
            quality.add(one, other, ids[first:end])
    if quality.num_tokens == 0:
        raise ValueError("the texts hold no token with another before it: nothing was compared")
    return quality
