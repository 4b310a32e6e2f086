"""Routing equals the router modules of transformers on rows without ties or NaN.

Both compute the same scores up to rounding, so the chosen sets may differ only where the competing
scores lie within 4 units in the last place; weights agree within 2e-6 of the rule's scale.
"""

import importlib
from types import SimpleNamespace

import pytest
import torch

from abyssal import ops, reference
from abyssal.testing.generators import plain_logits
from abyssal.testing.numeric import ulp_distance

CHUNK = 2048
CLOSE = 4
# Scores are at most 1 after normalization and carry a few roundings of 6e-8 on each side.
WEIGHT_TOLERANCE = 2e-6

# Module, class, number of experts, our rule.
FAMILIES = {
    "v2_lite": (
        "deepseek_v2",
        "DeepseekV2TopkRouter",
        64,
        dict(top_k=6, scoring="softmax", normalize=False),
    ),
    "v2": (
        "deepseek_v2",
        "DeepseekV2TopkRouter",
        160,
        dict(
            top_k=6,
            scoring="softmax",
            num_groups=8,
            top_groups=3,
            group_score="max",
            normalize=False,
            scale=16.0,
        ),
    ),
    "v3": (
        "deepseek_v3",
        "DeepseekV3TopkRouter",
        256,
        dict(top_k=8, scoring="sigmoid", num_groups=8, top_groups=4, scale=2.5),
    ),
    "moonlight": (
        "deepseek_v3",
        "DeepseekV3TopkRouter",
        64,
        dict(top_k=6, scoring="sigmoid", scale=2.446),
    ),
    "kimi_k2": (
        "deepseek_v3",
        "DeepseekV3TopkRouter",
        384,
        dict(top_k=8, scoring="sigmoid", scale=2.827),
    ),
    "glm_4_7_flash": (
        "glm4_moe_lite",
        "Glm4MoeLiteTopkRouter",
        64,
        dict(top_k=4, scoring="sigmoid", scale=1.8),
    ),
    "v4": (
        "deepseek_v4",
        "DeepseekV4TopKRouter",
        256,
        dict(top_k=6, scoring="sqrtsoftplus", scale=1.5),
    ),
    "longcat": (
        "longcat_flash",
        "LongcatFlashTopkRouter",
        768,
        dict(top_k=12, scoring="softmax", normalize=False, scale=6.0),
    ),
}


def transformers_router(module_name, class_name, experts, rule, extra=None):
    """Build a router whose weight is the identity, so that hidden states are the logits."""
    module = importlib.import_module(f"transformers.models.{module_name}.modeling_{module_name}")
    config = SimpleNamespace(
        hidden_size=experts,
        num_experts=experts,
        num_local_experts=experts,
        n_routed_experts=experts * 2 // 3 if module_name == "longcat_flash" else experts,
        zero_expert_num=experts // 3,
        router_bias=False,
        num_experts_per_tok=rule["top_k"],
        n_group=rule.get("num_groups", 1),
        topk_group=rule.get("top_groups", 1),
        topk_method="group_limited_greedy" if rule.get("num_groups", 1) > 1 else "greedy",
        norm_topk_prob=rule.get("normalize", True),
        routed_scaling_factor=rule.get("scale", 1.0),
        scoring_func=rule["scoring"],
        **(extra or {}),
    )
    router = getattr(module, class_name)(config).eval()
    linear = getattr(router, "classifier", router)
    linear.weight.requires_grad_(False).copy_(torch.eye(experts))
    return router


def dense(weights, indices, experts):
    return torch.zeros(len(weights), experts).scatter(1, indices.long(), weights)


def choices_are_close(logits, bias, rule, ours, theirs):
    """Whether a difference between the chosen sets of a row is one of rounding."""
    scores = reference.router_scores(logits[None], rule["scoring"])[0]
    keys = scores if bias is None else scores + bias
    groups = rule.get("num_groups", 1)
    if rule.get("top_groups", 1) < groups:
        grouped = keys.view(groups, -1)
        two = grouped.topk(2).values.sum(dim=1)
        ranked = (grouped.amax(dim=1) if rule.get("group_score") == "max" else two).sort().values
        border = groups - rule["top_groups"]
        if ulp_distance(ranked[border], ranked[border - 1]) <= CLOSE:
            return True
    apart = sorted(set(ours) ^ set(theirs))
    competing = keys[torch.tensor(apart)]
    return bool((ulp_distance(competing.max(), competing.min()) <= CLOSE).all())


@pytest.mark.parametrize("name", FAMILIES)
def test_selection_and_weights_equal_those_of_transformers(name, generator, full_profile, capsys):
    module_name, class_name, experts, rule = FAMILIES[name]
    router = transformers_router(module_name, class_name, experts, rule)
    bias = None
    if hasattr(router, "e_score_correction_bias"):
        spread = 0.5 / experts if rule["scoring"] == "softmax" else 0.1
        bias = torch.randn(experts, generator=generator) * spread
        router.e_score_correction_bias.copy_(bias)
    rows = 1_000_000 if full_profile else 8 * CHUNK
    different, worst = 0, 0.0
    for start in range(0, rows, CHUNK):
        logits = plain_logits(min(CHUNK, rows - start), experts, generator)
        with torch.no_grad():
            _, their_weights, their_indices = router(logits)
        weights, indices = ops.route(logits, correction_bias=bias, **rule)
        same = (indices.long().sort().values == their_indices.sort().values).all(dim=1)
        for row in (~same).nonzero().flatten().tolist():
            sets = indices[row].tolist(), their_indices[row].tolist()
            assert choices_are_close(logits[row], bias, rule, *sets), (row, sets)
            different += 1
        ours = dense(weights[same], indices[same], experts)
        theirs = dense(their_weights[same], their_indices[same], experts)
        worst = max(worst, (ours - theirs).abs().max().item() / rule.get("scale", 1.0))
    with capsys.disabled():
        print(
            f"\n  {name}: {different} of {rows} sets differ from those of transformers, all within "
            f"{CLOSE} ulp; weights by at most {worst:.1e} of the scale"
        )
    assert worst <= WEIGHT_TOLERANCE
    assert different <= rows // 1000


def test_table_look_up_equals_transformers(generator, full_profile):
    rule = dict(top_k=6, scoring="sqrtsoftplus", scale=1.5)
    router = transformers_router(
        "deepseek_v4", "DeepseekV4HashRouter", 256, rule, {"vocab_size": 500}
    )
    table = torch.rand(500, 256, generator=generator).argsort(dim=1)[:, :6]
    router.tid2eid.copy_(table)
    rows = 1_000_000 if full_profile else 8 * CHUNK
    for start in range(0, rows, CHUNK):
        count = min(CHUNK, rows - start)
        logits = plain_logits(count, 256, generator)
        ids = torch.randint(500, (count,), generator=generator)
        with torch.no_grad():
            _, their_weights, their_indices = router(logits, ids)
        weights, indices = ops.route_table(
            logits, ids, table.to(torch.int32), scoring="sqrtsoftplus", scale=1.5
        )
        assert torch.equal(indices.long(), their_indices)
        assert (weights - their_weights).abs().max() / 1.5 <= WEIGHT_TOLERANCE
