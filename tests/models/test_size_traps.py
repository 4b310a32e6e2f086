"""Sizes and layouts that are easy to get wrong, broken on purpose: loading must notice."""

from dataclasses import replace

import pytest
import torch
from hugging_face import TOLERANCE, compare_models, peer_model

from abyssal import reference
from abyssal.errors import CheckpointError
from abyssal.models import load_model, loader
from abyssal.testing.checkpoints import make_tensors, pack_tensors, write_folder
from abyssal.testing.families import tiny_config


@pytest.mark.parametrize(
    "family, wrong",
    [
        ("v2-lite", {"q_lora_rank": 24}),  # null means that there is no query latent
        ("v3", {"q_lora_rank": None}),
        ("v3", {"kv_lora_rank": 512}),
        ("glm-4.7-flash", {"v_dim": 24}),  # values may be wider than keys
        ("glm-4.7-flash", {"moe_layers": (False, False)}),
        ("v2", {"num_shared_experts": 1}),  # the shared experts are one wider part
        ("moonlight", {"correction_bias": False}),
        ("moonlight", {"tie_embeddings": True, "num_layers": 3, "moe_layers": (False, True, True)}),
    ],
)
def test_a_wrong_size_is_noticed_when_loading(family, wrong, tmp_path, monkeypatch):
    config = tiny_config(family)
    write_folder(tmp_path, config, make_tensors(config))
    load_model(tmp_path)
    read = loader.ModelConfig.from_folder
    monkeypatch.setattr(
        loader.ModelConfig, "from_folder", lambda path: replace(read(path), **wrong)
    )
    with pytest.raises(CheckpointError):
        load_model(tmp_path)


def test_a_prediction_layer_that_nobody_expects_is_noticed(tmp_path, monkeypatch):
    config = tiny_config("v3")
    write_folder(tmp_path, config, make_tensors(config, num_mtp_layers=1))
    load_model(tmp_path)
    monkeypatch.setattr(loader, "_prediction_layers", lambda *_args: 0)
    with pytest.raises(CheckpointError, match="layer 2"):
        load_model(tmp_path)


def test_gates_and_ups_of_fused_experts_are_not_exchanged(tmp_path, seed):
    config = tiny_config("v3")
    tensors = make_tensors(config, seed=seed)
    write_folder(tmp_path / "each", config, tensors)
    experts = range(config["n_routed_experts"])
    prefix = "model.layers.1.mlp.experts"
    pairs = {}
    for first, second in (("gate", "up"), ("up", "gate")):
        fused = {name: value for name, value in tensors.items() if ".experts." not in name}
        both = [
            torch.cat([tensors[f"{prefix}.{i}.{part}_proj.weight"] for part in (first, second)])
            for i in experts
        ]
        downs = [tensors[f"{prefix}.{i}.down_proj.weight"] for i in experts]
        fused[f"{prefix}.gate_up_proj"] = torch.stack(both)
        fused[f"{prefix}.down_proj"] = torch.stack(downs)
        write_folder(tmp_path / first, config, fused)
        pairs[first] = load_model(tmp_path / first)[0]
    peer = peer_model(config, tmp_path / "each")
    assert compare_models(pairs["gate"], peer, list(range(30)), steps=2).error <= TOLERANCE
    assert compare_models(pairs["up"], peer, list(range(30)), steps=2).error > 2 * TOLERANCE


def test_the_last_ragged_block_has_its_own_scale(tmp_path, monkeypatch, seed):
    # 200 = 1.5625 blocks: a program that drops or repeats the last scale gives other weights.
    config = tiny_config("v3", hidden_size=160, intermediate_size=200)
    config["quantization_config"] = {"quant_method": "fp8", "weight_block_size": [128, 128]}
    tensors = make_tensors(config, seed=seed)
    for name in tensors:
        if name.endswith("mlp.up_proj.weight"):
            tensors[name][128:] *= 50.0
    stored = pack_tensors(tensors, "fp8", torch.float32)
    write_folder(tmp_path / "right", config, stored)
    model, _ = load_model(tmp_path / "right", dtype="float32")
    up = model.layers[0].mlp.up
    assert up.scales.shape == (2, 2)
    right = up.dequantized(torch.float32)
    name = "model.layers.0.mlp.up_proj.weight"
    # e4m3 keeps three bits behind the leading one: half a step is 1/16 of a value, and of the
    # smallest normal number 2**-6 of 448 below it.
    bound = right.abs() / 16 + up.scales.max() * 2**-9
    assert ((right - tensors[name]).abs() <= bound).all()
    up.scales = up.scales[:1].repeat(2, 1)
    assert ((up.dequantized(torch.float32) - tensors[name]).abs() > bound).any()
    stored[f"{name}_scale_inv"] = stored[f"{name}_scale_inv"][:1].contiguous()
    write_folder(tmp_path / "cut", config, stored)
    with pytest.raises(CheckpointError, match=r"weight_scale_inv has shape \[1, 2\].*\[2, 2\]"):
        load_model(tmp_path / "cut")
    want = reference.dequantize_fp8(
        model.layers[0].mlp.up.weight, up.scales, (128, 128), dtype=torch.float32
    )
    assert want.shape == (200, 160)
