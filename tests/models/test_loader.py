"""Checkpoint folders in every layout: what is loaded, and what of it stays as it is."""

import json

import pytest
import torch
from damage import SINGLE, edit_header, rewrite
from safetensors.torch import load_file

from abyssal.errors import CheckpointError
from abyssal.models import check_finite, load_model, open_checkpoint
from abyssal.models.finite import NonFinite
from abyssal.testing.checkpoints import write_checkpoint
from abyssal.testing.families import FAMILIES


def weights(model):
    """Every parameter and buffer by name."""
    return dict(model.named_parameters()) | dict(model.named_buffers())


@pytest.mark.parametrize("family", FAMILIES)
def test_shards_and_one_file_give_the_same_model(family, tmp_path):
    write_checkpoint(tmp_path / "one", family=family)
    write_checkpoint(tmp_path / "many", family=family, num_shards=3)
    one, many = (weights(load_model(tmp_path / name)[0]) for name in ("one", "many"))
    assert one.keys() == many.keys()
    for name, value in one.items():
        assert torch.equal(value, many[name]), name


def test_every_weight_is_the_file_s_own_memory_and_needs_no_gradient(tmp_path):
    write_checkpoint(tmp_path, packing="fp8", torch_dtype="bfloat16")
    model, config = load_model(tmp_path)
    assert config.dtype == torch.bfloat16
    storages = {
        value.untyped_storage().data_ptr()
        for name, value in weights(model).items()
        if not name.endswith("inverse_frequencies")
    }
    assert len(storages) == 1  # one mapping, and no copies
    assert not any(value.requires_grad for value in model.parameters())
    assert not any(value.is_meta for value in weights(model).values())


def test_writing_to_a_loaded_weight_never_reaches_the_file(tmp_path):
    write_checkpoint(tmp_path)
    before = (tmp_path / SINGLE).read_bytes()
    model, _ = load_model(tmp_path)
    with torch.no_grad():
        model.embed.weight.zero_()
    assert (tmp_path / SINGLE).read_bytes() == before


def test_fp8_weights_stay_packed_whatever_the_activations_are(tmp_path):
    write_checkpoint(tmp_path, packing="ue8m0", torch_dtype="bfloat16")
    for dtype, plain in ((None, torch.bfloat16), ("float32", torch.float32)):
        model, _ = load_model(tmp_path, dtype=dtype)
        layer = model.layers[1]
        assert layer.attention.kv_up.weight.dtype == torch.float8_e4m3fn
        assert layer.attention.kv_up.scales.dtype == torch.float32
        assert layer.moe.experts[3].down.weight.dtype == torch.float8_e4m3fn
        assert model.head.weight.dtype == layer.input_norm.weight.dtype == plain
        assert layer.moe.router.weight.dtype == torch.bfloat16
        assert layer.moe.router.correction_bias.dtype == torch.float32


def test_float16_is_loaded_as_float32_unless_asked_otherwise(tmp_path):
    write_checkpoint(tmp_path, torch_dtype="float16")
    assert load_model(tmp_path)[0].dtype == torch.float32
    assert load_model(tmp_path, dtype=torch.bfloat16)[0].dtype == torch.bfloat16
    with pytest.raises(ValueError, match="one of bfloat16, float32 or None, got 'int8'"):
        load_model(tmp_path, dtype="int8")


def test_the_correction_bias_is_f32_even_where_the_file_rounds_it(tmp_path):
    write_checkpoint(tmp_path)
    name = "model.layers.1.mlp.gate.e_score_correction_bias"

    def change(tensors):
        tensors[name] = tensors[name].bfloat16()

    rewrite(tmp_path, change)
    bias = load_model(tmp_path)[0].layers[1].moe.router.correction_bias
    assert torch.equal(bias, load_file(tmp_path / SINGLE)[name].float())


def test_a_tied_head_is_the_embedding_whether_or_not_the_file_has_a_copy(tmp_path):
    write_checkpoint(tmp_path, tie_word_embeddings=True)
    model, _ = load_model(tmp_path)
    assert model.head.weight is model.embed.weight
    rewrite(tmp_path, lambda tensors: tensors.update({"lm_head.weight": torch.ones(128, 64)}))
    assert load_model(tmp_path)[0].head.weight.data_ptr() != 0
    rewrite(tmp_path, lambda tensors: tensors.update({"lm_head.weight": torch.ones(127, 64)}))
    with pytest.raises(CheckpointError, match=r"lm_head.weight has shape \[127, 64\]"):
        load_model(tmp_path)


