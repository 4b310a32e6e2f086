"""Checkpoint folders that are damaged or contradict themselves: each is refused by name."""

import json

import pytest
import torch
from damage import INDEX, SINGLE, edit_header, rewrite
from safetensors.torch import load_file, save_file

from abyssal.errors import CheckpointError
from abyssal.models import load_model, open_checkpoint
from abyssal.testing.checkpoints import make_tensors, write_checkpoint, write_folder
from abyssal.testing.families import tiny_config


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
