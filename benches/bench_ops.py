"""Operations beside plain PyTorch. Every result is checked before it is timed."""

import pytest
import torch

from abyssal import ops, reference

TOKENS = [1, 64, 1024]
SIZE = 2048


@pytest.fixture(autouse=True)
def same_numbers():
    torch.manual_seed(0)


@pytest.mark.parametrize("tokens", TOKENS)
@pytest.mark.parametrize("who", ["ours", "plain torch"])
def test_route_as_deepseek_v3_does(benchmark, tokens, who):
    benchmark.group = f"route {tokens} tokens, 256 experts, 8 groups"
    logits, bias = torch.randn(tokens, 256), torch.zeros(256)
    rule = {
        "top_k": 8,
        "scoring": "sigmoid",
        "correction_bias": bias,
        "num_groups": 8,
        "top_groups": 4,
        "scale": 2.5,
    }
    expected = reference.route(logits, **rule)
    assert torch.equal(ops.route(logits, **rule)[1], expected[1])
    module = ops if who == "ours" else reference
    benchmark(lambda: module.route(logits, **rule))


@pytest.mark.parametrize("tokens", [1, 16])
@pytest.mark.parametrize("who", ["ours", "plain torch, unpacked to bfloat16", "plain torch, f32"])
def test_multiply_by_an_fp8_weight(benchmark, tokens, who):
    benchmark.group = f"linear {tokens} x {SIZE} x {SIZE}"
    x = torch.randn(tokens, SIZE)
    codes, scales = ops.quantize_fp8(torch.randn(SIZE, SIZE), block=(128, 128))
    weight = ops.dequantize_fp8(codes, scales, (128, 128), dtype=torch.float32)
    # Sums of 2048 products in another order: an error of at most 2048 half units of f32 of the sum
    # of magnitudes, about 2048; in practice far below.
    bound = SIZE * 2**-24 * (x.abs() @ weight.abs().T)
    assert ((ops.fp8_linear(x, codes, scales) - x @ weight.T).abs() <= bound).all()
    half, half_weight = x.bfloat16(), weight.bfloat16()
    calls = {
        "ours": lambda: ops.fp8_linear(x, codes, scales),
        "plain torch, unpacked to bfloat16": lambda: half @ half_weight.T,
        "plain torch, f32": lambda: x @ weight.T,
    }
    benchmark(calls[who])
