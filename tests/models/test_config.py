"""Configurations in every published spelling, and configurations that cannot be right."""

import json

import pytest
import torch

from abyssal.errors import CheckpointError
from abyssal.models import ModelConfig
from abyssal.testing.families import FAMILIES, tiny_config


def read(family="v3", without=(), **changes):
    values = tiny_config(family, **changes)
    for key in without:
        del values[key]
    return ModelConfig.from_dict(values)


def test_each_family_is_read_as_published():
    v2, lite, v3 = read("v2"), read("v2-lite"), read("v3")
    assert (v2.scoring, v2.group_score, v2.correction_bias) == ("softmax", "max", False)
    assert (v2.num_groups, v2.top_groups, v2.routed_scale) == (4, 2, 16.0)
    assert (lite.q_lora_rank, lite.num_groups) == (None, 1)
    assert (v3.scoring, v3.group_score, v3.correction_bias) == ("sigmoid", "top2_sum", True)
    assert v3.num_mtp_layers == 1
    assert read("moonlight").yarn is None
    assert read("kimi-k2").yarn.beta_fast == read("kimi-k2").yarn.beta_slow == 1.0
    glm = read("glm-4.7-flash")
    assert glm.moe_layers == (False, True)
    assert glm.eos_ids == (1, 2)
    for family in FAMILIES:
        assert read(family).latent_eps == 1e-6
        assert read(family).dtype == torch.float32


def test_greedy_selection_has_no_groups_whatever_the_file_says():
    config = read("v2-lite", n_group=4, topk_group=1)
    assert (config.num_groups, config.top_groups) == (1, 1)


@pytest.mark.parametrize("family", ["v3", "kimi-k2", "moonlight", "glm-4.7-flash"])
def test_missing_scoring_keys_follow_from_the_model_type(family):
    values = tiny_config(family)
    for key in ("scoring_func", "topk_method", "norm_topk_prob"):
        values.pop(key, None)
    config = ModelConfig.from_dict(values)
    assert (config.scoring, config.group_score, config.normalize) == ("sigmoid", "top2_sum", True)


def test_missing_scoring_keys_of_v2_mean_greedy_softmax():
    config = read("v2", without=("scoring_func", "topk_method", "norm_topk_prob"))
    assert (config.scoring, config.num_groups, config.normalize) == ("softmax", 1, False)


def test_both_spellings_of_rotary_settings_mean_the_same():
    old = tiny_config("v3")
    new = {key: value for key, value in old.items() if key not in ("rope_scaling", "rope_theta")}
    scaling = {key: value for key, value in old["rope_scaling"].items() if key != "type"}
    new["rope_parameters"] = {**scaling, "rope_type": "yarn", "rope_theta": 10000}
    assert ModelConfig.from_dict(new) == ModelConfig.from_dict(old)
    assert read("v3", rope_scaling={**scaling, "rope_type": "yarn"}) == read("v3")
    assert read("v3", rope_parameters={"rope_theta": 10000}) == read("v3")


def test_mscale_goes_into_the_attention_scale_only_by_mscale_all_dim():
    yarn = FAMILIES["v3"]["rope_scaling"]
    plain = (16 + 8) ** -0.5
    lite = read("v2-lite")
    assert lite.softmax_scale == pytest.approx(plain * 1.2608**2, rel=1e-4)
    assert read("v3").softmax_scale == pytest.approx(plain * 1.3689**2, rel=1e-4)
    assert lite.yarn.attention_factor == read("v3").yarn.attention_factor == 1.0
    neither = read("v3", rope_scaling={**yarn, "mscale": None, "mscale_all_dim": None})
    assert neither.softmax_scale == plain
    assert neither.yarn.attention_factor == pytest.approx(1.3689, rel=1e-4)
    only = read("v3", rope_scaling={**yarn, "mscale_all_dim": 0})
    assert only.softmax_scale == plain
    assert read("v3", rope_scaling={**yarn, "attention_factor": 1.5}).yarn.attention_factor == 1.5


def test_a_missing_yarn_factor_is_the_quotient_of_the_contexts():
    yarn = {"type": "yarn", "original_max_position_embeddings": 512}
    assert read("v3", rope_scaling=yarn).yarn.factor == 2048 / 512


def test_head_dim_and_code_in_the_file_change_nothing():
    extra = {
        "head_dim": 10,  # the size of no part of a head
        "auto_map": {"AutoModelForCausalLM": "evil.Model"},
        "trust_remote_code": True,
        "num_key_value_heads": 1,
    }
    assert read("v3", **extra) == read("v3")


def test_dtype_is_read_in_both_spellings():
    assert read("v3", without=("torch_dtype",), dtype="bfloat16").dtype == torch.bfloat16
    assert read("v3", without=("torch_dtype",)).dtype == torch.bfloat16
    assert read("v3", torch_dtype="torch.float16").dtype == torch.float16


def test_layers_with_experts_are_counted_or_listed():
    assert read("v3", first_k_dense_replace=0).moe_layers == (True, True)
    strided = read("v3", num_hidden_layers=5, moe_layer_freq=2)
    assert strided.moe_layers == (False, False, True, False, True)
    assert read("v3", first_k_dense_replace=2).first_dense_layers == 2
    glm = tiny_config("glm-4.7-flash", num_hidden_layers=3)
    del glm["mlp_layer_types"]
    assert ModelConfig.from_dict(glm).moe_layers == (False, True, True)
    assert ModelConfig.from_dict({**glm, "first_k_dense_replace": 2}).first_dense_layers == 2


