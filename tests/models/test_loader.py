"""Checkpoint folders: sound ones in every layout, and damaged ones."""

import json
import struct

import pytest
import torch
from safetensors.torch import load_file, save_file

from abyssal.errors import CheckpointError
from abyssal.models import check_finite, load_model, open_checkpoint
from abyssal.models.finite import NonFinite
from abyssal.testing.checkpoints import make_tensors, write_checkpoint, write_folder
from abyssal.testing.families import FAMILIES, tiny_config

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"


def rewrite(folder, change):
    """Change the tensors of a folder with one file."""
    tensors = load_file(folder / SINGLE)
    tensors = {name: value.clone() for name, value in tensors.items()}
    change(tensors)
    save_file(tensors, folder / SINGLE)


def edit_header(file, change):
    """Change a file's header and leave its bytes as they are."""
    data = file.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    text = change(header)
    text = (text if isinstance(text, str) else json.dumps(header)).encode()
    file.write_bytes(struct.pack("<Q", len(text)) + text + data[8 + length :])


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


@pytest.mark.parametrize(
    "change, message",
    [
        ({"model.norm.weight": None}, r"lacks 1 tensors: model\.norm\.weight"),
        ({"lm_head.weight": None}, r"lacks 1 tensors: lm_head\.weight"),
        ({"model.layers.1.mlp.experts.7.up_proj.weight": None}, r"lacks 1 .*experts\.7\.up_proj"),
        ({"model.norm.weight": (63,)}, r"norm\.weight has shape \[63\], expected \[64\]"),
        ({"model.embed_tokens.weight": (127, 64)}, r"shape \[127, 64\], expected \[128, 64\]"),
        ({"model.norm.weight": torch.int64}, r"norm\.weight is int64, expected bfloat16 or"),
        (
            {"model.layers.0.self_attn.o_proj.weight": torch.float8_e4m3fn},
            r"o_proj\.weight is float8_e4m3fn, expected bfloat16 or",
        ),
        ({"model.layers.0.mlp.extra.weight": (2,)}, r"1 unexpected tensors: .*mlp\.extra\.weight"),
        ({"model.layers.2.norm.weight": (2,)}, r"layer 2, but 'num_hidden_layers' is 2"),
        ({"model.layers.0.self_attn.q_proj.weight": (96, 64)}, r"unexpected .*q_proj"),
    ],
)
def test_tensors_that_do_not_fit_are_named(change, message, tmp_path):
    write_checkpoint(tmp_path)

    def apply(tensors):
        for name, value in change.items():
            if value is None:
                del tensors[name]
            elif isinstance(value, tuple):
                tensors[name] = torch.zeros(value)
            else:
                tensors[name] = tensors[name].to(value)

    rewrite(tmp_path, apply)
    with pytest.raises(CheckpointError, match=message):
        load_model(tmp_path)


def test_packed_weights_without_or_with_wrong_scales_are_named(tmp_path):
    write_checkpoint(tmp_path, packing="fp8")
    name = "model.layers.0.mlp.up_proj.weight_scale_inv"
    for value, message in (
        (torch.ones(2, 1), r"has shape \[2, 1\], expected \[1, 1\]"),
        (torch.ones(1, 1, dtype=torch.int32), r"is int32, expected float32 or float8_e8m0fnu"),
        (None, r"lacks 1 tensors: .*weight_scale_inv"),
    ):

        def change(tensors, value=value):
            tensors.pop(name)
            if value is not None:
                tensors[name] = value

        rewrite(tmp_path, change)
        with pytest.raises(CheckpointError, match=message):
            load_model(tmp_path)


@pytest.mark.parametrize("cut", [1, 1000, 100_000])
def test_a_truncated_file_is_refused(cut, tmp_path):
    write_checkpoint(tmp_path)
    file = tmp_path / SINGLE
    data = file.read_bytes()
    file.write_bytes(data[:-cut])
    with pytest.raises(
        CheckpointError, match=rf"is truncated: {len(data) - cut} bytes.*{len(data)}"
    ):
        load_model(tmp_path)
    file.write_bytes(data + b"x" * cut)
    with pytest.raises(CheckpointError, match="is longer than its header says"):
        load_model(tmp_path)
    file.write_bytes(data[:100])
    with pytest.raises(CheckpointError, match="truncated or not a safetensors file: 100 bytes"):
        load_model(tmp_path)
    file.write_bytes(b"")
    with pytest.raises(CheckpointError, match="truncated or not a safetensors file: 0 bytes"):
        load_model(tmp_path)


def edited(name, **changes):
    def change(header):
        header[name].update(changes)

    return change


