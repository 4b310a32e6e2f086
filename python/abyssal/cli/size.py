"""How large a model of the family is: parameters, active ones, cache bytes per token.

``Sizes`` holds only the numbers that matter for this, so that the published models in ``catalog``
are one line each. Counted as the checkpoints store them: norms, router and its correction bias
included, scales of packed weights not.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from abyssal.models.config import ModelConfig


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """The shape of a model, as far as it decides sizes. Names as in ``ModelConfig``."""

    vocab_size: int
    hidden_size: int
    num_layers: int
    num_moe_layers: int
    num_heads: int
    q_lora_rank: int | None
    kv_lora_rank: int
    nope_dim: int
    rope_dim: int
    v_dim: int
    dense_inner: int
    expert_inner: int
    num_experts: int
    num_shared_experts: int
    top_k: int
    correction_bias: bool = True
    attention_bias: bool = False
    tie_embeddings: bool = False

    @classmethod
    def of(cls, config: ModelConfig) -> Sizes:
        """Take the numbers out of a configuration."""
        return cls(
            vocab_size=config.vocab_size,
            hidden_size=config.hidden_size,
            num_layers=config.num_layers,
            num_moe_layers=sum(config.moe_layers),
            num_heads=config.num_heads,
            q_lora_rank=config.q_lora_rank,
            kv_lora_rank=config.kv_lora_rank,
            nope_dim=config.nope_dim,
            rope_dim=config.rope_dim,
            v_dim=config.v_dim,
            dense_inner=config.dense_inner,
            expert_inner=config.expert_inner,
            num_experts=config.num_experts,
            num_shared_experts=config.num_shared_experts,
            top_k=config.top_k,
            correction_bias=config.correction_bias,
            attention_bias=config.attention_bias,
            tie_embeddings=config.tie_embeddings,
        )

    @property
    def parameters(self) -> int:
        """Parameters in all, without a multi-token-prediction layer."""
        return self._main(self.num_experts)

    @property
    def active_parameters(self) -> int:
        """Parameters that one token meets: all but the routed experts that were not selected.

        Embedding and head count once each (once together where they are tied).
        """
        return self._main(self.top_k)

    @property
    def mtp_parameters(self) -> int:
        """Parameters of one multi-token-prediction layer that shares embedding and head."""
        hidden = self.hidden_size
        return self._layer(self.num_experts, moe=self.num_experts > 0) + 3 * hidden + 2 * hidden**2

    def latent_bytes(self, width: int) -> int:
        """Bytes that a token leaves in the latent cache, at ``width`` bytes a number."""
        return self.num_layers * (self.kv_lora_rank + self.rope_dim) * width

    def expanded_bytes(self, width: int) -> int:
        """Bytes of the same token's keys and values of every head."""
        return (
            self.num_layers * self.num_heads * (self.nope_dim + self.rope_dim + self.v_dim) * width
        )

    def _main(self, experts: int) -> int:
        embeddings = self.vocab_size * self.hidden_size * (1 if self.tie_embeddings else 2)
        dense = (self.num_layers - self.num_moe_layers) * self._layer(0, moe=False)
        return (
            embeddings
            + dense
            + self.num_moe_layers * self._layer(experts, moe=True)
            + self.hidden_size
        )

    def _layer(self, experts: int, *, moe: bool) -> int:
        total = self._attention() + 2 * self.hidden_size
        if not moe:
            return total + 3 * self.hidden_size * self.dense_inner
        router = self.num_experts * (self.hidden_size + (1 if self.correction_bias else 0))
        return (
            total
            + router
            + 3 * self.hidden_size * self.expert_inner * (experts + self.num_shared_experts)
        )

    def _attention(self) -> int:
        hidden, query = self.hidden_size, self.num_heads * (self.nope_dim + self.rope_dim)
        if self.q_lora_rank is None:
            total = hidden * query
        else:
            total = (hidden + 1 + query) * self.q_lora_rank
        total += hidden * (self.kv_lora_rank + self.rope_dim) + self.kv_lora_rank
        total += self.kv_lora_rank * self.num_heads * (self.nope_dim + self.v_dim)
        total += self.num_heads * self.v_dim * hidden
        if self.attention_bias:
            total += (self.q_lora_rank or 0) + self.kv_lora_rank + self.rope_dim + hidden
        return total


def human_count(count: int) -> str:
    """Write a number of parameters: ``15.7 billion``, ``9.8 million``, ``812,345``."""
    if count >= 999_500_000_000:
        return f"{count / 1e12:.2f} trillion"
    if count >= 999_500_000:
        return f"{count / 1e9:.1f} billion"
    if count >= 1_000_000:
        return f"{count / 1e6:.1f} million"
    return f"{count:,}"