@pytest.mark.parametrize("copies", [False, True])
@pytest.mark.parametrize("announced", [0, 1])
def test_a_prediction_layer_is_known_by_its_tensors_not_by_the_configuration(
    announced, copies, tmp_path
):
    write_checkpoint(tmp_path, num_mtp_layers=1, num_nextn_predict_layers=announced)
    if copies:

        def change(tensors):
            for name in ("shared_head.head", "embed_tokens"):
                tensors[f"model.layers.2.{name}.weight"] = torch.zeros(128, 64)

        rewrite(tmp_path, change)
    assert len(load_model(tmp_path)[0].mtp) == 0
    model, _ = load_model(tmp_path, num_mtp_layers=1)
    hidden = model.forward_sequence(torch.arange(10)[None])
    predicted = model.logits(model.predict_further(hidden, torch.arange(1, 11)[None]))
    assert predicted.shape == (1, 10, 128)
    assert predicted.isfinite().all()
    with pytest.raises(CheckpointError, match="holds 1 prediction layers, 2 were asked for"):
        load_model(tmp_path, num_mtp_layers=2)


def test_an_announced_prediction_layer_may_be_absent(tmp_path):
    write_checkpoint(tmp_path, num_nextn_predict_layers=1)
    assert load_model(tmp_path)[1].num_mtp_layers == 1
    with pytest.raises(CheckpointError, match="holds 0 prediction layers, 1 were asked for"):
        load_model(tmp_path, num_mtp_layers=1)


def test_older_rotary_tables_are_ignored(tmp_path):
    write_checkpoint(tmp_path)
    name = "model.layers.0.self_attn.rotary_emb.inv_freq"
    rewrite(tmp_path, lambda tensors: tensors.update({name: torch.zeros(4)}))
    load_model(tmp_path)


def test_progress_ends_at_all_bytes(tmp_path):
    write_checkpoint(tmp_path)
    calls = []
    load_model(tmp_path, progress=lambda *call: calls.append(call))
    total = open_checkpoint(tmp_path).num_bytes
    assert calls[-1] == ("load", total, total)
    assert [done for _, done, _ in calls] == sorted(done for _, done, _ in calls)
    assert len(calls) <= 103


def test_unaligned_tensors_are_read_right(tmp_path):
    write_checkpoint(tmp_path)
    # An odd header length leaves every tensor at an odd address.
    edit_header(tmp_path / SINGLE, lambda header: json.dumps(header) + " ")
    entries = open_checkpoint(tmp_path).entries.values()
    if all(entry.start % 4 == 0 for entry in entries):
        edit_header(tmp_path / SINGLE, lambda header: json.dumps(header) + " ")
    checkpoint = open_checkpoint(tmp_path)
    assert any(entry.start % 4 for entry in checkpoint.entries.values())
    for name, value in load_file(tmp_path / SINGLE).items():
        assert torch.equal(checkpoint.tensor(name), value), name


def test_values_that_are_not_finite_are_found_in_every_format(tmp_path):
    write_checkpoint(tmp_path, packing="fp8")
    assert check_finite(tmp_path) == []
    names = ["model.norm.weight", "model.layers.0.mlp.up_proj.weight", "lm_head.weight"]

    def change(tensors):
        tensors[names[0]][3] = float("nan")
        tensors[names[1]].view(torch.uint8)[0, :2] = 0x7F
        tensors[names[2]][1, :3] = float("-inf")

    rewrite(tmp_path, change)
    calls = []
    found = check_finite(tmp_path, lambda *call: calls.append(call))
    assert sorted(found, key=lambda bad: names.index(bad.name)) == [
        NonFinite(names[0], 1, 0, 64),
        NonFinite(names[1], 2, 0, 96 * 64),
        NonFinite(names[2], 0, 3, 128 * 64),
    ]
    total = open_checkpoint(tmp_path).num_bytes
    assert calls[-1] == ("scan", total, total)
    write_checkpoint(tmp_path, packing="mxfp4")
    assert check_finite(tmp_path) == []
    name = "model.layers.0.mlp.up_proj.weight_scale"
    rewrite(tmp_path, lambda tensors: tensors[name].view(-1).__setitem__(0, 255))
    assert check_finite(tmp_path) == [NonFinite(name, 1, 0, 96 * 2)]
