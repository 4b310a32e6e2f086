"""Products with plain and packed weights: right to rounding, the same bits however called."""

import pytest
import torch

import abyssal
from abyssal import ops, reference
from abyssal._core import kernel_tier
from abyssal.testing.numeric import assert_same_bits

SHAPES = [(1, 1), (5, 100), (128, 128), (130, 257), (300, 1408), (64, 4096)]
MXFP4_SHAPES = [(1, 32), (5, 96), (130, 288), (300, 1408), (64, 4096)]
KINDS = ["fp8", "fp8_e8m0", "mxfp4", "bf16", "f32"]
LANES = {"scalar": 8, "avx2": 8, "avx512": 16, "avx512-bf16": 16, "neon": 4}
HALF_ULP = 2.0**-24
# Half a unit of float32's and of bfloat16's least subnormal number.
LEAST = {torch.float32: 2.0**-150, torch.bfloat16: 2.0**-134}


def make(kind, shape, generator):
    """Return (name of the operation, weight as it takes it, weight in float32)."""
    weight = torch.randn(shape, generator=generator)
    if kind in ("bf16", "f32"):
        weight = weight.bfloat16() if kind == "bf16" else weight
        return "linear", (weight,), weight.float()
    if kind == "mxfp4":
        packed = ops.quantize_mxfp4(weight)
        return "mxfp4_linear", packed, reference.dequantize_mxfp4(*packed, torch.float32)
    codes, scales = ops.quantize_fp8(weight, (128, 128), "f32" if kind == "fp8" else "ue8m0")
    dense = reference.dequantize_fp8(codes, scales, (128, 128), torch.float32)
    return "fp8_linear", (codes, scales if kind == "fp8" else scales.to(E8M0)), dense


E8M0 = torch.float8_e8m0fnu
CASES = [(kind, shape) for kind in KINDS for shape in (MXFP4_SHAPES if kind == "mxfp4" else SHAPES)]


@pytest.fixture
def threads():
    """Set the number of threads for the length of a test."""
    before = abyssal.get_num_threads()
    yield abyssal.set_num_threads
    abyssal.set_num_threads(before)


def assert_right(result, x, dense, roundings, weight_error=0.0):
    """Assert that each product is within so many roundings of all that is summed.

    ``weight_error`` is how far each weight may be from the dense one, relative to it.
    """
    exact = x.double() @ dense.double().T
    size = x.double().abs() @ dense.double().abs().T
    bound = size * (roundings * HALF_ULP * 1.01 + weight_error) + LEAST[torch.float32]
    if result.dtype == torch.bfloat16:
        bound = bound + (exact.abs() + bound) * 2.0**-8 + LEAST[torch.bfloat16]
    assert ((result.double() - exact).abs() <= bound).all()


def weight_error(kind, dtype):
    """Return how far a code times its scale is rounded: to bfloat16 where pairs are multiplied."""
    pairs = kernel_tier() == "avx512-bf16" and dtype == torch.bfloat16
    return 2.0**-8 if pairs and kind == "fp8" else 0.0


