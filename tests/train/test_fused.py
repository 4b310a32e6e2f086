"""The fused pieces of the training pass equal their plain compositions, gradients too."""

import pytest
import torch
import torch.nn.functional as F

from abyssal.train import fused

# In f64 a hand-written gradient that is right agrees to rounding, and a wrong one cannot.
CLOSE = {"rtol": 1e-9, "atol": 1e-11}


def random(generator, *shape, grad=True):
    return torch.randn(*shape, generator=generator, dtype=torch.float64).requires_grad_(grad)


def compare(ours, plain, inputs, generator):
    direction = torch.randn(ours.shape, generator=generator, dtype=torch.float64).to(ours.dtype)
    torch.testing.assert_close(ours, plain, **CLOSE)
    found = torch.autograd.grad((ours * direction).sum(), inputs)
    wanted = torch.autograd.grad((plain * direction).sum(), inputs)
    for mine, right in zip(found, wanted, strict=True):
        torch.testing.assert_close(mine, right, **CLOSE)


def test_rms_norm_equals_its_formula(generator):
    x, gain = random(generator, 3, 5, 16), random(generator, 16)
    plain = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6) * gain
    compare(fused.rms_norm(x, gain), plain, [x, gain], generator)


def test_swiglu_equals_its_formula(generator):
    x = random(generator, 4, 6, 20)
    compare(fused.swiglu(x), F.silu(x[..., :10]) * x[..., 10:], [x], generator)


def plain_experts(x, weights, indices, gate_up, down):
    inner = down.shape[2]
    rows = []
    for token in range(len(x)):
        total = torch.zeros_like(x[0])
        for slot, expert in enumerate(indices[token].tolist()):
            both = gate_up[expert] @ x[token]
            out = down[expert] @ (F.silu(both[:inner]) * both[inner:])
            total = total + weights[token, slot] * out
        rows.append(total)
    return torch.stack(rows)


@pytest.mark.parametrize("top_k", [1, 3])
def test_experts_equal_a_loop_over_tokens_and_an_idle_expert_gets_no_gradient(generator, top_k):
    num_experts, idle = 6, 4
    x, weights = random(generator, 23, 8), random(generator, 23, top_k)
    gate_up, down = random(generator, num_experts, 10, 8), random(generator, num_experts, 8, 5)
    scores = torch.rand(23, num_experts, generator=generator)
    scores[:, idle] = -1.0
    indices = scores.topk(top_k)[1]
    inputs = [x, weights, gate_up, down]
    ours = fused.experts(x, weights, indices, gate_up, down)
    compare(ours, plain_experts(x, weights, indices, gate_up, down), inputs, generator)
    ours = fused.experts(x, weights, indices, gate_up, down)
    (gradient,) = torch.autograd.grad(ours.sum(), [gate_up])
    assert not gradient[idle].any()


def test_cross_entropy_equals_torchs_over_more_rows_than_are_held_at_a_time(generator, monkeypatch):
    monkeypatch.setattr(fused, "LOGIT_ROWS", 7)
    x, head = random(generator, 25, 12), random(generator, 40, 12)
    targets = torch.randint(0, 40, (25,), generator=generator)
    ours = fused.cross_entropy(x, head, targets, 0.25)
    plain = F.cross_entropy(x @ head.t(), targets, reduction="sum") * 0.25
    # The sum is returned as f32, whose half ulp is 2^-24 of the value.
    assert abs(ours.item() - plain.item()) <= 2**-24 * abs(plain.item())
    for mine, right in zip(
        torch.autograd.grad(3 * ours, [x, head]),
        torch.autograd.grad(3 * plain, [x, head]),
        strict=True,
    ):
        torch.testing.assert_close(mine, right, **CLOSE)
