"""A checkpoint's ``config.json`` as one plain record, whatever spelling the file uses.

Only this file and ``loader.py`` know the names that checkpoints use. What a file leaves out follows
from its ``model_type``, as the published models do, or is an error that names the key. Code that a
file brings along (``auto_map``) is never run.

Source: the published configurations of DeepSeek-V2-Lite, V2, V3, R1, V3.1, Moonlight, Kimi K2 and
GLM-4.7-Flash, and the spellings that transformers 5 writes for the same models.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from abyssal.errors import CheckpointError
from abyssal.models.fields import Fields
from abyssal.models.shape import ModelShape, Quantization
from abyssal.nn import YarnScaling, yarn_mscale

# What every published model of the family has, and what is built.
_ONLY = dict(hidden_act="silu", rope_interleave=True, mlp_bias=False, partial_rotary_factor=1)
DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32, "float16": torch.float16}


@dataclass(frozen=True)
class Family:
    """What a configuration of this ``model_type`` means where it says nothing.

    Attributes:
        scoring: How router logits become scores.
        methods: Selection rules that the architecture knows, the default first.
        normalize: Whether the chosen weights are divided by their sum.
        rope_theta: Base of the rotary frequencies; None where no default would be right.
    """

    scoring: str
    methods: tuple[str, ...]
    normalize: bool
    rope_theta: float | None


FAMILIES = {
    "deepseek_v2": Family("softmax", ("greedy", "group_limited_greedy"), False, 10000.0),
    "deepseek_v3": Family("sigmoid", ("noaux_tc",), True, 10000.0),
    "kimi_k2": Family("sigmoid", ("noaux_tc",), True, None),
    "glm4_moe_lite": Family("sigmoid", ("noaux_tc",), True, None),
}


@dataclass(frozen=True)
class ModelConfig(ModelShape):
    """An architecture read from a checkpoint's configuration; see ``ModelShape`` for the fields."""

    @classmethod
    def from_folder(cls, path: str | Path) -> ModelConfig:
        """Read ``config.json`` of a checkpoint folder.

        Raises:
            CheckpointError: no such file, not JSON, or as ``from_dict``.
        """
        file = Path(path) / "config.json"
        try:
            values = json.loads(file.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise CheckpointError(
                f"{path} holds no config.json, so it is no checkpoint folder"
            ) from None
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{file} cannot be read as JSON: {error}") from None
        if not isinstance(values, dict):
            raise CheckpointError(f"{file} must hold an object, found {type(values).__name__}")
        return cls.from_dict(values, source=str(file))

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], *, source: str = "config.json") -> ModelConfig:
        """Read a parsed configuration.

        Args:
            values: The object of the file.
            source: What to call it in messages.

        Raises:
            CheckpointError: an unknown ``model_type``, or a key that is missing, out of range, or
                at odds with another.

        Guarantees: runs nothing that the file names; ignores keys that do not change the forward
        pass.
        """
        fields = Fields(values, source)
        model_type = values.get("model_type")
        if not isinstance(model_type, str) or model_type not in FAMILIES:
            raise fields.fail(
                f"'model_type' {model_type!r} is not supported; supported are {', '.join(FAMILIES)}"
            )
        family = FAMILIES[model_type]
        for key, only in _ONLY.items():
            if fields.has(key) and values[key] != only:
                raise fields.fail(f"{key!r} must be {only!r}, found {values[key]!r}")
        if "q_lora_rank" not in values:
            raise fields.fail("'q_lora_rank' is missing; null means that queries have no latent")
        nope_dim, rope_dim = fields.integer("qk_nope_head_dim"), fields.integer("qk_rope_head_dim")
        if rope_dim % 2:
            raise fields.fail(f"'qk_rope_head_dim' must be even, found {rope_dim}")
        max_position = fields.integer("max_position_embeddings")
        rope_theta, yarn, correction = _rope(fields, family, max_position)
        bos = fields.ids("bos_token_id")
        return cls(
            model_type=model_type,
            vocab_size=fields.integer("vocab_size"),
            hidden_size=fields.integer("hidden_size"),
            num_layers=fields.integer("num_hidden_layers"),
            num_heads=fields.integer("num_attention_heads"),
            q_lora_rank=fields.integer("q_lora_rank", default=None),
            kv_lora_rank=fields.integer("kv_lora_rank"),
            nope_dim=nope_dim,
            rope_dim=rope_dim,
            v_dim=fields.integer("v_head_dim"),
            dense_inner=fields.integer("intermediate_size"),
            **_experts(fields, family),
            rms_eps=fields.number("rms_norm_eps", above=0.0),
            rope_theta=rope_theta,
            yarn=yarn,
            softmax_scale=(nope_dim + rope_dim) ** -0.5 * correction,
            max_position=max_position,
            attention_bias=fields.boolean("attention_bias", default=False),
            tie_embeddings=fields.boolean("tie_word_embeddings", default=False),
            num_mtp_layers=fields.integer(
                "num_nextn_predict_layers"
                if "num_nextn_predict_layers" in values
                else "num_mtp_layers",
                minimum=0,
                default=0,
            ),
            bos_id=bos[0] if bos else None,
            eos_ids=fields.ids("eos_token_id"),
            dtype=_dtype(fields),
            quantization=_quantization(fields),
        )


