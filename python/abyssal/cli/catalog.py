"""Published models of the family and whether they fit a machine.

Sizes are computed from each model's shape, not copied from its card. A model needs memory for its
weights as they are published, for 4,096 tokens of latent cache and for the process itself.
"""

from __future__ import annotations

from dataclasses import dataclass

from abyssal.cli.size import Sizes

#: Memory of the process itself: interpreter, torch, activations.
PROCESS_BYTES = 1_500_000_000
CACHED_TOKENS = 4096


@dataclass(frozen=True)
class Published:
    """A model on the hub.

    Attributes:
        name: ``owner/name``.
        sizes: its shape.
        fp8: whether it is published in FP8 (else in bf16).
    """

    name: str
    sizes: Sizes
    fp8: bool

    @property
    def fp8_bytes(self) -> int:
        """Bytes of the weights in FP8 with 128x128 blocks; embedding and head stay in bf16."""
        sizes = self.sizes
        plain = sizes.vocab_size * sizes.hidden_size * (1 if sizes.tie_embeddings else 2)
        packed = sizes.parameters - plain
        return packed + packed // (128 * 128) * 4 + 2 * plain

    @property
    def bf16_bytes(self) -> int:
        """Bytes of the weights in bf16."""
        return 2 * self.sizes.parameters

    def needed_bytes(self, *, fp8: bool) -> int:
        """Memory that running it takes with its weights in FP8 or in bf16."""
        weights = self.fp8_bytes if fp8 else self.bf16_bytes
        return weights + CACHED_TOKENS * self.sizes.latent_bytes(2) + PROCESS_BYTES


def _v2(**numbers: int | bool | None) -> Sizes:
    values: dict[str, int | bool | None] = {
        "vocab_size": 102400,
        "hidden_size": 2048,
        "num_layers": 27,
        "num_moe_layers": 26,
        "num_heads": 16,
        "q_lora_rank": None,
        "kv_lora_rank": 512,
        "nope_dim": 128,
        "rope_dim": 64,
        "v_dim": 128,
        "dense_inner": 10944,
        "expert_inner": 1408,
        "num_experts": 64,
        "num_shared_experts": 2,
        "top_k": 6,
        "correction_bias": False,
    }
    return Sizes(**{**values, **numbers})  # type: ignore[arg-type]


V2_LITE = _v2()
MOONLIGHT = _v2(vocab_size=163840, dense_inner=11264, correction_bias=True)
GLM_FLASH = _v2(
    vocab_size=154880,
    num_layers=47,
    num_moe_layers=46,
    num_heads=20,
    q_lora_rank=768,
    nope_dim=192,
    v_dim=256,
    dense_inner=10240,
    expert_inner=1536,
    num_shared_experts=1,
    top_k=4,
    correction_bias=True,
)
V2 = _v2(
    hidden_size=5120,
    num_layers=60,
    num_moe_layers=59,
    num_heads=128,
    q_lora_rank=1536,
    dense_inner=12288,
    expert_inner=1536,
    num_experts=160,
)
V3 = _v2(
    vocab_size=129280,
    hidden_size=7168,
    num_layers=61,
    num_moe_layers=58,
    num_heads=128,
    q_lora_rank=1536,
    dense_inner=18432,
    expert_inner=2048,
    num_experts=256,
    num_shared_experts=1,
    top_k=8,
    correction_bias=True,
)
KIMI_K2 = _v2(
    vocab_size=163840,
    hidden_size=7168,
    num_layers=61,
    num_moe_layers=60,
    num_heads=64,
    q_lora_rank=1536,
    dense_inner=18432,
    expert_inner=2048,
    num_experts=384,
    num_shared_experts=1,
    top_k=8,
    correction_bias=True,
)

CATALOG = (
    Published("deepseek-ai/DeepSeek-V2-Lite-Chat", V2_LITE, fp8=False),
    Published("moonshotai/Moonlight-16B-A3B-Instruct", MOONLIGHT, fp8=False),
    Published("zai-org/GLM-4.7-Flash", GLM_FLASH, fp8=False),
    Published("deepseek-ai/DeepSeek-V2-Chat", V2, fp8=False),
    Published("deepseek-ai/DeepSeek-V3.1", V3, fp8=True),
    Published("moonshotai/Kimi-K2-Instruct", KIMI_K2, fp8=True),
)
