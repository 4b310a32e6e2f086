"""Fill a model from a checkpoint: the one place that knows the names of the tensors.

The model is built without memory, and each of its parameters becomes a view of the mapped file:
packed weights stay packed, weights of the wanted type are not copied. Before anything is returned,
every tensor of the folder has been accounted for: what is missing, unexpected, of a wrong shape or
of a wrong type is an error that names it.

Source: the tensor names of the published checkpoints (DeepSeek-V3 ``README_WEIGHTS.md``), and the
fused experts that transformers 5 keeps in memory.
"""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import cast

import torch
from torch import nn

from abyssal.errors import CheckpointError
from abyssal.models.checkpoint import Checkpoint, Progress, open_checkpoint, some
from abyssal.models.config import ModelConfig
from abyssal.models.deepseek import DeepseekModel, PredictionLayer
from abyssal.models.layer import DecoderLayer
from abyssal.nn import MLA, MLP, Linear, MoE, RMSNorm

#: Types of a weight that is not packed.
PLAIN = (torch.bfloat16, torch.float32, torch.float16)
#: Types that a model computes in.
COMPUTED = {"bfloat16": torch.bfloat16, "float32": torch.float32}
_LAYER = re.compile(r"model\.layers\.(\d+)\.")


def load_model(
    path: str | Path,
    *,
    dtype: str | torch.dtype | None = None,
    num_mtp_layers: int = 0,
    progress: Progress | None = None,
) -> tuple[DeepseekModel, ModelConfig]:
    """Load a checkpoint folder.

    Args:
        path: The folder, with ``config.json`` and safetensors files.
        dtype: Type of activations and of plain weights, ``"bfloat16"`` or ``"float32"``; None
            takes the configuration's (float32 for float16, so that nothing overflows).
        num_mtp_layers: How many of the file's multi-token-prediction layers to load too.
        progress: Called as ``progress("load", done_bytes, total_bytes)``, about a hundred times.

    Returns:
        The model, without gradients, and its configuration.

    Raises:
        CheckpointError: as ``ModelConfig.from_folder`` and ``open_checkpoint``; a tensor that is
            missing, unexpected, or not of the expected shape or type; fewer prediction layers than
            asked for.
        ValueError: ``dtype`` is not one of the two.

    Guarantees: packed weights stay packed and are not copied; the router's correction bias is f32
        whatever ``dtype`` says; nothing that the folder names is run.
    """
    config = ModelConfig.from_folder(path)
    checkpoint = open_checkpoint(path)
    compute = _compute_type(dtype, config)
    config = replace(config, dtype=compute)
    held = _prediction_layers(checkpoint, config)
    if num_mtp_layers > held:
        raise CheckpointError(
            f"{checkpoint.folder} holds {held} prediction layers, {num_mtp_layers} were asked for"
        )
    with torch.device("meta"):
        model = DeepseekModel(config, dtype=compute, num_mtp_layers=held)
    _Filler(checkpoint, config, compute, progress).fill(model)
    model.mtp = model.mtp[:num_mtp_layers]
    return model.requires_grad_(False).eval(), config


def _compute_type(dtype: str | torch.dtype | None, config: ModelConfig) -> torch.dtype:
    """Return the type that the model computes in."""
    if dtype is None:
        return torch.float32 if config.dtype == torch.float16 else config.dtype
    name = str(dtype).removeprefix("torch.")
    if name not in COMPUTED:
        raise ValueError(f"dtype must be one of {', '.join(COMPUTED)} or None, got {dtype!r}")
    return COMPUTED[name]


def _prediction_layers(checkpoint: Checkpoint, config: ModelConfig) -> int:
    """Count the prediction layers that the file holds, whatever its configuration announces."""
    held = 0
    while f"model.layers.{config.num_layers + held}.eh_proj.weight" in checkpoint.entries:
        held += 1
    return held


