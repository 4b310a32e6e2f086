"""Write a trained model in the layout of the published checkpoints.

``fp8`` packs the projections in 128x128 blocks with ``weight_scale_inv``, as DeepSeek-V3 does;
embedding, head, norms, routers and ``eh_proj`` stay in bf16, the routers' correction bias in f32.
The prediction layer's copies of the embedding and the head are left out: loaders share the main
ones.

Source: DeepSeek-V3 ``README_WEIGHTS.md``.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save

from abyssal import reference
from abyssal.models.packing import BLOCK, FP8_CONFIG, Packing
from abyssal.train.model import TrainingModel
from abyssal.train.parts import Attention, Dense, Layer, Sparse

PACKINGS = ("fp8", "bfloat16", "float32")


def published_tensors(model: TrainingModel) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield every weight in f32 under its published name; the tensors are views of the model's."""
    yield "model.embed_tokens.weight", model.embed.detach()
    for index, layer in enumerate(model.layers):
        assert isinstance(layer, Layer)
        yield from _layer(f"model.layers.{index}", layer)
    yield "model.norm.weight", model.norm.detach()
    if model.head is not None:
        yield "lm_head.weight", model.head.detach()
    if model.prediction is not None:
        prefix, extra = f"model.layers.{len(model.layers)}", model.prediction
        yield f"{prefix}.enorm.weight", extra.embed_norm.detach()
        yield f"{prefix}.hnorm.weight", extra.hidden_norm.detach()
        yield f"{prefix}.eh_proj.weight", extra.join.detach()
        yield from _layer(prefix, extra.layer)
        yield f"{prefix}.shared_head.norm.weight", extra.head_norm.detach()


def _layer(prefix: str, layer: Layer) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the weights of a decoder layer."""
    yield f"{prefix}.input_layernorm.weight", layer.input_norm.detach()
    yield from _attention(f"{prefix}.self_attn", layer.attention)
    yield f"{prefix}.post_attention_layernorm.weight", layer.post_norm.detach()
    part = layer.feed_forward
    if isinstance(part, Dense):
        yield from _gated(f"{prefix}.mlp", part.gate_up, part.down)
        return
    assert isinstance(part, Sparse)
    yield f"{prefix}.mlp.gate.weight", part.router.detach()
    yield f"{prefix}.mlp.gate.e_score_correction_bias", part.correction_bias
    for expert in range(part.experts):
        yield from _gated(f"{prefix}.mlp.experts.{expert}", part.gate_up[expert], part.down[expert])
    yield from _gated(f"{prefix}.mlp.shared_experts", part.shared.gate_up, part.shared.down)


def _attention(prefix: str, part: Attention) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the weights of an attention part."""
    if part.q_a is not None and part.q_norm is not None:
        yield f"{prefix}.q_a_proj.weight", part.q_a.detach()
        yield f"{prefix}.q_a_layernorm.weight", part.q_norm.detach()
        yield f"{prefix}.q_b_proj.weight", part.q.detach()
    else:
        yield f"{prefix}.q_proj.weight", part.q.detach()
    yield f"{prefix}.kv_a_proj_with_mqa.weight", part.kv_a.detach()
    yield f"{prefix}.kv_a_layernorm.weight", part.kv_norm.detach()
    yield f"{prefix}.kv_b_proj.weight", part.kv_b.detach()
    yield f"{prefix}.o_proj.weight", part.o.detach()


def _gated(
    prefix: str, gate_up: torch.Tensor, down: torch.Tensor
) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the three weights of a gated feed-forward part."""
    gate, up = gate_up.detach().chunk(2)
    yield f"{prefix}.gate_proj.weight", gate
    yield f"{prefix}.up_proj.weight", up
    yield f"{prefix}.down_proj.weight", down.detach()


def stored_tensors(model: TrainingModel, packing: str) -> dict[str, torch.Tensor]:
    """Return what a checkpoint holds.

    Args:
        model: What to write.
        packing: ``"fp8"``, ``"bfloat16"`` or ``"float32"``.

    Raises:
        ValueError: another packing.
    """
    if packing not in PACKINGS:
        raise ValueError(f"packing must be one of {', '.join(PACKINGS)}, got {packing!r}")
    plain = torch.float32 if packing == "float32" else torch.bfloat16
    fp8, stored = Packing("fp8"), {}
    for name, value in published_tensors(model):
        if packing == "fp8" and fp8.of(name, value.shape[-1]):
            stored[name], stored[f"{name}_scale_inv"] = reference.quantize_fp8(
                value.contiguous(), block=BLOCK
            )
        elif name.endswith("e_score_correction_bias"):
            stored[name] = value.clone()
        else:
            stored[name] = value.to(plain).contiguous()
    return stored


def write_model(model: TrainingModel, folder: Path, *, packing: str = "fp8") -> int:
    """Write ``config.json``, ``generation_config.json`` and ``model.safetensors``.

    Returns:
        Bytes of the weight file.

    Raises:
        ValueError: as ``stored_tensors``; a weight is not finite (the message names it).
    """
    for name, value in published_tensors(model):
        if not bool(torch.isfinite(value).all()):
            raise ValueError(f"{name} holds values that are not finite: nothing was written")
    folder.mkdir(parents=True, exist_ok=True)
    config: dict[str, Any] = dict(model.config)
    if not config["n_routed_experts"]:
        # A number of chosen experts without experts reads like a damaged configuration.
        del config["num_experts_per_tok"]
    if packing == "fp8":
        config["quantization_config"] = FP8_CONFIG
    else:
        config["torch_dtype"] = packing
    generation = {key: config[key] for key in ("bos_token_id", "eos_token_id", "pad_token_id")}
    for name, values in (("config", config), ("generation_config", generation)):
        text = json.dumps(values, indent=2) + "\n"
        (folder / f"{name}.json").write_text(text, encoding="utf-8")
    file = folder / "model.safetensors"
    file.write_bytes(save(stored_tensors(model, packing), {"format": "pt"}))
    return file.stat().st_size
