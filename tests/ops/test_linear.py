"""Linear layers on packed weights: right to rounding, and the same bits however they are called."""

import pytest
import torch

from abyssal import ops, reference
from abyssal.testing.numeric import assert_same_bits

SHAPES = [(1, 1), (5, 100), (128, 128), (130, 257), (300, 1408), (64, 4096)]
MXFP4_SHAPES = [(1, 32), (5, 96), (130, 288), (300, 1408), (64, 4096)]


def fp8_weight(rows, columns, generator, e8m0=False):
    weight = torch.randn(rows, columns, generator=generator)
    codes, scales = ops.quantize_fp8(weight, (128, 128), "ue8m0" if e8m0 else "f32")
    dense = reference.dequantize_fp8(codes, scales, (128, 128), torch.float32)
    return (codes, scales.to(torch.float8_e8m0fnu) if e8m0 else scales), dense


def mxfp4_weight(rows, columns, generator):
    packed = ops.quantize_mxfp4(torch.randn(rows, columns, generator=generator))
    return packed, reference.dequantize_mxfp4(*packed, torch.float32)


CASES = (
    [("fp8", shape) for shape in SHAPES]
    + [("fp8_e8m0", shape) for shape in SHAPES]
    + [("mxfp4", shape) for shape in MXFP4_SHAPES]
)


def make(kind, shape, generator):
    """Return (operation of a module, packed weight, dense weight)."""
    if kind == "mxfp4":
        packed, dense = mxfp4_weight(*shape, generator)
        return "mxfp4_linear", packed, dense
    packed, dense = fp8_weight(*shape, generator, e8m0=kind == "fp8_e8m0")
    return "fp8_linear", packed, dense


@pytest.mark.parametrize(("kind", "shape"), CASES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_product_is_right_to_rounding(kind, shape, dtype, generator):
    name, packed, dense = make(kind, shape, generator)
    x = torch.randn(7, shape[1], generator=generator).to(dtype)
    exact = x.double() @ dense.double().T
    size = x.double().abs() @ dense.double().abs().T
    # Each of the K products meets at most 8 additions in its lane, 4 in the tree, one product with
    # the scale, and one addition per block; the reference adds in an order of its own.
    half_ulp = 2.0**-24
    steps = 8 + 4 + 3 + -(-shape[1] // 128)
    for module, count in ((ops, steps), (reference, shape[1] + 3)):
        result = getattr(module, name)(x, *packed)
        assert result.dtype == dtype
        bound = size * count * half_ulp * 1.01
        if dtype == torch.bfloat16:
            bound = bound + (exact.abs() + bound) * 2.0**-8
        assert ((result.double() - exact).abs() <= bound).all()


@pytest.mark.parametrize("kind", ["fp8", "fp8_e8m0", "mxfp4"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_row_has_the_same_bits_alone_in_a_batch_and_with_any_number_of_threads(
    kind, dtype, generator
):
    name, packed, _ = make(kind, (640, 1056), generator)
    x = torch.randn(300, 1056, generator=generator).to(dtype)
    operation = getattr(ops, name)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        together = operation(x, *packed)
        for count in (2, 3, 7):
            torch.set_num_threads(count)
            assert_same_bits(operation(x, *packed), together)
    finally:
        torch.set_num_threads(threads)
    for row in (0, 1, 15, 16, 255, 256, 299):
        assert_same_bits(operation(x[row], *packed), together[row])
    assert_same_bits(operation(x[17:50], *packed), together[17:50])


def test_the_order_of_operations_is_the_documented_one(generator):
    (codes, scales), _ = fp8_weight(130, 300, generator)
    x = torch.randn(3, 300, generator=generator)
    padded = torch.nn.functional.pad(x, (0, 84)).view(3, 3, 8, 16)
    weight = torch.nn.functional.pad(codes.float(), (0, 84)).view(130, 3, 8, 16)
    expected = torch.zeros(3, 130)
    for block in range(3):
        lanes = torch.zeros(3, 130, 16)
        for step in range(8):
            lanes = lanes + padded[:, None, block, step] * weight[None, :, block, step]
        width = 16
        while width > 1:
            width //= 2
            lanes = lanes[..., :width] + lanes[..., width : 2 * width]
        scale = scales[:, block].repeat_interleave(128)[:130]
        expected = expected + scale * lanes[..., 0]
    assert_same_bits(ops.fp8_linear(x, codes, scales), expected)


@pytest.mark.parametrize("kind", ["fp8", "mxfp4"])
def test_leading_dimensions_and_empty_batches_keep_their_shape(kind, generator):
    name, packed, _ = make(kind, (40, 64), generator)
    x = torch.randn(2, 3, 64, generator=generator)
    for module in (ops, reference):
        operation = getattr(module, name)
        assert operation(x, *packed).shape == (2, 3, 40)
        assert operation(x[:0], *packed).shape == (0, 3, 40)
        assert operation(x[0, 0], *packed).shape == (40,)
        none = operation(x, *(part[:0] for part in packed))
        assert none.shape == (2, 3, 0)
    assert_same_bits(
        getattr(ops, name)(x, *packed).view(6, 40), getattr(ops, name)(x.view(6, 64), *packed)
    )


@pytest.mark.parametrize("module", [ops, reference])
def test_nan_and_infinity_reach_their_own_outputs_only(module, generator):
    (codes, scales), _ = fp8_weight(4, 256, generator)
    codes.view(torch.uint8)[1, 200] = 0x7F
    x = torch.randn(3, 256, generator=generator)
    x[2, 5] = float("inf")
    result = module.fp8_linear(x, codes, scales)
    assert result[:, 1].isnan().all()
    assert not result[2].isfinite().any()
    assert result[:2][:, [0, 2, 3]].isfinite().all()


@pytest.mark.parametrize("kind", ["fp8", "mxfp4"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_gradient_of_the_activation_is_the_gradient_times_the_weight(kind, dtype, generator):
    name, packed, dense = make(kind, (40, 64), generator)
    x = torch.randn(5, 64, generator=generator).to(dtype).requires_grad_()
    getattr(ops, name)(x, *packed).float().square().sum().backward()
    again = x.detach().clone().requires_grad_()
    getattr(reference, name)(again, *packed).float().square().sum().backward()
    # Both multiply the same weight in float32, by outputs that differ in their last bits.
    tolerance = 1e-5 if dtype == torch.float32 else 2e-2
    error = (x.grad - again.grad).abs().max() / again.grad.abs().max()
    assert error <= tolerance
    assert dense.abs().sum() > 0