class _Filler:
    """Hands every tensor of a checkpoint to the module that owns it."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        config: ModelConfig,
        compute: torch.dtype,
        progress: Progress | None,
    ) -> None:
        self.checkpoint, self.config, self.compute = checkpoint, config, compute
        self.progress = progress
        self.left = dict(checkpoint.entries)
        self.missing: list[str] = []
        self.total = checkpoint.num_bytes
        self.done = self.next_report = 0

    def fill(self, model: DeepseekModel) -> None:
        """Fill ``model``, and raise unless the two fit each other exactly."""
        rows = (self.config.vocab_size, self.config.hidden_size)
        model.embed.weight = self.parameter("model.embed_tokens.weight", rows)
        for index, layer in enumerate(model.layers):
            self.decoder(f"model.layers.{index}", cast(DecoderLayer, layer))
        self.norm("model.norm", model.norm)
        if self.config.tie_embeddings:
            model.head.weight = model.embed.weight
            self.copy_of_main("lm_head.weight")
        else:
            self.linear("lm_head", model.head)
        for index, layer in enumerate(model.mtp, start=self.config.num_layers):
            self.prediction(f"model.layers.{index}", cast(PredictionLayer, layer))
        self.check_all_used()
        if self.progress:
            self.progress("load", self.total, self.total)

    def check_all_used(self) -> None:
        """Raise if a tensor is missing, or if one is left that nothing asked for."""
        folder = self.checkpoint.folder
        # Older files keep the rotary table, which follows from the configuration.
        extra = [name for name in self.left if not name.endswith("rotary_emb.inv_freq")]
        if self.missing:
            raise CheckpointError(
                f"{folder} lacks {len(self.missing)} tensors: {some(self.missing)}"
            )
        if extra:
            number = _LAYER.match(extra[0])
            if number and int(number[1]) >= self.config.num_layers:
                raise CheckpointError(
                    f"{folder} holds layer {number[1]}, but 'num_hidden_layers' is "
                    f"{self.config.num_layers} and it is no prediction layer: {some(extra)}"
                )
            raise CheckpointError(f"{folder} holds {len(extra)} unexpected tensors: {some(extra)}")

    def take(
        self, name: str, shape: tuple[int, ...], types: tuple[torch.dtype, ...]
    ) -> torch.Tensor | None:
        """Return a tensor after checking it; None, and a note, where the file lacks it."""
        entry = self.left.pop(name, None)
        if entry is None:
            self.missing.append(name)
            return None
        if entry.shape != shape:
            raise CheckpointError(
                f"{self.checkpoint.folder}: tensor {name} has shape {list(entry.shape)}, expected "
                f"{list(shape)}"
            )
        if entry.dtype not in types:
            allowed = " or ".join(_name(each) for each in types)
            raise CheckpointError(
                f"{self.checkpoint.folder}: tensor {name} is {_name(entry.dtype)}, expected "
                f"{allowed}"
            )
        self.done += entry.num_bytes
        if self.progress and self.done >= self.next_report:
            self.progress("load", self.done, self.total)
            self.next_report = self.done + self.total // 100
        return self.checkpoint.tensor(name)

    def parameter(self, name: str, shape: tuple[int, ...], *, keep: bool = False) -> nn.Parameter:
        """Return a plain weight in the model's type; with ``keep`` in the file's."""
        tensor = self.take(name, shape, PLAIN)
        if tensor is None:
            tensor = torch.empty(shape, dtype=self.compute, device="meta")
        return nn.Parameter(tensor if keep else tensor.to(self.compute), requires_grad=False)

    def copy_of_main(self, name: str) -> None:
        """Account for a copy of the embedding or head, which the model shares instead."""
        if name in self.left:
            self.take(name, (self.config.vocab_size, self.config.hidden_size), PLAIN)

    def norm(self, prefix: str, module: RMSNorm) -> None:
        """Fill a norm."""
        module.weight = self.parameter(f"{prefix}.weight", tuple(module.weight.shape))

    def linear(self, prefix: str, module: Linear) -> None:
        """Fill a linear layer with a plain or a packed weight."""
        name = f"{prefix}.weight"
        rows, columns = module.out_features, module.in_features
        entry = self.checkpoint.entries.get(name)
        packed = entry is not None and self.config.quantization is not None
        if entry is not None and packed and entry.dtype == torch.float8_e4m3fn:
            codes = self.take(name, (rows, columns), (torch.float8_e4m3fn,))
            blocks = (-(-rows // 128), -(-columns // 128))
            scale_types = (torch.float32, torch.float8_e8m0fnu)
            scales = self.take(f"{name}_scale_inv", blocks, scale_types)
        elif entry is not None and packed and entry.dtype == torch.uint8:
            codes = self.take(name, (rows, columns // 2), (torch.uint8,))
            scales = self.take(f"{name}_scale", (rows, columns // 32), (torch.uint8,))
        else:
            module.weight = self.parameter(name, (rows, columns))
            codes = scales = None
        if codes is not None and scales is not None:
            module.set_packed(codes, scales)
        if module.bias is not None:
            module.bias = self.parameter(f"{prefix}.bias", (rows,))

    def decoder(self, prefix: str, layer: DecoderLayer) -> None:
        """Fill a decoder layer."""
        self.norm(f"{prefix}.input_layernorm", layer.input_norm)
        self.attention(f"{prefix}.self_attn", layer.attention)
        self.norm(f"{prefix}.post_attention_layernorm", layer.post_norm)
        if layer.mlp is not None:
            self.dense(f"{prefix}.mlp", layer.mlp)
        elif layer.moe is not None:
            self.sparse(f"{prefix}.mlp", layer.moe)

    def attention(self, prefix: str, module: MLA) -> None:
        """Fill latent attention."""
        if module.q is not None:
            self.linear(f"{prefix}.q_proj", module.q)
        if module.q_down is not None and module.q_norm is not None and module.q_up is not None:
            self.linear(f"{prefix}.q_a_proj", module.q_down)
            self.norm(f"{prefix}.q_a_layernorm", module.q_norm)
            self.linear(f"{prefix}.q_b_proj", module.q_up)
        self.linear(f"{prefix}.kv_a_proj_with_mqa", module.kv_down)
        self.norm(f"{prefix}.kv_a_layernorm", module.kv_norm)
        self.linear(f"{prefix}.kv_b_proj", module.kv_up)
        self.linear(f"{prefix}.o_proj", module.output)

    def dense(self, prefix: str, module: MLP) -> None:
        """Fill a gated feed-forward part."""
        self.linear(f"{prefix}.gate_proj", module.gate)
        self.linear(f"{prefix}.up_proj", module.up)
        self.linear(f"{prefix}.down_proj", module.down)

    def sparse(self, prefix: str, module: MoE) -> None:
        """Fill a mixture of experts, stored one by one or fused."""
        router = module.router
        # The router multiplies in f32 whatever its weight is stored as.
        router.weight = self.parameter(
            f"{prefix}.gate.weight", tuple(router.weight.shape), keep=True
        )
        if router.correction_bias is not None:
            name = f"{prefix}.gate.e_score_correction_bias"
            bias = self.take(name, tuple(router.correction_bias.shape), PLAIN)
            router.correction_bias = None if bias is None else bias.float()
        if module.shared is not None:
            self.dense(f"{prefix}.shared_experts", module.shared)
        experts = cast(list[MLP], list(module.experts))
        if f"{prefix}.experts.gate_up_proj" in self.left:
            self.fused(f"{prefix}.experts", experts)
            return
        for index, expert in enumerate(experts):
            self.dense(f"{prefix}.experts.{index}", expert)

    def fused(self, prefix: str, experts: list[MLP]) -> None:
        """Fill experts from one tensor of gates above ups and one of downs; each is a view."""
        inner, hidden, count = self.config.expert_inner, self.config.hidden_size, len(experts)
        gate_up = self.parameter(f"{prefix}.gate_up_proj", (count, 2 * inner, hidden))
        down = self.parameter(f"{prefix}.down_proj", (count, hidden, inner))
        for index, expert in enumerate(experts):
            expert.gate.weight = nn.Parameter(gate_up[index, :inner], requires_grad=False)
            expert.up.weight = nn.Parameter(gate_up[index, inner:], requires_grad=False)
            expert.down.weight = nn.Parameter(down[index], requires_grad=False)

    def prediction(self, prefix: str, layer: PredictionLayer) -> None:
        """Fill a prediction layer; its copies of the embedding and the head are the main ones."""
        self.norm(f"{prefix}.enorm", layer.embedding_norm)
        self.norm(f"{prefix}.hnorm", layer.hidden_norm)
        self.linear(f"{prefix}.eh_proj", layer.projection)
        self.decoder(prefix, layer.block)
        self.norm(f"{prefix}.shared_head.norm", layer.norm)
        self.copy_of_main(f"{prefix}.shared_head.head.weight")
        self.copy_of_main(f"{prefix}.embed_tokens.weight")


def _name(dtype: torch.dtype) -> str:
    """Write a type without its module's name."""
    return str(dtype).removeprefix("torch.")
