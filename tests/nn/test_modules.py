"""Norm, linear layer, router and experts."""

import copy

import pytest
import torch
import torch.nn.functional as F
from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3RMSNorm

from abyssal import ops, reference
from abyssal.nn import MLP, Linear, MoE, RMSNorm, Router


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_norm_is_bit_equal_to_transformers(dtype, generator):
    mine, peer = RMSNorm(48, 1e-5, dtype=dtype), DeepseekV3RMSNorm(48, 1e-5).to(dtype)
    with torch.no_grad():
        mine.weight.copy_(torch.randn(48, generator=generator))
        peer.weight.copy_(mine.weight)
    x = torch.randn(7, 48, generator=generator).to(dtype)
    assert torch.equal(mine(x), peer(x))
    assert torch.equal(mine(x * 0), torch.zeros_like(x))


def test_a_plain_layer_is_an_ordinary_trainable_linear_layer(generator):
    layer = Linear(6, 4, bias=True)
    torch.nn.init.normal_(layer.weight, generator=generator)
    x = torch.randn(3, 6, generator=generator)
    assert torch.equal(layer(x), F.linear(x, layer.weight, layer.bias))
    layer(x).sum().backward()
    assert layer.weight.grad is not None
    assert not layer.packed


@pytest.mark.parametrize("packing", ["fp8", "mxfp4"])
@pytest.mark.parametrize("shape", [(128, 128), (200, 96), (40, 320)])
def test_a_packed_layer_multiplies_its_dequantized_weight(packing, shape, generator):
    weight = torch.randn(shape, generator=generator)
    layer = Linear(shape[1], shape[0], bias=True)
    with torch.no_grad():
        layer.bias.copy_(torch.randn(shape[0], generator=generator))
    if packing == "fp8":
        layer.set_packed(*reference.quantize_fp8(weight, block=(128, 128)))
    else:
        layer.set_packed(*reference.quantize_mxfp4(weight))
    assert layer.packed
    assert not layer.weight.requires_grad
    x = torch.randn(5, shape[1], generator=generator)
    want = x.double() @ layer.dequantized(torch.float32).double().T + layer.bias.double()
    # f32 sums of up to 320 products of size about 1: 320 * 2**-24 of their magnitudes.
    bound = x.abs().double() @ layer.dequantized(torch.float32).abs().double().T * 320 * 2**-24
    assert ((layer(x).double() - want).abs() <= bound + 1e-6).all()
    assert layer(x.bfloat16()).dtype == torch.bfloat16


def test_a_layer_says_what_multiplies(generator):
    layer = Linear(6, 4)
    torch.nn.init.normal_(layer.weight, generator=generator)
    x = torch.randn(3, 6, generator=generator)
    assert layer.path(x) == "torch"
    with torch.no_grad():
        assert layer.path(x) == "compiled"
        assert torch.equal(layer(x), ops.linear(x, layer.weight))
        assert layer.path(x.half()) == layer.path(x.to("meta")) == "torch"
    layer.set_packed(*reference.quantize_fp8(torch.ones(4, 6), block=(128, 128)))
    assert layer.path(x) == "compiled"


def test_packed_weights_that_do_not_fit_are_refused():
    layer = Linear(96, 200)
    codes, scales = reference.quantize_fp8(torch.ones(200, 96), block=(128, 128))
    with pytest.raises(ValueError, match=r"200x96 layer needs codes \(200, 96\)"):
        layer.set_packed(codes, scales[:1])
    with pytest.raises(ValueError, match="float8_e4m3fn or uint8"):
        layer.set_packed(codes.float(), scales)


def test_the_router_multiplies_in_f32_whatever_its_weight_is_stored_as(generator):
    router = Router(64, 16, top_k=2, scoring="sigmoid", dtype=torch.bfloat16)
    torch.nn.init.normal_(router.weight, generator=generator)
    x = torch.randn(9, 64, generator=generator).bfloat16()
    logits = router.logits(x)
    assert logits.dtype == torch.float32
    assert torch.equal(logits, F.linear(x.float(), router.weight.float()))
    assert not torch.equal(logits, F.linear(x, router.weight).float())


def make_moe(generator, num_experts=6, zero_experts=0, shared=8):
    router = Router(
        16,
        num_experts + zero_experts,
        top_k=3,
        scoring="sigmoid",
        scale=2.5,
        correction_bias=True,
    )
    moe = MoE(router, num_experts, 16, 12, shared)
    for weight in moe.parameters():
        torch.nn.init.normal_(weight, std=0.3, generator=generator)
    return moe


