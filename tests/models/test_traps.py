"""Each rule that is easy to get wrong, broken on purpose: the comparison must notice.

Every case first agrees with transformers, then runs again with one rule replaced by its wrong twin.
"""

from dataclasses import dataclass, field, replace

import pytest
import torch
from hugging_face import TOLERANCE, compare_models, peer_model

from abyssal import reference
from abyssal.errors import CheckpointError
from abyssal.models import load_model, loader
from abyssal.nn import mla, router, yarn_mscale
from abyssal.testing.checkpoints import make_tensors, pack_tensors, write_folder
from abyssal.testing.families import FAMILIES, tiny_config


@dataclass
class Trap:
    """A rule, a checkpoint that depends on it, and what breaks it.

    ``wrong`` gives changes to the configuration that was read; ``patch`` changes code.
    """

    name: str
    family: str
    wrong: object = None
    patch: object = None
    overrides: dict = field(default_factory=dict)
    without: tuple = ()
    change_tensors: object = None
    tokens: int = 40


def scaled(pattern, factor):
    """Scale the tensors whose name holds ``pattern``."""

    def change(tensors):
        for name in tensors:
            if pattern in name:
                tensors[name] = tensors[name] * factor

    return change


def shifted_bias(offset):
    """Shift every correction bias, which leaves the choice as it is in exact arithmetic."""

    def change(tensors):
        for name in tensors:
            if name.endswith("e_score_correction_bias"):
                tensors[name] = tensors[name] + offset

    return change


def yarn_with(**changes):
    return lambda config: {"yarn": replace(config.yarn, **changes)}


def route_with(change):
    """Replace the router's operation by one written down here."""

    def patch(monkeypatch):
        # Product and routing are one call; the broken rule takes the place of both.
        def gate(x, weight, **rule):
            return change(x.float() @ weight.float().T, **rule)

        monkeypatch.setattr(router.ops, "gate_route", gate)

    return patch


def biased_weights(logits, *, top_k, correction_bias, scale, **_rest):
    scores = logits.sigmoid() + correction_bias
    weights, indices = scores.topk(top_k)
    return weights / weights.sum(-1, keepdim=True) * scale, indices.int()


def groups_masked_with_zero(
    logits, *, top_k, correction_bias, num_groups, top_groups, scale, **_rest
):
    scores = logits.sigmoid()
    biased = (scores + correction_bias).unflatten(-1, (num_groups, -1))
    kept = biased.topk(2).values.sum(-1).topk(top_groups).indices
    mask = torch.zeros(len(logits), num_groups).scatter(1, kept, 1).unsqueeze(-1)
    indices = biased.masked_fill(mask == 0, 0.0).flatten(1).topk(top_k).indices
    weights = scores.gather(1, indices)
    return weights / weights.sum(-1, keepdim=True) * scale, indices.int()


def half_split(monkeypatch):
    def rotate(x, cos, sin):
        first, second = x.float().chunk(2, dim=-1)
        turned = torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)
        return turned.to(x.dtype)

    monkeypatch.setattr(mla, "apply_rotary", rotate)


def bias_in_bf16(monkeypatch):
    take = loader._Filler.take

    def rounded(self, name, *rest):
        tensor = take(self, name, *rest)
        return tensor.bfloat16() if name.endswith("e_score_correction_bias") else tensor

    monkeypatch.setattr(loader._Filler, "take", rounded)


NEW_SPELLING = {
    "rope_parameters": {"rope_type": "yarn", "rope_theta": 500.0, **FAMILIES["v3"]["rope_scaling"]}
}
NEW_SPELLING["rope_parameters"].pop("type")
MSCALE_HALF = {"rope_scaling": {**FAMILIES["v3"]["rope_scaling"], "mscale": 0.5}}
MSCALE_ALONE = {"rope_scaling": {**FAMILIES["v3"]["rope_scaling"], "mscale_all_dim": None}}
NO_MSCALE = {
    "rope_scaling": {**FAMILIES["v3"]["rope_scaling"], "mscale": None, "mscale_all_dim": None}
}


def square(config):
    scale = (config.nope_dim + config.rope_dim) ** -0.5
    return {"softmax_scale": scale * yarn_mscale(config.yarn.factor) ** 2}


