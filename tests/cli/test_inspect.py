import json
import math

import pytest
import torch
from safetensors.torch import load_file, save_file

from abyssal.cli import app
from abyssal.testing.checkpoints import write_checkpoint
from abyssal.testing.families import FAMILIES


def inspect(*arguments):
    with pytest.raises(SystemExit) as caught:
        app.main(["inspect", *map(str, arguments)])
    return caught.value.code


def inspect_json(capsys, *arguments):
    code = inspect(*arguments, "--json")
    return code, json.loads(capsys.readouterr().out)


def numbers_in_file(folder, *, skip=()):
    tensors = load_file(folder / "model.safetensors")
    return sum(math.prod(t.shape) for name, t in tensors.items() if not name.endswith(skip))


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_parameters_are_the_numbers_in_the_file(family, tmp_path, capsys):
    write_checkpoint(tmp_path, family=family)
    code, report = inspect_json(capsys, tmp_path)
    assert code == 0
    assert report["parameters"]["all"] == numbers_in_file(tmp_path)


def test_the_prediction_layer_is_counted_apart(tmp_path, capsys):
    write_checkpoint(tmp_path, num_mtp_layers=1)
    _, report = inspect_json(capsys, tmp_path)
    counts = report["parameters"]
    assert counts["all"] + counts["prediction_layers"] == numbers_in_file(tmp_path)


def test_active_parameters_leave_out_the_experts_that_were_not_selected(tmp_path, capsys):
    config = write_checkpoint(tmp_path)
    _, report = inspect_json(capsys, tmp_path)
    idle = config["n_routed_experts"] - config["num_experts_per_tok"]
    one = 3 * config["hidden_size"] * config["moe_intermediate_size"]
    assert report["parameters"]["all"] - report["parameters"]["active"] == idle * one


def test_packed_weights_count_once_and_their_bytes_are_the_files(tmp_path, capsys):
    write_checkpoint(tmp_path, packing="fp8")
    _, report = inspect_json(capsys, tmp_path)
    assert report["parameters"]["all"] == numbers_in_file(tmp_path, skip=("_scale_inv",))
    tensors = load_file(tmp_path / "model.safetensors")
    fp8 = [each for each in tensors.values() if each.dtype == torch.float8_e4m3fn]
    assert report["files"]["by_type"]["float8_e4m3fn"] == {
        "tensors": len(fp8),
        "bytes": sum(each.numel() for each in fp8),
    }
    assert report["files"]["bytes"] == sum(
        each.numel() * each.itemsize for each in tensors.values()
    )


def test_cache_bytes_are_the_latent_beside_keys_and_values(tmp_path, capsys):
    config = write_checkpoint(tmp_path, torch_dtype="bfloat16")
    _, report = inspect_json(capsys, tmp_path)
    layers, heads = config["num_hidden_layers"], config["num_attention_heads"]
    head = config["qk_nope_head_dim"] + config["qk_rope_head_dim"] + config["v_head_dim"]
    assert report["cache_bytes_per_token"] == {
        "type": "bfloat16",
        "latent": 2 * layers * (config["kv_lora_rank"] + config["qk_rope_head_dim"]),
        "expanded": 2 * layers * heads * head,
    }


def test_shards_are_counted(tmp_path, capsys):
    write_checkpoint(tmp_path, num_shards=3)
    _, report = inspect_json(capsys, tmp_path)
    assert report["files"]["count"] == 3


def test_words_say_the_same_as_the_json_object(tmp_path, capsys):
    write_checkpoint(tmp_path)
    assert inspect(tmp_path) == 0
    text = capsys.readouterr().out
    assert "\x1b" not in text
    assert "deepseek_v3: 2 layers, 1 with experts" in text
    assert "4 of 16 a token from 2 of 4 groups by sigmoid, and 1 shared" in text
    assert "context: 2,048 tokens" in text


def test_a_sound_checkpoint_passes_the_check(tmp_path, capsys):
    write_checkpoint(tmp_path, packing="fp8")
    assert inspect(tmp_path, "--check") == 0
    assert "values: all finite" in capsys.readouterr().out


def test_values_that_are_not_finite_are_named_and_give_exit_code_1(tmp_path, capsys):
    write_checkpoint(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["model.norm.weight"][3] = float("nan")
    tensors["lm_head.weight"][0, :2] = float("inf")
    save_file(tensors, tmp_path / "model.safetensors")
    assert inspect(tmp_path, "--check") == 1
    text = capsys.readouterr().out
    assert "model.norm.weight: 1 NaN, 0 infinite of 64" in text
    assert "lm_head.weight: 0 NaN, 2 infinite of 8192" in text
    assert "all finite" not in text


def test_weights_are_not_read_without_the_check(tmp_path, capsys, monkeypatch):
    from abyssal.models import Checkpoint

    def refuse(*_):
        raise AssertionError("a tensor was read")

    monkeypatch.setattr(Checkpoint, "tensor", refuse)
    write_checkpoint(tmp_path)
    assert inspect(tmp_path) == 0


@pytest.mark.parametrize("damage", ["config", "weights", "type"])
def test_a_damaged_checkpoint_gives_one_line_and_exit_code_1(damage, tmp_path, capsys):
    write_checkpoint(tmp_path)
    if damage == "config":
        (tmp_path / "config.json").write_text("{")
    elif damage == "type":
        (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    else:
        file = tmp_path / "model.safetensors"
        file.write_bytes(file.read_bytes()[:-7])
    assert inspect(tmp_path) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert str(tmp_path) in captured.err
