"""Each rule that is easy to get wrong, broken on purpose: the comparison must notice.

Every case first agrees with transformers, then runs again with one rule replaced by its wrong twin.
"""

from dataclasses import dataclass, field, replace

import pytest
import torch
from hugging_face import TOLERANCE, compare_models, peer_model

from abyssal.models import load_model, loader
from abyssal.nn import mla, router, yarn_mscale
from abyssal.testing.checkpoints import make_tensors, write_folder
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