def _experts(fields: Fields, family: Family) -> dict[str, Any]:
    """Read everything about experts and how tokens find them."""
    scoring = fields.choice("scoring_func", (family.scoring,), default=family.scoring)
    method = fields.choice("topk_method", family.methods, default=family.methods[0])
    normalize = fields.boolean("norm_topk_prob", default=family.normalize)
    if family.scoring == "softmax" and normalize:
        # No published model of this type normalizes, and implementations disagree on whether the
        # scale then still applies: guessing would give wrong text without a word.
        raise fields.fail("'norm_topk_prob' must be false for deepseek_v2, found true")
    num_layers = fields.integer("num_hidden_layers")
    num_experts = fields.integer("n_routed_experts", minimum=0, default=0)
    if num_experts == 0 and (fields.has("mlp_layer_types") or fields.has("num_experts_per_tok")):
        raise fields.fail("'n_routed_experts' is missing or 0 although experts are configured")
    grouped = method != "greedy"
    num_groups = fields.integer("n_group", default=1) if grouped else 1
    top_groups = fields.integer("topk_group", default=1) if grouped else 1
    group_score = "top2_sum" if method == "noaux_tc" else "max"
    top_k = fields.integer("num_experts_per_tok") if num_experts else 0
    if num_experts:
        size, rest = divmod(num_experts, num_groups)
        if rest:
            raise fields.fail(
                f"'n_routed_experts' {num_experts} is no multiple of 'n_group' {num_groups}"
            )
        if top_groups > num_groups:
            raise fields.fail(f"'topk_group' {top_groups} is more than 'n_group' {num_groups}")
        if num_groups > 1 and group_score == "top2_sum" and size < 2:
            raise fields.fail(
                f"groups are judged by their two best experts, but {num_experts} experts in "
                f"'n_group' {num_groups} groups leave {size} in each"
            )
        if top_k > top_groups * size:
            raise fields.fail(
                f"'num_experts_per_tok' {top_k} is more than the {top_groups * size} experts of "
                f"the 'topk_group' {top_groups} kept groups"
            )
    return {
        "expert_inner": fields.integer("moe_intermediate_size") if num_experts else 0,
        "num_experts": num_experts,
        "num_shared_experts": fields.integer("n_shared_experts", minimum=0, default=0),
        "moe_layers": _moe_layers(fields, num_layers) if num_experts else (False,) * num_layers,
        "top_k": top_k,
        "num_groups": num_groups,
        "top_groups": top_groups,
        "group_score": group_score,
        "scoring": scoring,
        "correction_bias": method == "noaux_tc",
        "normalize": normalize,
        "routed_scale": fields.number("routed_scaling_factor", above=0.0) if num_experts else 1.0,
    }


def _moe_layers(fields: Fields, num_layers: int) -> tuple[bool, ...]:
    """Tell which layers hold experts, from a list of types or from a first layer and a stride."""
    types = fields.values.get("mlp_layer_types")
    pattern: tuple[bool, ...] | None = None
    if types is not None:
        if not isinstance(types, list) or any(each not in ("dense", "sparse") for each in types):
            raise fields.fail(f"'mlp_layer_types' must list 'dense' and 'sparse', found {types!r}")
        if len(types) < num_layers:
            raise fields.fail(
                f"'mlp_layer_types' names {len(types)} layers, 'num_hidden_layers' is {num_layers}"
            )
        pattern = tuple(each == "sparse" for each in types[:num_layers])
    if fields.has("first_k_dense_replace") or pattern is None:
        # transformers gives a GLM without either key one dense layer.
        one = {"default": 1} if fields.values["model_type"] == "glm4_moe_lite" else {}
        first = fields.integer("first_k_dense_replace", minimum=0, **one)
        stride = fields.integer("moe_layer_freq", default=1)
        counted = tuple(i >= first and i % stride == 0 for i in range(num_layers))
        if pattern is not None and pattern != counted:
            raise fields.fail(
                f"'mlp_layer_types' and 'first_k_dense_replace' {first} disagree about which "
                "layers hold experts"
            )
        pattern = counted
    return pattern


