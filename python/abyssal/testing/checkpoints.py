"""Tiny random checkpoints in the published layout, for tests and for trials without a download.

``write_checkpoint`` writes what a published repository holds: ``config.json`` in the spelling of
the family, tensors under the official names, packed weights with their scales, one file or shards
with an index. The values are random but not small, so that every part of the forward pass moves the
logits.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from abyssal import reference
from abyssal.testing.families import Config, tiny_config


def make_tensors(
    config: Config, *, seed: int = 0, num_mtp_layers: int = 0
) -> dict[str, torch.Tensor]:
    """Make random f32 weights under the official names.

    Args:
        config: As ``tiny_config`` returns it.
        seed: Same seed, same values.
        num_mtp_layers: Multi-token-prediction layers to add behind the main ones.
    """
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, shape in _shapes(config, num_mtp_layers):
        noise = torch.randn(shape, generator=generator)
        if "norm" in name:
            value = 1 + 0.2 * noise
        elif name.endswith("e_score_correction_bias"):
            value = 0.1 * noise
        elif name.endswith("embed_tokens.weight"):
            value = noise
        else:
            value = noise / shape[-1] ** 0.5
        tensors[name] = value
    return tensors


def _shapes(config: Config, num_mtp_layers: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yield every tensor's name and shape."""
    hidden, vocab = config["hidden_size"], config["vocab_size"]
    layers = config["num_hidden_layers"]
    types = config.get("mlp_layer_types") or []
    yield "model.embed_tokens.weight", (vocab, hidden)
    for index in range(layers + num_mtp_layers):
        prefix = f"model.layers.{index}"
        if index >= layers:
            sparse = True
            yield f"{prefix}.enorm.weight", (hidden,)
            yield f"{prefix}.hnorm.weight", (hidden,)
            yield f"{prefix}.eh_proj.weight", (hidden, 2 * hidden)
            yield f"{prefix}.shared_head.norm.weight", (hidden,)
        elif types:
            sparse = types[index] == "sparse"
        else:
            sparse = index >= config["first_k_dense_replace"]
        yield from _layer_shapes(config, prefix, sparse=sparse)
    yield "model.norm.weight", (hidden,)
    if not config["tie_word_embeddings"]:
        yield "lm_head.weight", (vocab, hidden)


def _layer_shapes(
    config: Config, prefix: str, *, sparse: bool
) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yield the tensors of one decoder layer."""
    hidden, heads = config["hidden_size"], config["num_attention_heads"]
    nope, rope = config["qk_nope_head_dim"], config["qk_rope_head_dim"]
    latent, rank, value = config["kv_lora_rank"], config["q_lora_rank"], config["v_head_dim"]
    yield f"{prefix}.input_layernorm.weight", (hidden,)
    yield f"{prefix}.post_attention_layernorm.weight", (hidden,)
    attention = f"{prefix}.self_attn"
    if rank is None:
        yield f"{attention}.q_proj.weight", (heads * (nope + rope), hidden)
    else:
        yield f"{attention}.q_a_proj.weight", (rank, hidden)
        yield f"{attention}.q_a_layernorm.weight", (rank,)
        yield f"{attention}.q_b_proj.weight", (heads * (nope + rope), rank)
    yield f"{attention}.kv_a_proj_with_mqa.weight", (latent + rope, hidden)
    yield f"{attention}.kv_a_layernorm.weight", (latent,)
    yield f"{attention}.kv_b_proj.weight", (heads * (nope + value), latent)
    yield f"{attention}.o_proj.weight", (hidden, heads * value)
    if not sparse:
        yield from _mlp_shapes(f"{prefix}.mlp", hidden, config["intermediate_size"])
        return
    experts, inner = config["n_routed_experts"], config["moe_intermediate_size"]
    yield f"{prefix}.mlp.gate.weight", (experts, hidden)
    if config["model_type"] != "deepseek_v2":
        yield f"{prefix}.mlp.gate.e_score_correction_bias", (experts,)
    for expert in range(experts):
        yield from _mlp_shapes(f"{prefix}.mlp.experts.{expert}", hidden, inner)
    if config["n_shared_experts"]:
        shared = inner * config["n_shared_experts"]
        yield from _mlp_shapes(f"{prefix}.mlp.shared_experts", hidden, shared)


def _mlp_shapes(prefix: str, hidden: int, inner: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yield the tensors of a gated feed-forward part."""
    yield f"{prefix}.gate_proj.weight", (inner, hidden)
    yield f"{prefix}.up_proj.weight", (inner, hidden)
    yield f"{prefix}.down_proj.weight", (hidden, inner)