def by_hand(moe, x):
    """Each token alone, experts in ascending order, the shared one last."""
    weights, indices = moe.router(x)
    rows = []
    for token, (weight, index) in enumerate(zip(weights, indices, strict=True)):
        total = torch.zeros(16)
        for place in index.argsort():
            expert = int(index[place])
            row = x[token : token + 1]
            if expert < len(moe.experts):
                row = moe.experts[expert](row)
            total = total + row[0] * weight[place]
        if moe.shared is not None:
            total = total + moe.shared(x[token : token + 1])[0]
        rows.append(total)
    return torch.stack(rows)


@pytest.mark.parametrize("zero_experts", [0, 3])
@pytest.mark.parametrize("shared", [0, 8])
def test_experts_are_added_as_if_each_token_were_alone(zero_experts, shared, generator):
    moe = make_moe(generator, zero_experts=zero_experts, shared=shared)
    x = torch.randn(40, 16, generator=generator)
    with torch.no_grad():
        got, want = moe(x), by_hand(moe, x)
    # The same sums; a product of many rows may group its 16 terms otherwise than one of a row.
    torch.testing.assert_close(got, want, rtol=0, atol=5e-6)


def test_experts_are_one_call_where_no_gradient_is_recorded(generator):
    moe = make_moe(generator)
    x = torch.randn(5, 16, generator=generator)
    assert moe.path(x) == moe.shared.path(x) == "torch"
    recorded = moe(x).detach()
    with torch.no_grad():
        assert moe.path(x) == moe.shared.path(x) == "compiled"
        fused = moe(x)
        assert moe.path(x.half()) == moe.path(x.to("meta")) == "torch"
    # Sums of 16 and 12 products of size about 1, added otherwise.
    torch.testing.assert_close(fused, recorded, rtol=0, atol=5e-6)
    moe.experts[1].gate.bias = torch.nn.Parameter(torch.ones(12))
    with torch.no_grad():
        moe.experts[1].gate.weight = torch.nn.Parameter(moe.experts[1].gate.weight.clone())
        assert moe.path(x) == "torch"


def test_weights_that_change_are_seen(generator):
    moe = make_moe(generator)
    x = torch.randn(5, 16, generator=generator)
    with torch.no_grad():
        changes = [
            lambda: moe.experts[0].up.weight.mul_(2),
            lambda: setattr(moe.shared.down, "weight", torch.nn.Parameter(torch.ones(16, 8))),
            lambda: moe.load_state_dict(make_moe(generator).state_dict(), assign=True),
            lambda: (moe.experts.bfloat16(), moe.shared.bfloat16()),
            lambda: moe.shared.up.set_packed(
                *reference.quantize_fp8(torch.ones(8, 16), block=(128, 128))
            ),
        ]
        moe(x)
        for change in changes:
            change()
            rows = x.to(moe.experts[0].up.weight.dtype)
            fresh = copy.deepcopy(moe)
            assert fresh._kept is None
            assert torch.equal(moe(rows), fresh(rows))


@pytest.mark.parametrize("limit", [None, 0.5])
def test_the_clamp_bounds_gate_and_up(limit, generator):
    mlp = MLP(16, 12, limit=limit)
    for weight in mlp.parameters():
        torch.nn.init.normal_(weight, std=0.5, generator=generator)
    x = torch.randn(9, 16, generator=generator)
    opened, other = mlp.gate(x), mlp.up(x)
    assert opened.max() > 0.5 and other.abs().max() > 0.5
    if limit is not None:
        opened, other = opened.clamp(max=0.5), other.clamp(-0.5, 0.5)
    want = mlp.down(F.silu(opened) * other)
    assert torch.equal(mlp(x), want)
    with torch.no_grad():
        torch.testing.assert_close(mlp(x), want, rtol=0, atol=5e-6)


def test_no_tokens_give_no_rows(generator):
    assert make_moe(generator)(torch.zeros(0, 16)).shape == (0, 16)
    assert MLP(16, 8)(torch.zeros(0, 16)).shape == (0, 16)


def test_gradients_reach_the_chosen_experts_and_the_router(generator):
    moe = make_moe(generator)
    x = torch.randn(3, 16, generator=generator, requires_grad=True)
    chosen = set(moe.router(x)[1].flatten().tolist())
    moe(x).sum().backward()
    for index, expert in enumerate(moe.experts):
        assert (expert.up.weight.grad is not None) == (index in chosen)
    assert moe.router.weight.grad.abs().sum() > 0
    assert x.grad.abs().sum() > 0