def _rope(
    fields: Fields, family: Family, max_position: int
) -> tuple[float, YarnScaling | None, float]:
    """Read theta, YaRN, and YaRN's factor on the attention scale, in either spelling."""
    new, old = fields.section("rope_parameters"), fields.section("rope_scaling")
    for key in ("rope_theta", "factor", "rope_type"):
        if new and old and new.has(key) and old.has(key) and new.values[key] != old.values[key]:
            raise fields.fail(f"'rope_parameters' and 'rope_scaling' disagree about {key!r}")
    section = (new if new and (new.has("rope_type") or not old) else old) or Fields({}, "")
    if new and new.has("rope_theta"):
        theta = new.number("rope_theta", above=1.0)
        if fields.has("rope_theta") and fields.number("rope_theta", above=1.0) != theta:
            raise fields.fail(
                f"'rope_theta' is {fields.values['rope_theta']}, but 'rope_parameters' has {theta}"
            )
    else:
        known = {} if family.rope_theta is None else {"default": family.rope_theta}
        theta = fields.number("rope_theta", above=1.0, **known)
    if section.number("partial_rotary_factor", default=1.0) != 1.0:
        raise section.fail("'partial_rotary_factor' must be 1")
    kind = section.values.get("rope_type") or section.values.get("type") or "default"
    if kind == "default":
        return theta, None, 1.0
    if kind != "yarn":
        raise section.fail(f"'rope_type' must be default or yarn, found {kind!r}")
    original = section.integer("original_max_position_embeddings", default=max_position)
    factor = section.number("factor", minimum=1.0, default=max_position / original)
    mscale = section.number("mscale", default=None)
    mscale_all_dim = section.number("mscale_all_dim", default=None)
    # Cosine and sine carry the quotient of the two; without both, YaRN's own factor.
    implied = yarn_mscale(factor)
    if mscale and mscale_all_dim:
        implied = yarn_mscale(factor, mscale) / yarn_mscale(factor, mscale_all_dim)
    yarn = YarnScaling(
        factor=factor,
        original_max_position=original,
        beta_fast=section.number("beta_fast", above=0.0, default=32.0),
        beta_slow=section.number("beta_slow", above=0.0, default=1.0),
        attention_factor=section.number("attention_factor", above=0.0, default=implied),
        truncate=section.boolean("truncate", default=True),
    )
    correction = yarn_mscale(factor, mscale_all_dim) ** 2 if mscale_all_dim else 1.0
    return theta, yarn, correction


def _dtype(fields: Fields) -> torch.dtype:
    """Read the type of unquantized weights, in either spelling."""
    names = [
        str(fields.values[key]).removeprefix("torch.")
        for key in ("dtype", "torch_dtype")
        if fields.has(key)
    ]
    if len(set(names)) > 1:
        raise fields.fail(f"'dtype' {names[0]} and 'torch_dtype' {names[1]} disagree")
    if names and names[0] not in DTYPES:
        raise fields.fail(f"'dtype' must be one of {', '.join(DTYPES)}, found {names[0]!r}")
    return DTYPES[names[0]] if names else torch.bfloat16


def _quantization(fields: Fields) -> Quantization | None:
    """Read how weights are packed."""
    if fields.has("compression_config"):
        raise fields.fail("'compression_config' is not supported; supported are fp8 and mxfp4")
    section = fields.section("quantization_config")
    if section is None:
        return None
    if section.choice("quant_method", ("fp8", "mxfp4")) == "mxfp4":
        return Quantization("mxfp4", "ue8m0", "mxfp4")
    section.choice("fmt", ("e4m3",), default="e4m3")
    section.choice("activation_scheme", ("dynamic",), default="dynamic")
    block = section.values.get("weight_block_size")
    if block != [128, 128]:
        raise section.fail(f"'weight_block_size' must be [128, 128], found {block!r}")
    experts = "mxfp4" if fields.values.get("expert_dtype") == "fp4" else "fp8"
    return Quantization("fp8", section.choice("scale_fmt", ("ue8m0",), default="f32"), experts)