def roundings(columns):
    """Count what a product meets: its lane's chain, the sum of the lanes, and three more.

    Those are the activation times its scale, the dense weight of the comparison (code times scale),
    and the result taken back to its own size.
    """
    lanes = LANES[kernel_tier()]
    return -(-columns // lanes) + 4 + lanes.bit_length() - 1 + 3


@pytest.mark.parametrize(("kind", "shape"), CASES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_product_is_right_to_rounding(kind, shape, dtype, generator):
    name, weight, dense = make(kind, shape, generator)
    x = torch.randn(7, shape[1], generator=generator).to(dtype)
    ours = (ops, roundings(shape[1]), weight_error(kind, dtype))
    for module, count, error in (ours, (reference, shape[1] + 3, 0.0)):
        for tokens in (x, x[:1], x[:3]):
            result = getattr(module, name)(tokens, *weight)
            assert result.dtype == dtype
            assert_right(result, tokens, dense, count, error)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("module", [ops, reference])
def test_a_result_may_stay_float32_before_its_one_rounding(module, kind, generator):
    name, weight, _ = make(kind, (40, 96), generator)
    function = getattr(module, name)
    x = torch.randn(9, 96, generator=generator).to(torch.bfloat16)
    wide = function(x, *weight, dtype=torch.float32)
    assert wide.dtype == torch.float32
    assert torch.equal(wide.to(torch.bfloat16), function(x, *weight))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [1e4, 1e-30])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_large_and_small_activations_keep_their_precision(kind, size, dtype, generator):
    name, weight, dense = make(kind, (70, 288), generator)
    x = (torch.randn(9, 288, generator=generator) * size).to(dtype)
    error = weight_error(kind, dtype)
    assert_right(getattr(ops, name)(x, *weight), x, dense, roundings(288), error)
    # Among small ones too, each token having its own size.
    x[3:] = 0.001
    assert_right(getattr(ops, name)(x, *weight), x, dense, roundings(288), error)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_row_has_the_same_bits_alone_in_every_batch_and_with_any_threads(
    kind, dtype, generator, threads
):
    name, weight, _ = make(kind, (330, 1056), generator)
    x = torch.randn(300, 1056, generator=generator).to(dtype)
    operation = getattr(ops, name)
    threads(1)
    alone = torch.cat([operation(row, *weight) for row in x.split(1)])
    for count in (1, 2, 7):
        threads(count)
        assert abyssal.get_num_threads() == count
        assert_same_bits(operation(x, *weight), alone)
        for size in range(1, 34):
            first = size * 7 % 250
            assert_same_bits(
                operation(x[first : first + size], *weight), alone[first : first + size]
            )


@pytest.mark.parametrize("kind", KINDS)
def test_leading_dimensions_and_empty_batches_keep_their_shape(kind, generator):
    name, weight, _ = make(kind, (40, 64), generator)
    x = torch.randn(2, 3, 64, generator=generator)
    for module in (ops, reference):
        operation = getattr(module, name)
        assert operation(x, *weight).shape == (2, 3, 40)
        assert operation(x[:0], *weight).shape == (0, 3, 40)
        assert operation(x[0, 0], *weight).shape == (40,)
        none = operation(x, *(part[:0] for part in weight))
        assert none.shape == (2, 3, 0)
    assert_same_bits(
        getattr(ops, name)(x, *weight).view(6, 40), getattr(ops, name)(x.view(6, 64), *weight)
    )


@pytest.mark.parametrize("module", [ops, reference])
@pytest.mark.parametrize("tokens", [3, 9])
def test_nan_and_infinity_reach_their_own_outputs_only(module, tokens, generator):
    _, (codes, scales), _ = make("fp8", (4, 256), generator)
    codes.view(torch.uint8)[1, 200] = 0x7F
    x = torch.randn(tokens, 256, generator=generator)
    x[2, 5] = float("inf")
    result = module.fp8_linear(x, codes, scales)
    assert result[:, 1].isnan().all()
    assert not result[2].isfinite().any()
    others = [token for token in range(tokens) if token != 2]
    assert result[others][:, [0, 2, 3]].isfinite().all()


@pytest.mark.parametrize("module", [ops, reference])
@pytest.mark.parametrize("tokens", [1, 9])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_scales_that_are_not_finite_spoil_their_own_rows_only(module, tokens, bad, generator):
    _, (codes, scales), _ = make("fp8", (300, 256), generator)
    scales[1, 1] = bad
    result = module.fp8_linear(torch.randn(tokens, 256, generator=generator), codes, scales)
    assert not result[:, 128:256].isfinite().any()
    assert result[:, :128].isfinite().all() and result[:, 256:].isfinite().all()
    _, (codes, scales), _ = make("mxfp4", (6, 256), generator)
    scales[2, 3] = 255
    result = module.mxfp4_linear(torch.randn(tokens, 256, generator=generator), codes, scales)
    assert result.isnan().any(dim=0).tolist() == [row == 2 for row in range(6)]


@pytest.mark.parametrize("tokens", [1, 9])
@pytest.mark.parametrize("scale", [0.0, 1e-45, 1e-38, 1e-23, 1e30])
def test_scales_of_any_size_give_products_of_their_size(tokens, scale, generator):
    _, (codes, scales), _ = make("fp8", (140, 200), generator)
    scales.fill_(scale)
    x = torch.randn(tokens, 200, generator=generator)
    exact = x.double() @ (codes.double() * scales[0, 0].double()).T
    size = x.double().abs() @ (codes.double() * scales[0, 0].double()).T.abs()
    result = ops.fp8_linear(x, codes, scales)
    bound = size * roundings(200) * HALF_ULP * 1.01 + LEAST[torch.float32]
    assert ((result.double() - exact).abs() <= bound).all()
    assert (result == 0).all() == (scale == 0)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_gradient_of_the_activation_is_the_gradient_times_the_weight(kind, dtype, generator):
    name, weight, dense = make(kind, (40, 64), generator)
    if len(weight) == 1:
        weight[0].requires_grad_()
    x = torch.randn(5, 64, generator=generator).to(dtype).requires_grad_()
    getattr(ops, name)(x, *weight).float().square().sum().backward()
    mine = [x.grad, *(part.grad for part in weight if part.requires_grad)]
    again = x.detach().clone().requires_grad_()
    weight = [part.detach().clone().requires_grad_(part.requires_grad) for part in weight]
    getattr(reference, name)(again, *weight).float().square().sum().backward()
    peer = [again.grad, *(part.grad for part in weight if part.requires_grad)]
    # Both multiply the same weight in float32, by outputs that differ in their last bits.
    narrow = dtype == torch.bfloat16 or kind == "bf16"
    for left, right in zip(mine, peer, strict=True):
        assert left.dtype == right.dtype
        error = (left.float() - right.float()).abs().max() / right.float().abs().max()
        assert error <= (2e-2 if narrow else 1e-5)
    assert dense.abs().sum() > 0


def test_the_number_of_threads_is_that_of_the_machine_until_it_is_set(threads):
    assert 1 <= abyssal.get_num_threads() <= 1024
    threads(3)
    assert abyssal.get_num_threads() == 3
    for count in (0, -1, 1025):
        with pytest.raises(ValueError, match=f"num_threads is {count}; it must be 1 to 1024"):
            threads(count)
    assert abyssal.get_num_threads() == 3


@pytest.mark.parametrize("module", [ops, reference])
@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda m: m.fp8_linear(
                torch.ones(2, 5),
                torch.ones(3, 4).to(torch.float8_e4m3fn),
                torch.ones(1, 1),
            ),
            ValueError,
            "x has width 5; the weight has 4 input features",
        ),
        (
            lambda m: m.mxfp4_linear(
                torch.ones(2, 32).half(),
                torch.zeros(3, 16).byte(),
                torch.zeros(3, 1).byte(),
            ),
            TypeError,
            "x is torch.float16",
        ),
        (
            lambda m: m.linear(torch.ones(2, 5), torch.ones(3, 4)),
            ValueError,
            "x has width 5; the weight has 4 input features",
        ),
        (
            lambda m: m.linear(torch.ones(2, 0), torch.ones(3, 0)),
            ValueError,
            "the weight has 0 columns",
        ),
        (
            lambda m: m.linear(torch.ones(2, 4), torch.ones(3, 4).half()),
            TypeError,
            "weight is torch.float16",
        ),
        (
            lambda m: m.linear(torch.ones(2, 4), torch.ones(3, 4), dtype=torch.bfloat16),
            TypeError,
            "dtype is torch.bfloat16; it must be torch.float32",
        ),
    ],
)
def test_a_bad_call_says_what_was_wrong(module, call, error, message):
    with pytest.raises(error, match=message):
        call(module)
