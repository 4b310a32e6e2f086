"""What an architecture of the family is made of, in this package's names.

``config.py`` fills this record from a file; everything else reads it and never sees how the file
spelled it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from abyssal.nn import YarnScaling


@dataclass(frozen=True)
class Quantization:
    """How the packed weights of a checkpoint are stored; each weight's type says which it is.

    Attributes:
        method: ``"fp8"`` (e4m3, blocks of 128x128) or ``"mxfp4"`` (e2m1, blocks of 32).
        scale_format: ``"f32"`` or ``"ue8m0"`` (powers of two, stored as f32).
        expert_method: The same of the routed experts.
    """

    method: str
    scale_format: str
    expert_method: str


@dataclass(frozen=True)
class ModelShape:
    """An architecture, in this package's names.

    Attributes:
        model_type: The name in the file.
        q_lora_rank: Rank of the query's latent; None where queries are projected directly.
        moe_layers: For each layer, whether its feed-forward part is a mixture of experts.
        group_score: ``"max"`` or ``"top2_sum"``: what a group of experts is judged by.
        correction_bias: Whether selection adds a learned bias.
        softmax_scale: Multiplies attention scores, YaRN's correction included.
        latent_eps: Epsilon of the norms of the two latents: 1e-6 whatever ``rms_eps`` is.
        num_mtp_layers: Multi-token-prediction layers that the file announces; it need not hold any.
        eos_ids: Tokens that end an answer, from this file alone.
        dtype: Type of unquantized weights.
    """

    model_type: str
    vocab_size: int
    hidden_size: int
    num_layers: int
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
    moe_layers: tuple[bool, ...]
    top_k: int
    num_groups: int
    top_groups: int
    group_score: str
    scoring: str
    correction_bias: bool
    normalize: bool
    routed_scale: float
    rms_eps: float
    rope_theta: float
    yarn: YarnScaling | None
    softmax_scale: float
    max_position: int
    attention_bias: bool
    tie_embeddings: bool
    num_mtp_layers: int
    bos_id: int | None
    eos_ids: tuple[int, ...]
    dtype: torch.dtype
    quantization: Quantization | None
    latent_eps: float = 1e-6

    @property
    def first_dense_layers(self) -> int:
        """How many layers come before the first mixture of experts."""
        return self.moe_layers.index(True) if True in self.moe_layers else self.num_layers
