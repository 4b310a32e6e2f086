"""Multi-head latent attention over a paged latent cache, and over whole sequences for training."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from abyssal import ops
from abyssal.nn.batch import Batch
from abyssal.nn.linear import Linear
from abyssal.nn.norm import RMSNorm
from abyssal.nn.rotary import apply_rotary


class MLA(nn.Module):
    """Attention whose keys and values are one latent vector and one rotary key a token.

    Args:
        hidden_size: Width of a token.
        num_heads: Query heads.
        q_lora_rank: Rank of the query's latent; ``None`` projects queries directly.
        kv_lora_rank: Width of the cached latent.
        nope_dim: Width of a head's part without position.
        rope_dim: Width of a head's rotated part.
        v_dim: Width of a head's value.
        scale: Multiplies the scores, YaRN's correction included.
        latent_eps: Epsilon of the two latent norms (1e-6 in every published model, whatever the
            others use).
        bias: Whether the down and output projections have a bias.
        dtype: Type of plain weights.

    Guarantees: the cache holds the normalized latent and the rotated key, nothing per head; a token
    of a full 256-token prompt segment uses the expanded form, every other token the absorbed one;
    attention reads only what the cache holds, for tokens of the same step too.
    Source: DeepSeek-V2 (arXiv 2405.04434), section 2.1.
    """

    def __init__(
        self,
        hidden_size: int,
        num_heads: int,
        *,
        q_lora_rank: int | None,
        kv_lora_rank: int,
        nope_dim: int,
        rope_dim: int,
        v_dim: int,
        scale: float,
        latent_eps: float = 1e-6,
        bias: bool = False,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.num_heads, self.kv_lora_rank = num_heads, kv_lora_rank
        self.nope_dim, self.rope_dim, self.v_dim = nope_dim, rope_dim, v_dim
        self.scale = scale
        query_size = num_heads * (nope_dim + rope_dim)
        self.q: Linear | None = None
        self.q_down: Linear | None = None
        self.q_norm: RMSNorm | None = None
        self.q_up: Linear | None = None
        if q_lora_rank is None:
            self.q = Linear(hidden_size, query_size, dtype=dtype)
        else:
            self.q_down = Linear(hidden_size, q_lora_rank, bias=bias, dtype=dtype)
            self.q_norm = RMSNorm(q_lora_rank, latent_eps, dtype=dtype)
            self.q_up = Linear(q_lora_rank, query_size, dtype=dtype)
        self.kv_down = Linear(hidden_size, kv_lora_rank + rope_dim, bias=bias, dtype=dtype)
        self.kv_norm = RMSNorm(kv_lora_rank, latent_eps, dtype=dtype)
        self.kv_up = Linear(kv_lora_rank, num_heads * (nope_dim + v_dim), dtype=dtype)
        self.output = Linear(num_heads * v_dim, hidden_size, bias=bias, dtype=dtype)

    def _query(self, x: torch.Tensor) -> torch.Tensor:
        """Return queries ``[..., heads, nope + rope]``, not rotated."""
        if self.q is not None:
            query = self.q(x)
        else:
            assert self.q_down is not None and self.q_norm is not None and self.q_up is not None
            query = self.q_up(self.q_norm(self.q_down(x)))
        heads: torch.Tensor = query.unflatten(-1, (self.num_heads, self.nope_dim + self.rope_dim))
        return heads

    def forward(
        self,
        x: torch.Tensor,
        cos: torch.Tensor,
        sin: torch.Tensor,
        batch: Batch,
        cache: torch.Tensor,
    ) -> torch.Tensor:
        """Attend over the paged cache, after writing this step's rows to it.

        Args:
            x: ``[tokens, hidden_size]``.
            cos: f32 ``[tokens, rope / 2]``.
            sin: Like ``cos``.
            batch: Where each sequence's tokens and pages are.
            cache: as for ``ops.mla_attention``, written in place at ``batch.slots``.

        Returns:
            ``[tokens, hidden_size]`` in the type of ``x``.
        """
        ops.write_latents(
            self.kv_down(x),
            self.kv_norm.weight,
            cos,
            sin,
            cache,
            batch.slots,
            eps=self.kv_norm.eps,
        )
        attended = ops.mla_attention(
            self._query(x),
            cos,
            sin,
            cache,
            *batch.layout,
            self.kv_up.weight,
            self.kv_up.scales,
            page_size=batch.page_size,
            scale=self.scale,
        )
        output: torch.Tensor = self.output(attended.flatten(1))
        return output

    def forward_sequence(
        self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor
    ) -> torch.Tensor:
        """Causal attention over whole sequences, differentiable, without a cache.

        Args:
            x: ``[sequences, tokens, hidden_size]``.
            cos: f32 ``[tokens, rope / 2]``.
            sin: Like ``cos``.

        Returns:
            ``[sequences, tokens, hidden_size]``.
        """
        query = self._query(x)
        query_nope, query_rope = query[..., : self.nope_dim], query[..., self.nope_dim :]
        query_rope = apply_rotary(query_rope, cos.unsqueeze(-2), sin.unsqueeze(-2))
        latent, key_rope = self.kv_down(x).split([self.kv_lora_rank, self.rope_dim], dim=-1)
        latent, key_rope = self.kv_norm(latent), apply_rotary(key_rope, cos, sin)
        expanded = self.kv_up(latent).unflatten(-1, (self.num_heads, self.nope_dim + self.v_dim))
        key_nope, value = expanded.split([self.nope_dim, self.v_dim], dim=-1)
        key = torch.cat(
            (key_nope, key_rope.unsqueeze(-2).expand(-1, -1, self.num_heads, -1)), dim=-1
        )
        query = torch.cat((query_nope, query_rope), dim=-1)
        attended = F.scaled_dot_product_attention(
            query.transpose(1, 2),
            key.transpose(1, 2),
            value.transpose(1, 2),
            is_causal=True,
            scale=self.scale,
        )
        output: torch.Tensor = self.output(attended.transpose(1, 2).flatten(2))
        return output
