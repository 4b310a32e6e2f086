"""The layers of the training model, and what a forward pass carries through them.

The experts of a layer are stacked in one tensor, gate and up projections are one matrix, and the
expensive parts are fused (``fused.py``).

Source: DeepSeek-V3 (arXiv 2412.19437), section 2.1.
"""

from __future__ import annotations

import math
import threading
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from abyssal.train import fused


@dataclass
class Pass:
    """What one forward pass needs beside its tokens, and what it leaves behind.

    Attributes:
        cos: f32 ``[tokens, rope / 2]``.
        sin: Like ``cos``.
        dropout: Share of what a layer part adds that is dropped; needs ``generator``.
        generator: Source of the dropout.
        stop: Set to make the pass end at its next layer, forward or backward.
        balance: Whether to compute the sequence-wise balance loss.
        loads: For each routed layer in turn, int64 ``[experts]``: tokens that chose each expert.
        balance_losses: For each routed layer in turn, its balance loss, where asked for.
    """

    cos: torch.Tensor
    sin: torch.Tensor
    dropout: float = 0.0
    generator: torch.Generator | None = None
    stop: threading.Event | None = None
    balance: bool = False
    loads: list[torch.Tensor] = field(default_factory=list)
    balance_losses: list[torch.Tensor] = field(default_factory=list)

    def drop(self, x: torch.Tensor, share: float) -> torch.Tensor:
        """Drop ``share`` of the values of ``x`` and scale up the others."""
        if share == 0.0 or self.generator is None:
            return x
        kept = torch.empty_like(x, requires_grad=False)
        return x * kept.bernoulli_(1 - share, generator=self.generator).div_(1 - share)


def matrix(*shape: int) -> nn.Parameter:
    """Return an uninitialized matrix or stack of matrices."""
    return nn.Parameter(torch.empty(*shape))


def gain(size: int) -> nn.Parameter:
    """Return the gains of a norm, all one."""
    return nn.Parameter(torch.ones(size))


class Attention(nn.Module):
    """Multi-head latent attention over whole sequences, in its expanded form."""

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        hidden, self.heads = config["hidden_size"], config["num_attention_heads"]
        self.nope, self.rope = config["qk_nope_head_dim"], config["qk_rope_head_dim"]
        self.value, self.latent = config["v_head_dim"], config["kv_lora_rank"]
        rank = config["q_lora_rank"]
        queries = self.heads * (self.nope + self.rope)
        self.q_a = None if rank is None else matrix(rank, hidden)
        self.q_norm = None if rank is None else gain(rank)
        self.q = matrix(queries, hidden if rank is None else rank)
        self.kv_a = matrix(self.latent + self.rope, hidden)
        self.kv_norm = gain(self.latent)
        self.kv_b = matrix(self.heads * (self.nope + self.value), self.latent)
        self.o = matrix(hidden, self.heads * self.value)

    def forward(self, x: torch.Tensor, run: Pass) -> torch.Tensor:
        """Attend causally within each sequence of ``x [sequences, tokens, hidden]``."""
        count, length, _ = x.shape
        latent_query = x
        if self.q_a is not None and self.q_norm is not None:
            latent_query = fused.rms_norm(F.linear(x, self.q_a), self.q_norm)
        query = F.linear(latent_query, self.q).view(count, length, self.heads, -1)
        query_nope, query_rope = split(query, self.nope, self.rope)
        query = torch.cat((query_nope, rotate(query_rope, run)), -1)
        latent, key_rope = split(F.linear(x, self.kv_a), self.latent, self.rope)
        key_value = F.linear(fused.rms_norm(latent.contiguous(), self.kv_norm), self.kv_b)
        key_value = key_value.view(count, length, self.heads, -1)
        key_nope, value = split(key_value, self.nope, self.value)
        shared = rotate(key_rope.unsqueeze(2), run).expand(-1, -1, self.heads, -1)
        key = torch.cat((key_nope, shared), -1)
        out = F.scaled_dot_product_attention(
            query.transpose(1, 2),
            key.transpose(1, 2),
            value.transpose(1, 2),
            is_causal=True,
            scale=(self.nope + self.rope) ** -0.5,
        )
        return F.linear(out.transpose(1, 2).reshape(count, length, -1), self.o)


def split(x: torch.Tensor, *sizes: int) -> tuple[torch.Tensor, ...]:
    """Split the last dimension of ``x`` into views of these sizes."""
    views: tuple[torch.Tensor, ...] = torch.split(x, list(sizes), dim=-1)
    return views


def rotate(x: torch.Tensor, run: Pass) -> torch.Tensor:
    """Rotate the pairs ``(2 i, 2 i + 1)`` of ``x [sequences, tokens, heads, rope]``."""
    even, odd = x[..., 0::2], x[..., 1::2]
    cos, sin = run.cos[:, None], run.sin[:, None]
    return torch.stack((even * cos - odd * sin, even * sin + odd * cos), -1).flatten(-2)


