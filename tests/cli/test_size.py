import pytest

from abyssal.cli.catalog import CATALOG, V2, V2_LITE, V3
from abyssal.cli.size import Sizes, human_count


def test_v3_has_the_parameters_that_its_report_gives():
    # DeepSeek-V3 report, section 4.2: 671B in all, 37B for each token.
    assert round(V3.parameters / 1e9) == 671
    assert round(V3.active_parameters / 1e9) in (37, 38)


def test_v2_has_the_parameters_that_its_report_gives():
    # DeepSeek-V2 report, sections 3.1.2 and B: 236B and 21B; V2-Lite 15.7B and 2.4B (without
    # embeddings).
    assert round(V2.parameters / 1e9) == 236
    assert round(V2.active_parameters / 1e9) == 21
    assert round(V2_LITE.parameters / 1e8) == 157
    assert round((V2_LITE.active_parameters - 2 * 102400 * 2048) / 1e8) in (22, 23, 24)


def test_the_latent_cache_is_as_large_as_the_published_models_make_it():
    # Two bytes for (512 + 64) numbers of each of 27 and 61 layers.
    assert V2_LITE.latent_bytes(2) == 31_104
    assert V3.latent_bytes(2) == 70_272
    assert V2_LITE.expanded_bytes(2) == 276_480


def test_fp8_bytes_of_v3_are_near_the_published_files():
    v3 = next(model for model in CATALOG if model.sizes is V3)
    # 671e9 parameters at one byte, 1.85e9 of them at two, and a scale for each block.
    assert 672e9 < v3.fp8_bytes < 675e9
    assert v3.needed_bytes(fp8=True) > v3.fp8_bytes


@pytest.mark.parametrize("tie", [False, True])
@pytest.mark.parametrize("q_lora_rank", [None, 24])
@pytest.mark.parametrize("bias", [False, True])
def test_parameters_are_those_that_transformers_builds(tie, q_lora_rank, bias):
    transformers = pytest.importorskip("transformers")
    import torch

    config = transformers.DeepseekV3Config(
        vocab_size=300,
        hidden_size=64,
        intermediate_size=96,
        moe_intermediate_size=32,
        num_hidden_layers=3,
        num_attention_heads=2,
        num_key_value_heads=2,
        n_shared_experts=2,
        n_routed_experts=8,
        kv_lora_rank=32,
        q_lora_rank=q_lora_rank,
        qk_rope_head_dim=16,
        v_head_dim=24,
        qk_nope_head_dim=20,
        n_group=2,
        topk_group=1,
        num_experts_per_tok=2,
        first_k_dense_replace=1,
        tie_word_embeddings=tie,
        attention_bias=bias,
        max_position_embeddings=64,
    )
    with torch.device("meta"):
        model = transformers.DeepseekV3ForCausalLM(config)
    biases = {name: each for name, each in model.named_buffers() if "correction_bias" in name}
    expected = sum(each.numel() for each in model.parameters()) + sum(
        each.numel() for each in biases.values()
    )
    sizes = Sizes(
        vocab_size=300,
        hidden_size=64,
        num_layers=3,
        num_moe_layers=2,
        num_heads=2,
        q_lora_rank=q_lora_rank,
        kv_lora_rank=32,
        nope_dim=20,
        rope_dim=16,
        v_dim=24,
        dense_inner=96,
        expert_inner=32,
        num_experts=8,
        num_shared_experts=2,
        top_k=2,
        attention_bias=bias,
        tie_embeddings=tie,
    )
    assert sizes.parameters == expected
    # Six of the eight experts of the two sparse layers are not selected.
    assert sizes.active_parameters == expected - 2 * 6 * 3 * 64 * 32


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (812_345, "812,345"),
        (9_812_345, "9.8 million"),
        (15_706_484_224, "15.7 billion"),
        (999_600_000_000, "1.00 trillion"),
    ],
)
def test_counts_are_written_with_a_unit(count, text):
    assert human_count(count) == text