@pytest.mark.parametrize(
    "change, message",
    [
        (edited("model.norm.weight", shape=[65]), r"needs 260 bytes, its offsets hold 256"),
        (edited("model.norm.weight", dtype="F64"), r"needs 512 bytes, its offsets hold 256"),
        (edited("model.norm.weight", dtype="F99"), r"unknown dtype 'F99'"),
        (edited("model.norm.weight", shape=[-64]), r"no counts"),
        (edited("model.norm.weight", shape=None), r"is not described by"),
        (edited("model.norm.weight", data_offsets=[0]), r"is not described by"),
        (lambda header: header.update({"model.norm.weight": 7}), r"is not described by"),
        (lambda header: header.pop("model.norm.weight") and None, r"starts at byte|is longer"),
        (lambda header: "[]", r"header that is not an object"),
        (lambda header: "{]", r"header that is not JSON"),
        (lambda header: '{"a": 1, "a": 2}', r"names 'a' twice"),
        (lambda header: "[" * 100_000, r"header that is not JSON"),
    ],
)
def test_a_header_that_disagrees_with_its_file_is_refused(change, message, tmp_path):
    write_checkpoint(tmp_path)
    edit_header(tmp_path / SINGLE, change)
    with pytest.raises(CheckpointError, match=message):
        load_model(tmp_path)


def test_missing_shards_are_counted_and_named(tmp_path):
    write_checkpoint(tmp_path, num_shards=4)
    (tmp_path / "model-00002-of-00004.safetensors").unlink()
    message = "lacks 1 of the 4 shards .*: model-00002-of-00004"
    with pytest.raises(CheckpointError, match=message):
        load_model(tmp_path)


def test_an_index_that_does_not_fit_its_shards_is_refused(tmp_path):
    write_checkpoint(tmp_path, num_shards=2)
    index = json.loads((tmp_path / INDEX).read_text())

    def refuse(change, message):
        changed = json.loads(json.dumps(index))
        text = change(changed)
        (tmp_path / INDEX).write_text(text if isinstance(text, str) else json.dumps(changed))
        with pytest.raises(CheckpointError, match=message):
            load_model(tmp_path)

    first, second = sorted(set(index["weight_map"].values()))
    name = next(key for key, shard in index["weight_map"].items() if shard == first)
    refuse(lambda changed: changed["weight_map"].update({name: second}), f"but it is in {first}")
    refuse(lambda changed: changed["weight_map"].update(more=first), "but no shard has it")
    refuse(lambda changed: changed["weight_map"].update({name: "../x"}), "which is no file of")
    refuse(lambda changed: changed["weight_map"].update({name: 5}), "damaged|no file of")
    refuse(lambda _: "{", "is damaged")
    refuse(lambda _: "{}", "is damaged")


def test_a_tensor_in_two_shards_is_refused(tmp_path):
    write_checkpoint(tmp_path, num_shards=2)
    first, second = sorted(tmp_path.glob("*.safetensors"))
    both = load_file(first) | load_file(second)
    save_file(both, second)
    with pytest.raises(CheckpointError, match=r"is in both model-00001.*and model-00002"):
        load_model(tmp_path)


def test_folders_without_safetensors_say_what_to_do(tmp_path):
    with pytest.raises(CheckpointError, match="is not a folder"):
        open_checkpoint(tmp_path / "none")
    write_checkpoint(tmp_path)
    (tmp_path / SINGLE).rename(tmp_path / "model-00001-of-00002.safetensors")
    with pytest.raises(CheckpointError, match=r"neither model\.safetensors nor model\.safetensors"):
        load_model(tmp_path)
    (tmp_path / "model-00001-of-00002.safetensors").unlink()
    with pytest.raises(CheckpointError, match="holds no weights"):
        load_model(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"not read")
    with pytest.raises(CheckpointError, match=r"pickled weights only \(pytorch_model\.bin\).*conv"):
        load_model(tmp_path)


def test_fused_experts_of_a_wrong_shape_are_named(tmp_path):
    config = tiny_config("v3")
    tensors = {
        name: value for name, value in make_tensors(config).items() if ".experts." not in name
    }
    tensors["model.layers.1.mlp.experts.gate_up_proj"] = torch.zeros(16, 63, 64)
    tensors["model.layers.1.mlp.experts.down_proj"] = torch.zeros(16, 64, 32)
    write_folder(tmp_path, config, tensors)
    with pytest.raises(CheckpointError, match=r"shape \[16, 63, 64\], expected \[16, 64, 64\]"):
        load_model(tmp_path)


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