def test_quantization_is_read():
    fp8 = {"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [128, 128]}
    assert read(quantization_config=fp8).quantization.scale_format == "f32"
    ue8m0 = read(quantization_config={**fp8, "scale_fmt": "ue8m0"})
    assert ue8m0.quantization.scale_format == "ue8m0"
    assert read(quantization_config={"quant_method": "mxfp4"}).quantization.method == "mxfp4"


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"model_type": "llama"}, r"'llama' is not supported; supported are deepseek_v2"),
        ({"model_type": None}, r"None is not supported"),
        ({"model_type": ["deepseek_v3"]}, r"\['deepseek_v3'\] is not supported"),
        ({"hidden_size": None}, r"'hidden_size' is null"),
        ({"hidden_size": 0}, r"'hidden_size' must be at least 1, found 0"),
        ({"hidden_size": "64"}, r"'hidden_size' must be a whole number, found '64'"),
        ({"num_attention_heads": True}, r"'num_attention_heads' must be a whole number"),
        ({"num_hidden_layers": 2.5}, r"'num_hidden_layers' must be a whole number, found 2.5"),
        ({"rms_norm_eps": 0}, r"'rms_norm_eps' must be greater than 0.0, found 0"),
        ({"rms_norm_eps": float("nan")}, r"'rms_norm_eps' must be finite"),
        ({"qk_rope_head_dim": 7}, r"'qk_rope_head_dim' must be even, found 7"),
        ({"hidden_act": "gelu"}, r"'hidden_act' must be 'silu', found 'gelu'"),
        ({"partial_rotary_factor": 0.5}, r"'partial_rotary_factor' must be 1, found 0.5"),
        ({"rope_interleave": False}, r"'rope_interleave' must be True, found False"),
        ({"scoring_func": "softmax"}, r"'scoring_func' must be one of sigmoid, found 'softmax'"),
        ({"topk_method": "greedy"}, r"'topk_method' must be one of noaux_tc, found 'greedy'"),
        ({"n_group": 3}, r"'n_routed_experts' 16 is no multiple of 'n_group' 3"),
        ({"topk_group": 5}, r"'topk_group' 5 is more than 'n_group' 4"),
        ({"n_group": 16, "topk_group": 16}, r"leave 1 in each"),
        ({"num_experts_per_tok": 9}, r"'num_experts_per_tok' 9 is more than the 8 experts"),
        ({"n_routed_experts": None}, r"'n_routed_experts' is missing or 0"),
        ({"norm_topk_prob": "yes"}, r"'norm_topk_prob' must be true or false, found 'yes'"),
        ({"rope_scaling": {"type": "linear", "factor": 2}}, r"must be default or yarn"),
        ({"rope_scaling": "yarn"}, r"'rope_scaling' must be an object, found 'yarn'"),
        ({"rope_scaling": {"type": "yarn", "factor": 0.5}}, r"'factor' must be at least 1.0"),
        ({"rope_parameters": {"rope_theta": 5.0}}, r"'rope_theta' is 10000, but"),
        (
            {"rope_parameters": {"rope_type": "yarn", "factor": 2}},
            r"'rope_parameters' and 'rope_scaling' disagree about 'factor'",
        ),
        ({"mlp_layer_types": ["dense"]}, r"names 1 layers, 'num_hidden_layers' is 2"),
        ({"mlp_layer_types": ["sparse", "dense"]}, r"disagree about which layers hold experts"),
        ({"mlp_layer_types": "dense"}, r"must list 'dense' and 'sparse'"),
        ({"dtype": "bfloat16"}, r"'dtype' bfloat16 and 'torch_dtype' float32 disagree"),
        ({"torch_dtype": "int8"}, r"'dtype' must be one of bfloat16, float32, float16"),
        ({"eos_token_id": [1, "2"]}, r"'eos_token_id' must be a token id or a list"),
        ({"quantization_config": {"quant_method": "awq"}}, r"must be one of fp8, mxfp4"),
        ({"quantization_config": {"quant_method": "fp8"}}, r"must be \[128, 128\], found None"),
        ({"compression_config": {"format": "int"}}, r"'compression_config' is not supported"),
    ],
)
def test_a_configuration_that_cannot_be_right_is_refused(changes, message):
    with pytest.raises(CheckpointError, match=message):
        read(**changes)


@pytest.mark.parametrize(
    "key",
    [
        "vocab_size",
        "q_lora_rank",
        "kv_lora_rank",
        "n_group",
        "max_position_embeddings",
        "rope_theta",
    ],
)
def test_only_keys_with_one_meaning_may_be_missing(key):
    values = tiny_config("kimi-k2")
    del values[key]
    if key == "n_group":
        assert ModelConfig.from_dict(values).num_groups == 1
        return
    with pytest.raises(CheckpointError, match=f"'{key}' is missing"):
        ModelConfig.from_dict(values)


def test_v2_with_normalized_weights_is_refused():
    with pytest.raises(CheckpointError, match="'norm_topk_prob' must be false for deepseek_v2"):
        read("v2", norm_topk_prob=True)


def test_a_folder_without_a_readable_configuration_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match=r"holds no config\.json"):
        ModelConfig.from_folder(tmp_path)
    for text, message in (("{", "as JSON"), ("[]", "must hold an object"), ("\xff", "as JSON")):
        (tmp_path / "config.json").write_bytes(text.encode("latin-1"))
        with pytest.raises(CheckpointError, match=message):
            ModelConfig.from_folder(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(tiny_config("v3")))
    assert ModelConfig.from_folder(tmp_path) == read("v3")