TRAPS = [
    Trap(
        "the norm of the latent has its own epsilon",
        "moonlight",
        lambda config: {"latent_eps": config.rms_eps},
        change_tensors=scaled("kv_a_proj", 0.05),
    ),
    Trap(
        "the norm of the query's latent has its own epsilon",
        "glm-4.7-flash",
        lambda config: {"latent_eps": config.rms_eps},
        change_tensors=scaled("q_a_proj", 0.02),
    ),
    Trap(
        "the other norms use the epsilon of the file",
        "moonlight",
        lambda config: {"rms_eps": 1e-6},
        change_tensors=scaled("embed_tokens", 0.02),
    ),
    Trap(
        "the attention scale has the square of the YaRN factor",
        "v2-lite",
        lambda config: {"softmax_scale": (config.nope_dim + config.rope_dim) ** -0.5},
    ),
    Trap("the square needs mscale_all_dim", "v3", square, overrides=MSCALE_ALONE),
    Trap(
        "cosine and sine carry the quotient of the mscales",
        "v3",
        yarn_with(attention_factor=1.0),
        overrides=MSCALE_HALF,
    ),
    Trap(
        "without mscales cosine and sine carry the factor of YaRN itself",
        "v3",
        yarn_with(attention_factor=1.0),
        overrides=NO_MSCALE,
    ),
    Trap(
        "beta_fast may equal beta_slow",
        "kimi-k2",
        yarn_with(beta_fast=32.0),
    ),
    Trap(
        "rope_scaling in the old spelling is read",
        "v3",
        lambda config: {"yarn": None},
        overrides={"rope_scaling": {**FAMILIES["v3"]["rope_scaling"], "factor": 100.0}},
    ),
    Trap(
        "rope_parameters in the new spelling are read",
        "v3",
        lambda config: {"rope_theta": 10000.0},
        overrides=NEW_SPELLING,
        without=("rope_scaling", "rope_theta"),
    ),
    Trap(
        "the base of the frequencies is the model's own",
        "glm-4.7-flash",
        lambda config: {"rope_theta": 10000.0},
    ),
    Trap("rotary pairs are interleaved", "v3", patch=half_split),
    Trap(
        "missing scoring keys follow from the model type",
        "v3",
        lambda config: {"scoring": "softmax"},
        without=("scoring_func", "topk_method"),
    ),
    Trap("weights are normalized", "v3", lambda config: {"normalize": False}),
    Trap("weights are scaled", "v2", lambda config: {"routed_scale": 1.0}),
    Trap("V2 judges a group by its best expert", "v2", lambda config: {"group_score": "top2_sum"}),
    Trap("V3 judges a group by its best two", "v3", lambda config: {"group_score": "max"}),
    Trap(
        "the weights come from the scores without the bias",
        "moonlight",
        patch=route_with(biased_weights),
    ),
    Trap(
        "experts outside the kept groups are never chosen, not even over negative scores",
        "v3",
        patch=route_with(groups_masked_with_zero),
        change_tensors=shifted_bias(-3.0),
    ),
    Trap(
        "the correction bias stays f32",
        "moonlight",
        patch=bias_in_bf16,
        change_tensors=shifted_bias(3.0),
    ),
]


@pytest.mark.parametrize("trap", TRAPS, ids=lambda trap: trap.name.replace(" ", "_"))
def test_breaking_it_is_noticed(trap, tmp_path, monkeypatch, seed):
    config = tiny_config(trap.family, **trap.overrides)
    for key in trap.without:
        del config[key]
    tensors = make_tensors(config, seed=seed)
    if trap.change_tensors:
        trap.change_tensors(tensors)
    write_folder(tmp_path, config, tensors)
    peer = peer_model(config, tmp_path)
    ids = torch.randint(128, (trap.tokens,), generator=torch.Generator().manual_seed(seed))

    def error():
        return compare_models(load_model(tmp_path)[0], peer, ids.tolist(), steps=2).error

    assert error() <= TOLERANCE
    if trap.patch:
        trap.patch(monkeypatch)
    if trap.wrong:
        read = loader.ModelConfig.from_folder

        def wrong(path):
            right = read(path)
            return replace(right, **trap.wrong(right))

        monkeypatch.setattr(loader.ModelConfig, "from_folder", wrong)
    assert error() > 2 * TOLERANCE


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
