"""Routing and the gate beside the PyTorch that models use for them. Checked before it is timed."""

import pytest
import torch
import torch.nn.functional as F

from abyssal import ops

V3 = {"top_k": 8, "scoring": "sigmoid", "num_groups": 8, "top_groups": 4, "scale": 2.5}
K2 = {"top_k": 8, "scoring": "sigmoid", "scale": 2.827}
V2_LITE = {"top_k": 6, "scoring": "softmax", "normalize": False}
RULES = {"256 experts, 8 groups": (V3, 256), "384 experts": (K2, 384), "64 experts": (V2_LITE, 64)}


@pytest.fixture(autouse=True)
def one_thread_and_the_same_numbers():
    torch.manual_seed(0)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def eager(logits, bias, rule):
    """What a model's gate does, in PyTorch's own operations."""
    if rule["scoring"] == "softmax":
        weights, experts = torch.topk(logits.softmax(dim=-1), rule["top_k"], dim=-1, sorted=False)
        return weights * rule.get("scale", 1.0), experts
    scores = logits.sigmoid()
    choice = scores + bias
    if "num_groups" in rule:
        grouped = choice.view(len(logits), rule["num_groups"], -1)
        best = grouped.topk(2, dim=-1).values.sum(dim=-1)
        kept = torch.topk(best, rule["top_groups"], dim=-1, sorted=False).indices
        mask = torch.zeros_like(best).scatter_(1, kept, 1).unsqueeze(-1).expand_as(grouped)
        choice = choice.masked_fill(~mask.reshape_as(choice).bool(), float("-inf"))
    experts = torch.topk(choice, rule["top_k"], dim=-1, sorted=False).indices
    weights = scores.gather(1, experts)
    return weights / (weights.sum(dim=-1, keepdim=True) + 1e-20) * rule["scale"], experts


def assert_same_experts(ours, theirs):
    """Compare sets of experts and their weights; random logits have no ties."""
    order = theirs[1].argsort(dim=1)
    mine = ours[1].long().argsort(dim=1)
    assert torch.equal(ours[1].long().gather(1, mine), theirs[1].gather(1, order))
    torch.testing.assert_close(ours[0].gather(1, mine), theirs[0].gather(1, order))


@pytest.mark.parametrize("tokens", [1, 4096])
@pytest.mark.parametrize("who", ["ours, given outputs", "ours, new outputs", "eager torch"])
@pytest.mark.parametrize("name", RULES)
def test_route(benchmark, name, who, tokens):
    benchmark.group = f"route {tokens} x {name}"
    rule, experts = RULES[name]
    logits, bias = torch.randn(tokens, experts), torch.randn(experts) * 0.1
    shape = (tokens, rule["top_k"])
    out = torch.empty(shape), torch.empty(shape, dtype=torch.int32)
    biased = rule if rule["scoring"] == "softmax" else {**rule, "correction_bias": bias}
    assert_same_experts(ops.route(logits, out=out, **biased), eager(logits, bias, rule))
    calls = {
        "ours, given outputs": lambda: ops.route(logits, out=out, **biased),
        "ours, new outputs": lambda: ops.route(logits, **biased),
        "eager torch": lambda: eager(logits, bias, rule),
    }
    benchmark(calls[who])


@pytest.mark.parametrize("tokens", [1, 64])
@pytest.mark.parametrize("who", ["one call", "product in torch, then route"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_gate(benchmark, dtype, who, tokens):
    benchmark.group = f"gate {tokens} x 2048, 64 experts, {dtype}"
    x = torch.randn(tokens, 2048).to(dtype)
    weight = (torch.randn(64, 2048) * 0.02).to(dtype)

    def in_two() -> tuple[torch.Tensor, torch.Tensor]:
        return ops.route(F.linear(x.float(), weight.float()), **V2_LITE)

    weights, _ = ops.gate_route(x, weight, **V2_LITE)
    torch.testing.assert_close(weights, in_two()[0], rtol=1e-4, atol=1e-6)
    benchmark(in_two if "torch" in who else lambda: ops.gate_route(x, weight, **V2_LITE))


@pytest.mark.parametrize("tokens", [64, 4096])
@pytest.mark.parametrize("who", ["ours", "argsort and bincount"])
def test_permute(benchmark, who, tokens):
    benchmark.group = f"permute {tokens} x 8"
    indices = torch.randint(256, (tokens, 8), dtype=torch.int32)
    order, offsets = ops.permute(indices, 256)

    def in_torch() -> tuple[torch.Tensor, torch.Tensor]:
        flat = indices.flatten()
        return flat.argsort(stable=True), flat.bincount(minlength=256).cumsum(0)

    expected = in_torch()
    assert torch.equal(order.long(), expected[0])
    assert torch.equal(offsets[1:].long(), expected[1])
    benchmark(in_torch if who != "ours" else lambda: ops.permute(indices, 256))
