"""Checkpoints written again with packed weights: every byte, what reads them, what is refused."""

import json

import pytest
import torch
from hugging_face import transformers
from safetensors import safe_open

from abyssal import reference
from abyssal.errors import CheckpointError
from abyssal.models import load_model, open_checkpoint
from abyssal.models import repack as repacking
from abyssal.models.repack import Packing, repack
from abyssal.testing.checkpoints import make_tensors, tiny_config, write_checkpoint, write_folder

SIZES = {"hidden_size": 160, "intermediate_size": 200, "moe_intermediate_size": 96}


def read(folder):
    checkpoint = open_checkpoint(folder)
    return {name: checkpoint.tensor(name) for name in checkpoint.entries}


def expected(tensors, packing):
    """What the new checkpoint must hold, from the definition."""
    stored = {}
    for name, value in tensors.items():
        projection = name.endswith(("_proj.weight", "_with_mqa.weight"))
        expert = ".experts." in name
        if name == "lm_head.weight":
            projection = packing.head
        to_fp8 = packing.method == "fp8" or (packing.experts_only and not expert)
        if not projection or (to_fp8 and "eh_proj" in name):
            stored[name] = value
        elif to_fp8 or value.shape[1] % 32:
            stored[name], stored[f"{name}_scale_inv"] = reference.quantize_fp8(value, (128, 128))
        else:
            stored[name], stored[f"{name}_scale"] = reference.quantize_mxfp4(value)
    return stored


def assert_same(found, wanted):
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        assert found[name].dtype == value.dtype, name
        assert found[name].shape == value.shape, name
        assert torch.equal(
            found[name].contiguous().view(torch.uint8), value.contiguous().view(torch.uint8)
        ), name


PACKINGS = [
    Packing("fp8"),
    Packing("fp8", head=True),
    Packing("mxfp4"),
    Packing("mxfp4", head=True),
    Packing("mxfp4", experts_only=True),
]


@pytest.mark.parametrize("packing", PACKINGS)
@pytest.mark.parametrize("shards", [1, 3])
def test_every_tensor_is_what_the_definition_says(packing, shards, tmp_path, monkeypatch):
    # Several bands in a tensor, several files, rows and columns that end inside a block.
    monkeypatch.setattr(repacking, "BAND_BYTES", 4 * 160 * 128)
    write_checkpoint(tmp_path / "plain", num_mtp_layers=1, num_shards=shards, **SIZES)
    (tmp_path / "plain" / "tokenizer.json").write_text("{}")
    calls = []
    size = repack(
        tmp_path / "plain",
        tmp_path / "packed",
        packing,
        shard_bytes=100_000_000 if shards == 1 else 200_000,
        progress=lambda *call: calls.append(call),
    )
    total = open_checkpoint(tmp_path / "plain").num_bytes
    assert calls[-1] == ("quantize", total, total)
    assert [done for _, done, _ in calls] == sorted(done for _, done, _ in calls)
    packed = read(tmp_path / "packed")
    assert_same(packed, expected(read(tmp_path / "plain"), packing))
    assert size == open_checkpoint(tmp_path / "packed").num_bytes
    assert len(list((tmp_path / "packed").glob("*.safetensors"))) > 1 or shards == 1
    assert (tmp_path / "packed" / "tokenizer.json").read_text() == "{}"
    model, config = load_model(tmp_path / "packed", num_mtp_layers=1)
    assert config.quantization.method == ("fp8" if packing.experts_only else packing.method)
    assert config.quantization.expert_method == packing.method
    assert model.head.packed == packing.head
    logits = model.logits(model.forward_sequence(torch.arange(1, 9)[None]))
    assert bool(torch.isfinite(logits).all())


def test_fused_experts_are_taken_apart(tmp_path):
    config = tiny_config("v3", **SIZES)
    tensors = make_tensors(config)
    write_folder(tmp_path / "single", config, tensors)
    fused = {name: value for name, value in tensors.items() if ".experts." not in name}
    count = config["n_routed_experts"]
    for name in [name for name in tensors if name.endswith("experts.0.up_proj.weight")]:
        prefix = name.removesuffix("0.up_proj.weight")
        part = [
            [tensors[f"{prefix}{each}.{kind}_proj.weight"] for each in range(count)]
            for kind in ("gate", "up", "down")
        ]
        gate_up = [torch.cat(pair) for pair in zip(part[0], part[1], strict=True)]
        fused[f"{prefix}gate_up_proj"] = torch.stack(gate_up)
        fused[f"{prefix}down_proj"] = torch.stack(part[2])
    write_folder(tmp_path / "fused", config, fused)
    for packing in ("fp8", "mxfp4"):
        for source in ("single", "fused"):
            repack(tmp_path / source, tmp_path / f"{source}-{packing}", Packing(packing))
        assert_same(read(tmp_path / f"fused-{packing}"), read(tmp_path / f"single-{packing}"))