def is_packed(name: str) -> bool:
    """Tell whether published FP8 checkpoints pack this tensor: projections, no glue, no router."""
    return name.endswith(("_proj.weight", "_with_mqa.weight")) and "eh_proj" not in name


def pack_tensors(
    tensors: dict[str, torch.Tensor], packing: str, dtype: torch.dtype
) -> dict[str, torch.Tensor]:
    """Pack the projections as published checkpoints do, and store the rest in ``dtype``.

    Args:
        tensors: As ``make_tensors`` returns them.
        packing: ``"none"``, ``"fp8"``, ``"ue8m0"`` (FP8 with scales that are powers of two), or
            ``"mxfp4"``, which leaves out rows that are no multiple of 32 long.
        dtype: Type of what is not packed; the correction bias stays f32.
    """
    stored = {}
    for name, value in tensors.items():
        ragged = packing == "mxfp4" and value.shape[-1] % 32
        if packing == "none" or ragged or not is_packed(name):
            keep = name.endswith("e_score_correction_bias")
            stored[name] = value if keep else value.to(dtype)
        elif packing == "mxfp4":
            stored[name], stored[f"{name}_scale"] = reference.quantize_mxfp4(value)
        else:
            stored[name], stored[f"{name}_scale_inv"] = reference.quantize_fp8(
                value, block=(128, 128), scale_format="ue8m0" if packing == "ue8m0" else "f32"
            )
    return stored


def write_checkpoint(
    folder: str | Path,
    *,
    family: str = "v3",
    seed: int = 0,
    packing: str = "none",
    num_shards: int = 1,
    num_mtp_layers: int = 0,
    **overrides: Any,  # noqa: ANN401 - JSON values
) -> Config:
    """Write a tiny random checkpoint.

    Args:
        folder: Made if it is not there.
        family: A key of ``FAMILIES``.
        seed: Same seed, same weights.
        packing: As in ``pack_tensors``.
        num_shards: 1 writes one file, more write shards and an index.
        num_mtp_layers: Multi-token-prediction layers, without copies of the embedding and the head.
        **overrides: Keys of ``config.json``; ``torch_dtype`` is the type of what is not packed.

    Returns:
        The configuration that was written.
    """
    config = tiny_config(family, **overrides)
    if packing in ("fp8", "ue8m0"):
        config["quantization_config"] = {
            "activation_scheme": "dynamic",
            "fmt": "e4m3",
            "quant_method": "fp8",
            "weight_block_size": [128, 128],
            **({"scale_fmt": "ue8m0"} if packing == "ue8m0" else {}),
        }
    elif packing == "mxfp4":
        config["quantization_config"] = {"quant_method": "mxfp4"}
    tensors = make_tensors(config, seed=seed, num_mtp_layers=num_mtp_layers)
    stored = pack_tensors(tensors, packing, getattr(torch, config["torch_dtype"]))
    write_folder(folder, config, stored, num_shards=num_shards)
    return config


def write_folder(
    folder: str | Path, config: Config, tensors: dict[str, torch.Tensor], *, num_shards: int = 1
) -> None:
    """Write a configuration and tensors as a checkpoint folder."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")
    if num_shards == 1:
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})
        return
    placed = {}
    names = list(tensors)
    for shard in range(num_shards):
        file = f"model-{shard + 1:05}-of-{num_shards:05}.safetensors"
        held = {name: tensors[name] for name in names[shard::num_shards]}
        save_file(held, folder / file, {"format": "pt"})
        placed.update(dict.fromkeys(held, file))
    total = sum(value.numel() * value.element_size() for value in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": placed}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
