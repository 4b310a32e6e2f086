"""One decoder layer, as modules and as one call of the compiled code."""

from __future__ import annotations

from typing import cast

import torch
from torch import nn

from abyssal import ops
from abyssal.models.shape import ModelShape
from abyssal.models.watch import OnLayer, watched
from abyssal.models.whole import hand_over, takes
from abyssal.nn import MLA, MLP, Batch, MoE, RMSNorm, Router
from abyssal.nn.kept import Kept


class DecoderLayer(nn.Module):
    """One layer: attention and a feed-forward part, normalized before and added after.

    Args:
        config: The architecture.
        index: Number of the layer, for ``on_layer``.
        sparse: Whether the feed-forward part is a mixture of experts (``moe``) or dense (``mlp``).
        dtype: Type of plain weights.

    Guarantees: on a CPU, where no gradient is recorded and nobody looks at the parts, a layer over
    a cache is one call (``path`` tells), with the bits that the modules give one after the other.
    """

    def __init__(
        self, config: ModelShape, index: int, *, sparse: bool, dtype: torch.dtype | None = None
    ) -> None:
        super().__init__()
        self.index = index
        self._kept: Kept[ops.DecoderLayer] | None = None
        self.input_norm = RMSNorm(config.hidden_size, config.rms_eps, dtype=dtype)
        self.attention = MLA(
            config.hidden_size,
            config.num_heads,
            q_lora_rank=config.q_lora_rank,
            kv_lora_rank=config.kv_lora_rank,
            nope_dim=config.nope_dim,
            rope_dim=config.rope_dim,
            v_dim=config.v_dim,
            scale=config.softmax_scale,
            latent_eps=config.latent_eps,
            bias=config.attention_bias,
            dtype=dtype,
        )
        self.post_norm = RMSNorm(config.hidden_size, config.rms_eps, dtype=dtype)
        self.mlp: MLP | None = None
        self.moe: MoE | None = None
        if not sparse:
            self.mlp = MLP(config.hidden_size, config.dense_inner, dtype=dtype)
            return
        router = Router(
            config.hidden_size,
            config.num_experts,
            top_k=config.top_k,
            scoring=config.scoring,
            num_groups=config.num_groups,
            top_groups=config.top_groups,
            group_score=config.group_score,
            normalize=config.normalize,
            scale=config.routed_scale,
            correction_bias=config.correction_bias,
            dtype=dtype,
        )
        self.moe = MoE(
            router,
            config.num_experts,
            config.hidden_size,
            config.expert_inner,
            config.num_shared_experts * config.expert_inner,
            dtype=dtype,
        )

    @property
    def dtype(self) -> torch.dtype:
        """Type of what goes into attention and the feed-forward part."""
        return self.input_norm.weight.dtype

    def _compiled(self, hidden: torch.Tensor, cache: torch.Tensor) -> ops.DecoderLayer | None:
        """Return the whole layer as the compiled code has it, if that can compute ``hidden``."""
        if not takes(hidden, cache):
            return None
        if self._kept is None or not self._kept.valid:
            self._kept = hand_over(self)
        return None if self._kept.hooked else self._kept.compiled

    def path(self, hidden: torch.Tensor, cache: torch.Tensor) -> str:
        """Name what computes a step: ``"compiled"`` (one call) or ``"modules"``, one by one."""
        return "modules" if self._compiled(hidden, cache) is None else "compiled"

    def forward(
        self,
        hidden: torch.Tensor,
        cos: torch.Tensor,
        sin: torch.Tensor,
        batch: Batch | None = None,
        cache: torch.Tensor | None = None,
        on_layer: OnLayer | None = None,
    ) -> torch.Tensor:
        """Map the stream before the layer to the stream after it.

        Args:
            hidden: f32 ``[tokens, hidden_size]`` with ``batch`` and ``cache``, else f32
                ``[sequences, tokens, hidden_size]``.
            cos: f32 ``[tokens, rope_dim / 2]``.
            sin: Like ``cos``.
            batch: Where each sequence's tokens stand; None runs whole sequences.
            cache: This layer's rows, as ``DeepseekModel.new_caches`` makes them; written in place.
            on_layer: Sees what each part adds.

        Returns:
            A tensor like ``hidden``.
        """
        if batch is not None and cache is not None and on_layer is None:
            whole = self._compiled(hidden, cache)
            if whole is not None:
                layout, page_size = (batch.slots, *batch.layout), batch.page_size
                return whole(
                    hidden, cos, sin, cache, *layout, page_size=page_size, dtype=self.dtype
                )
        normalized = self.input_norm(hidden, self.dtype)
        if batch is None or cache is None:
            added = self.attention.forward_sequence(normalized, cos, sin)
        else:
            added = self.attention(normalized, cos, sin, batch, cache)
        hidden = hidden + added
        if on_layer:
            on_layer(self.index, "attention", added)
        normalized = self.post_norm(hidden, self.dtype)
        if self.moe is None:
            added = cast(MLP, self.mlp)(normalized)
        else:
            with watched(self.moe.router, self.index, on_layer):
                added = self.moe(normalized.flatten(0, -2)).view_as(hidden)
        hidden = hidden + added
        if on_layer:
            on_layer(self.index, "feed_forward", added)
            on_layer(self.index, "output", hidden)
        return hidden