@pytest.mark.parametrize("packing", ["fp8", "ue8m0"])
def test_fp8_becomes_mxfp4(packing, tmp_path):
    write_checkpoint(tmp_path / "fp8", packing=packing, **SIZES)
    stored = read(tmp_path / "fp8")
    wide = {}
    for name, value in stored.items():
        if name.endswith("_scale_inv"):
            continue
        scales = stored.get(f"{name}_scale_inv")
        if scales is not None:
            value = reference.dequantize_fp8(value, scales, (128, 128), dtype=torch.float32)
        wide[name] = value
    repack(tmp_path / "fp8", tmp_path / "mxfp4", Packing("mxfp4"))
    wanted = expected(wide, Packing("mxfp4"))
    # Widths that are no multiple of 32 stay what they were.
    wanted |= {name: stored[name] for name in wanted if f"{name}_scale_inv" in wanted}
    wanted |= {name: stored[name].float() for name in wanted if name.endswith("_scale_inv")}
    assert_same(read(tmp_path / "mxfp4"), wanted)
    repack(tmp_path / "fp8", tmp_path / "mixed", Packing("mxfp4", experts_only=True))
    mixed = read(tmp_path / "mixed")
    name = "model.layers.0.self_attn.o_proj.weight"
    assert torch.equal(mixed[name].view(torch.uint8), stored[name].view(torch.uint8))
    assert torch.equal(mixed[f"{name}_scale_inv"], stored[f"{name}_scale_inv"])
    load_model(tmp_path / "mixed")


def test_transformers_reads_what_fp8_writes(tmp_path):
    write_checkpoint(tmp_path / "plain", torch_dtype="float32")
    repack(tmp_path / "plain", tmp_path / "fp8", Packing("fp8"))
    how = transformers.FineGrainedFP8Config(dequantize=True)
    peer = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "fp8", quantization_config=how, dtype=torch.float32
    )
    ids = torch.arange(3, 40)
    mine, _ = load_model(tmp_path / "fp8", dtype="float32")
    with torch.no_grad():
        wanted = peer(ids[None]).logits[0]
        logits = mine.logits(mine.forward_sequence(ids[None]))[0]
    # transformers rounds each dequantized weight to the type it loads in; here that is f32.
    assert float((logits - wanted).abs().max()) <= 1e-4 * max(1.0, float(wanted.abs().max()))


def broken(folder):
    file = folder / "model.safetensors"
    with safe_open(file, framework="pt") as opened:
        tensors = {name: opened.get_tensor(name) for name in opened.keys()}
    tensors["model.layers.1.self_attn.o_proj.weight"][3, 5] = float("nan")
    write_folder(folder, json.loads((folder / "config.json").read_text()), tensors)


def test_refusals_leave_nothing_behind(tmp_path):
    write_checkpoint(tmp_path / "plain")
    write_checkpoint(tmp_path / "fp8", packing="fp8")
    write_checkpoint(tmp_path / "mxfp4", packing="mxfp4")
    write_checkpoint(tmp_path / "tied", tie_word_embeddings=True)
    write_checkpoint(tmp_path / "nan")
    broken(tmp_path / "nan")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("kept")
    before = sorted(file.name for file in tmp_path.iterdir())
    cases = [
        ("plain", "new", Packing("q4"), ValueError, "method must be one of fp8, mxfp4, got 'q4'"),
        ("plain", "new", Packing("fp8", experts_only=True), ValueError, "goes with mxfp4, got fp8"),
        ("fp8", "new", Packing("fp8"), CheckpointError, "is packed as fp8 already"),
        ("mxfp4", "new", Packing("mxfp4"), CheckpointError, "is packed as mxfp4 already"),
        ("tied", "new", Packing("fp8", head=True), CheckpointError, "ties its head"),
        ("nan", "new", Packing("fp8"), CheckpointError, r"layers.1.self_attn.o_proj.*not finite"),
        ("plain", "full", Packing("fp8"), ValueError, "is not an empty folder"),
        ("absent", "new", Packing("fp8"), CheckpointError, "config.json"),
    ]
    for source, destination, packing, error, message in cases:
        with pytest.raises(error, match=message):
            repack(tmp_path / source, tmp_path / destination, packing)
        assert sorted(file.name for file in tmp_path.iterdir()) == before
    assert (tmp_path / "full" / "file").read_text() == "kept"


def test_a_full_disk_is_found_before_anything_is_written(tmp_path, monkeypatch):
    write_checkpoint(tmp_path / "plain")
    usage = repacking.shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(repacking.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(CheckpointError, match=r"needs .* but its disk has 1\.0 kB free"):
        repack(tmp_path / "plain", tmp_path / "packed", Packing("fp8"))
    assert not (tmp_path / "packed").exists()
