"""The DeepSeek decoder: V2, V3 and the look-alikes with the same layers.

Each layer adds attention, then a dense or a sparse feed-forward part, to a residual stream, which
is f32 whatever the weights are: its sum of many small parts is what bf16 loses most of. One
module serves the engine (``forward``: a flat batch over paged latent caches) and training
(``forward_sequence``: whole sequences, differentiable).

Source: DeepSeek-V2 (arXiv 2405.04434), DeepSeek-V3 (arXiv 2412.19437); the prediction layer as
section 2.2 of the latter, on the hidden state after the final norm, as transformers
runs it.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import nn

from abyssal.models.layer import DecoderLayer
from abyssal.models.shape import ModelShape
from abyssal.models.watch import OnLayer
from abyssal.nn import Batch, Linear, RMSNorm, RotaryEmbedding
from abyssal.reference.checks import row_width


class PredictionLayer(nn.Module):
    """A multi-token-prediction layer: a hidden state and the next token give the one after it.

    Args:
        config: The architecture.
        index: Number of the layer, counted on from the main ones.
        dtype: Type of plain weights.
    """

    def __init__(self, config: ModelShape, index: int, *, dtype: torch.dtype | None = None) -> None:
        super().__init__()
        size, eps = config.hidden_size, config.rms_eps
        self.embedding_norm = RMSNorm(size, eps, dtype=dtype)
        self.hidden_norm = RMSNorm(size, eps, dtype=dtype)
        self.projection = Linear(2 * size, size, dtype=dtype)
        self.block = DecoderLayer(config, index, sparse=config.num_experts > 0, dtype=dtype)
        self.norm = RMSNorm(size, eps, dtype=dtype)

    def forward(
        self, embedded: torch.Tensor, hidden: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor
    ) -> torch.Tensor:
        """Run whole sequences.

        Args:
            embedded: ``[sequences, tokens, hidden_size]``, the embedding of each next token.
            hidden: Like ``embedded``: the main model's hidden state after its final norm, or the
                result of the prediction layer before this one.
            cos: f32 ``[tokens, rope_dim / 2]``.
            sin: Like ``cos``.

        Returns:
            Normalized hidden states like ``hidden``, ready for the head.
        """
        pair = torch.cat((self.embedding_norm(embedded), self.hidden_norm(hidden)), dim=-1)
        stream = self.projection(pair.to(self.block.dtype)).float()
        output: torch.Tensor = self.norm(self.block(stream, cos, sin))
        return output


class DeepseekModel(nn.Module):
    """Embedding, decoder layers, final norm and head.

    Args:
        config: The architecture.
        dtype: Type of plain weights and of activations; the architecture's where not given.
        num_mtp_layers: Prediction layers to build behind the main ones.

    Guarantees: the weights have no values until they are loaded or initialized; a tied head is the
    embedding's own parameter; a step changes nothing but the caches that it is given.
    """

    def __init__(
        self, config: ModelShape, *, dtype: torch.dtype | None = None, num_mtp_layers: int = 0
    ) -> None:
        super().__init__()
        self.config = config
        dtype = dtype or config.dtype
        # ``nn.Embedding(...)`` would draw random numbers, for seconds on the meta device.
        table = torch.empty(config.vocab_size, config.hidden_size, dtype=dtype)
        self.embed = nn.Embedding(config.vocab_size, config.hidden_size, _weight=table)
        self.layers = nn.ModuleList(
            DecoderLayer(config, index, sparse=sparse, dtype=dtype)
            for index, sparse in enumerate(config.moe_layers)
        )
        self.norm = RMSNorm(config.hidden_size, config.rms_eps, dtype=dtype)
        self.head = Linear(config.hidden_size, config.vocab_size, dtype=dtype)
        if config.tie_embeddings:
            self.head.weight = cast(nn.Parameter, self.embed.weight)
        # Rotary tables are computed even where the weights are only planned (the meta device).
        with torch.device("cpu"):
            self.rotary = RotaryEmbedding(config.rope_dim, config.rope_theta, config.yarn)
        self.mtp = nn.ModuleList(
            PredictionLayer(config, config.num_layers + depth, dtype=dtype)
            for depth in range(num_mtp_layers)
        )

    def row_bytes(self, dtype: torch.dtype) -> int:
        """Return the bytes that a token takes in one layer's cache of this type."""
        return self._row_width(dtype) * dtype.itemsize

    def _row_width(self, dtype: torch.dtype) -> int:
        return row_width(dtype, self.config.kv_lora_rank, self.config.rope_dim)

    @property
    def dtype(self) -> torch.dtype:
        """Type of the activations."""
        return self.norm.weight.dtype

    def new_caches(self, num_slots: int, dtype: torch.dtype | None = None) -> list[torch.Tensor]:
        """Make each layer's cache for ``num_slots`` tokens; memory is touched when used.

        Args:
            num_slots: Rows.
            dtype: Type of the rows, or ``torch.uint8`` for rows in FP8
                (``abyssal.reference.latents``); the activations' where not given.

        Returns:
            ``[num_slots, width]`` for each layer.
        """
        kind = dtype or self.dtype
        shape = (num_slots, self._row_width(kind))
        return [
            torch.empty(shape, dtype=kind, device=self.embed.weight.device) for _ in self.layers
        ]

    def forward(
        self,
        batch: Batch,
        caches: list[torch.Tensor],
        select: torch.Tensor | None = None,
        on_layer: OnLayer | None = None,
    ) -> torch.Tensor:
        """Run one step of a flat batch.

        Args:
            batch: The tokens and where they stand.
            caches: One a layer, as ``new_caches`` makes them; this step's rows are written.
            select: int64 ``[n]``, the tokens whose logits are wanted; None for all of them.
            on_layer: Sees what each layer computes, to find where a value stops being finite.

        Returns:
            f32 ``[n, vocab_size]``.
        """
        hidden = self.embed(batch.token_ids).float()
        cos, sin = self.rotary(batch.positions)
        for layer, cache in zip(self.layers, caches, strict=True):
            hidden = layer(hidden, cos, sin, batch, cache, on_layer)
        if select is not None:
            # Indexing with brackets would wake torch's threads, which then spin beside ours.
            hidden = hidden.index_select(0, select)
        return self.logits(self.norm(hidden))

    def forward_sequence(
        self, token_ids: torch.Tensor, on_layer: OnLayer | None = None
    ) -> torch.Tensor:
        """Run whole sequences from position 0, differentiable and without a cache.

        Args:
            token_ids: int64 ``[sequences, tokens]``.
            on_layer: As in ``forward``; expert choices are flattened over sequences and tokens.

        Returns:
            Hidden states after the final norm, ``[sequences, tokens, hidden_size]``.
        """
        hidden = self.embed(token_ids).float()
        cos, sin = self.rotary(torch.arange(token_ids.shape[1], device=token_ids.device))
        for layer in self.layers:
            hidden = layer(hidden, cos, sin, on_layer=on_layer)
        normalized: torch.Tensor = self.norm(hidden)
        return normalized

    def predict_further(
        self, hidden: torch.Tensor, next_token_ids: torch.Tensor, depth: int = 0
    ) -> torch.Tensor:
        """Run a prediction layer.

        Args:
            hidden: ``[sequences, tokens, hidden_size]``, of ``forward_sequence`` or ``depth - 1``.
            next_token_ids: int64 ``[sequences, tokens]``, the token ``depth + 1`` after each.
            depth: Which prediction layer.

        Returns:
            Normalized hidden states like ``hidden``; ``logits`` scores the token after the next.
        """
        tables = self.rotary(torch.arange(hidden.shape[1], device=hidden.device))
        output: torch.Tensor = self.mtp[depth](self.embed(next_token_ids), hidden, *tables)
        return output

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Score the vocabulary: f32 ``[..., vocab_size]`` of normalized ``hidden``."""
        # On the compiled path scores are not rounded on their way.
        scores: torch.Tensor = self.head(hidden.to(self.dtype), torch.float32)
        return scores