class Dense(nn.Module):
    """A gated feed-forward part."""

    def __init__(self, hidden: int, inner: int) -> None:
        super().__init__()
        self.gate_up = matrix(2 * inner, hidden)
        self.down = matrix(hidden, inner)

    def forward(self, x: torch.Tensor, run: Pass) -> torch.Tensor:
        """Map ``x [..., hidden]``; ``run`` is not used."""
        return F.linear(fused.swiglu(F.linear(x, self.gate_up)), self.down)


class Sparse(nn.Module):
    """Routed experts, balanced by a bias that only selection sees, and shared experts."""

    correction_bias: torch.Tensor

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        hidden, inner = config["hidden_size"], config["moe_intermediate_size"]
        self.experts, self.top_k = config["n_routed_experts"], config["num_experts_per_tok"]
        self.groups, self.top_groups = config["n_group"], config["topk_group"]
        self.normalize = config["norm_topk_prob"]
        self.scale = config["routed_scaling_factor"]
        self.router = matrix(self.experts, hidden)
        self.gate_up = matrix(self.experts, 2 * inner, hidden)
        self.down = matrix(self.experts, hidden, inner)
        self.shared = Dense(hidden, inner * config["n_shared_experts"])
        self.register_buffer("correction_bias", torch.zeros(self.experts))

    @torch.no_grad()
    def choose(self, scores: torch.Tensor) -> torch.Tensor:
        """Return the chosen experts, int64 ``[tokens, top_k]``, of ``scores [tokens, experts]``."""
        biased = scores + self.correction_bias
        if self.groups > 1:
            grouped = biased.view(-1, self.groups, self.experts // self.groups)
            group_scores = grouped.topk(2, -1)[0].sum(-1)
            kept = torch.zeros_like(group_scores, dtype=torch.bool)
            kept.scatter_(1, group_scores.topk(self.top_groups, -1)[1], True)
            biased = grouped.masked_fill(~kept[..., None], -math.inf).view(-1, self.experts)
        chosen: torch.Tensor = biased.topk(self.top_k, -1)[1]
        return chosen

    def forward(self, x: torch.Tensor, run: Pass) -> torch.Tensor:
        """Map ``x [sequences, tokens, hidden]``; adds this layer's load to ``run``."""
        flat = x.reshape(-1, x.shape[-1])
        scores = torch.sigmoid(flat @ self.router.t())
        chosen = self.choose(scores)
        run.loads.append(torch.bincount(chosen.reshape(-1), minlength=self.experts))
        if run.balance:
            run.balance_losses.append(self.balance_loss(scores, chosen, len(x)))
        weights = scores.gather(1, chosen)
        if self.normalize:
            weights = weights / (weights.sum(-1, keepdim=True) + 1e-20)
        routed = fused.experts(flat, weights * self.scale, chosen, self.gate_up, self.down)
        output: torch.Tensor = (routed + self.shared(flat, run)).view_as(x)
        return output

    def balance_loss(
        self, scores: torch.Tensor, chosen: torch.Tensor, sequences: int
    ) -> torch.Tensor:
        """Return the sequence-wise balance loss, averaged over the sequences.

        ``sum_i f_i P_i`` with ``f_i`` the share of the tokens that chose expert ``i``, 1 where it
        is the mean, and ``P_i`` its mean normalized score (arXiv 2412.19437, eq. 17 to 20).
        """
        share = (scores / scores.sum(-1, keepdim=True)).view(sequences, -1, self.experts)
        counts = torch.zeros(sequences, self.experts)
        counts.scatter_add_(
            1, chosen.view(sequences, -1), torch.ones(sequences, chosen.numel() // sequences)
        )
        frequency = counts * (self.experts * sequences / chosen.numel())
        loss: torch.Tensor = (frequency * share.mean(1)).sum(-1).mean()
        return loss


class Layer(nn.Module):
    """One decoder layer."""

    def __init__(self, config: dict[str, Any], *, sparse: bool) -> None:
        super().__init__()
        self.eps = config["rms_norm_eps"]
        self.input_norm = gain(config["hidden_size"])
        self.attention = Attention(config)
        self.post_norm = gain(config["hidden_size"])
        self.feed_forward: Dense | Sparse
        if sparse:
            self.feed_forward = Sparse(config)
        else:
            self.feed_forward = Dense(config["hidden_size"], config["intermediate_size"])

    def forward(self, x: torch.Tensor, run: Pass) -> torch.Tensor:
        """Add both parts to the stream ``x [sequences, tokens, hidden]``."""
        if run.stop is not None:
            x = fused.interruptible(x, run.stop)
        added = self.attention(fused.rms_norm(x, self.input_norm, self.eps), run)
        x = x + run.drop(added, run.dropout)
        added = self.feed_forward(fused.rms_norm(x, self.post_norm, self.eps), run)
        output: torch.Tensor = x + run.drop(added, run.dropout)
        return output
