"""Small configurations of every supported family, in the spelling of its published files."""

from __future__ import annotations

from typing import Any

Config = dict[str, Any]

_YARN = {
    "type": "yarn",
    "factor": 40,
    "original_max_position_embeddings": 4096,
    "beta_fast": 32,
    "beta_slow": 1,
    "mscale": 1.0,
    "mscale_all_dim": 1.0,
}
_COMMON: Config = {
    "vocab_size": 128,
    "hidden_size": 64,
    "intermediate_size": 96,
    "moe_intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "q_lora_rank": 24,
    "kv_lora_rank": 32,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 8,
    "v_head_dim": 16,
    "n_routed_experts": 16,
    "n_shared_experts": 1,
    "num_experts_per_tok": 4,
    "hidden_act": "silu",
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-6,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "tie_word_embeddings": False,
    "torch_dtype": "float32",
}
_V3: Config = {
    "model_type": "deepseek_v3",
    "scoring_func": "sigmoid",
    "topk_method": "noaux_tc",
    "n_group": 4,
    "topk_group": 2,
    "norm_topk_prob": True,
    "routed_scaling_factor": 2.5,
    "first_k_dense_replace": 1,
    "moe_layer_freq": 1,
    "rope_theta": 10000,
    "rope_scaling": _YARN,
    "num_nextn_predict_layers": 1,
}
#: What each published model's configuration says, at a small size.
FAMILIES: dict[str, Config] = {
    "v2": {
        "model_type": "deepseek_v2",
        "scoring_func": "softmax",
        "topk_method": "group_limited_greedy",
        "n_group": 4,
        "topk_group": 2,
        "norm_topk_prob": False,
        "routed_scaling_factor": 16.0,
        "n_shared_experts": 2,
        "first_k_dense_replace": 1,
        "rope_theta": 10000,
        "rope_scaling": _YARN,
    },
    "v2-lite": {
        "model_type": "deepseek_v2",
        "scoring_func": "softmax",
        "topk_method": "greedy",
        "n_group": 1,
        "topk_group": 1,
        "norm_topk_prob": False,
        "routed_scaling_factor": 1.0,
        "n_shared_experts": 2,
        "q_lora_rank": None,
        "first_k_dense_replace": 1,
        "rope_theta": 10000,
        "rope_scaling": {**_YARN, "mscale": 0.707, "mscale_all_dim": 0.707},
    },
    "v3": _V3,
    "moonlight": {
        **_V3,
        "n_group": 1,
        "topk_group": 1,
        "q_lora_rank": None,
        "n_shared_experts": 2,
        "routed_scaling_factor": 2.446,
        "rms_norm_eps": 1e-5,
        "rope_theta": 50000.0,
        "rope_scaling": None,
        "num_nextn_predict_layers": 0,
    },
    "kimi-k2": {
        **_V3,
        "model_type": "kimi_k2",
        "n_group": 1,
        "topk_group": 1,
        "routed_scaling_factor": 2.827,
        "rope_theta": 50000.0,
        "rope_scaling": {**_YARN, "factor": 32.0, "beta_fast": 1.0, "beta_slow": 1.0},
        "num_nextn_predict_layers": 0,
    },
    "glm-4.7-flash": {
        "model_type": "glm4_moe_lite",
        "topk_method": "noaux_tc",
        "n_group": 1,
        "topk_group": 1,
        "norm_topk_prob": True,
        "routed_scaling_factor": 1.8,
        "rms_norm_eps": 1e-5,
        "qk_nope_head_dim": 24,
        "v_head_dim": 32,
        "mlp_layer_types": ["dense", "sparse"],
        "rope_theta": 1000000.0,
        "eos_token_id": [1, 2],
        "num_nextn_predict_layers": 1,
    },
}


def tiny_config(family: str = "v3", **overrides: Any) -> Config:  # noqa: ANN401 - JSON values
    """Return a small configuration of a family in its published spelling, with some keys replaced.

    Args:
        family: A key of ``FAMILIES``.
        **overrides: Keys of ``config.json`` and their values.
    """
    return {**_COMMON, **FAMILIES[family], **overrides}
