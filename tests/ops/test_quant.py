"""FP8 and MXFP4: equal to the reference bit for bit, and to definitions written here."""

import pytest
import torch

from abyssal import ops, reference
from abyssal.testing.generators import hard_values
from abyssal.testing.numeric import assert_same_bits, bits

FLOATS = (torch.float32, torch.bfloat16, torch.float16)
BLOCKS = [(1, 128), (128, 128), (1, 1), (3, 5), (32, 32), (1, 1000), (200, 7)]
SHAPES = [(1, 1), (1, 128), (5, 129), (130, 257), (300, 64)]
ALL_CODES = torch.arange(256).to(torch.uint8)


@pytest.mark.parametrize("scale_format", ["f32", "ue8m0"])
@pytest.mark.parametrize("block", BLOCKS)
def test_fp8_equals_the_reference(block, scale_format, generator):
    for shape in SHAPES:
        for dtype in FLOATS:
            x = hard_values(*shape, generator).to(dtype)
            codes, scales = ops.quantize_fp8(x, block, scale_format)
            expected = reference.quantize_fp8(x, block, scale_format)
            assert_same_bits(codes, expected[0], nan_bits=True)
            assert_same_bits(scales, expected[1])
            for out in FLOATS:
                values = ops.dequantize_fp8(codes, scales, block, out)
                assert_same_bits(values, reference.dequantize_fp8(codes, scales, block, out))


def test_all_bfloat16_inputs_get_the_code_of_torchs_cast_of_the_clamped_value():
    x = torch.arange(-(2**15), 2**15).to(torch.int16).view(torch.bfloat16)
    finite = ~(x.isnan() | x.isinf())
    # Beside 448, any number up to 448 in size has the scale 1 and is cast as it is.
    pairs = torch.stack([x, torch.full_like(x, 448.0)], dim=1)
    codes, scales = ops.quantize_fp8(pairs, (1, 2))
    codes = codes.view(torch.uint8)  # torch 2.8 selects no rows of a float8 tensor
    as_is = finite & (x.float().abs() <= 448)
    assert (scales[as_is] == 1).all()
    cast = x.float().clamp(-448, 448).to(torch.float8_e4m3fn).view(torch.uint8)
    chosen = as_is | x.isnan()
    assert_same_bits(codes[chosen, 0], cast[chosen], nan_bits=True)
    # Elsewhere the quotient is cast; a larger number is the largest of its block.
    quotient = (x.float() / scales[:, 0])[finite].clamp(-448, 448).to(torch.float8_e4m3fn)
    assert_same_bits(codes[finite, 0], quotient.view(torch.uint8))
    largest = codes[finite & ~as_is, 0].view(torch.float8_e4m3fn).float().abs()
    assert (largest == 448).all()


def test_all_fp8_codes_dequantize_to_their_values():
    codes = ALL_CODES.view(torch.float8_e4m3fn).reshape(2, 128)
    for scale in (1.0, 0.37, 2.0**-100):
        scales = torch.full((2, 1), scale)
        for dtype in FLOATS:
            values = ops.dequantize_fp8(codes, scales, (1, 128), dtype)
            assert_same_bits(values, (codes.float() * scale).to(dtype))


def test_all_e8m0_scales_are_powers_of_two():
    codes = torch.ones(256, 1).to(torch.float8_e4m3fn)
    scales = ALL_CODES.reshape(256, 1).view(torch.float8_e8m0fnu)
    values = ops.dequantize_fp8(codes, scales, (1, 1), torch.float32).flatten()
    expected = torch.exp2(torch.arange(-127, 128, dtype=torch.float64)).to(torch.float32)
    assert_same_bits(values[:255], expected)
    assert values[255].isnan()


def test_ue8m0_scales_are_the_least_powers_of_two_not_below_the_exact_scale(generator):
    amax = torch.exp2(torch.rand(20_000, 1, generator=generator) * 40 - 20)
    amax[:41] = 448 * torch.exp2(torch.arange(-10.0, 31.0))[:, None]
    _, exact = ops.quantize_fp8(amax, (1, 1))
    _, scales = ops.quantize_fp8(amax, (1, 1), "ue8m0")
    assert (torch.frexp(scales).mantissa == 0.5).all()
    assert ((scales >= exact) & (scales / 2 < exact)).all()
    assert torch.equal(scales[:41], exact[:41])


@pytest.mark.parametrize("module", [ops, reference])
class TestCorners:
    """What the docstrings promise of blocks with corners, of both implementations."""

    def test_a_small_block_has_the_smallest_scale(self, module):
        for value in (0.0, 1e-23, -1e-45, 1e-5):
            codes, scales = module.quantize_fp8(torch.full((1, 128), value))
            assert scales.item() == torch.tensor(1e-4).div(448).item()
            # Half a step: 2**-4 of a normal number, 2**-10 of the scale below.
            error = (codes.float() * scales - value).abs().max()
            assert error <= max(abs(value) / 16, 1e-4 / 448 / 1024 * 1.001)

    def test_a_zero_keeps_its_sign(self, module):
        codes, _ = module.quantize_fp8(torch.tensor([[-0.0, 0.0]]))
        assert bits(codes).tolist() == [[0x80, 0]]

    def test_nan_stays_alone_in_its_block(self, module):
        x = torch.tensor([[1.0, float("nan"), -float("nan"), -448.0]])
        codes, scales = module.quantize_fp8(x)
        assert scales.item() == 1.0
        assert bits(codes).tolist() == [[0x38, 0x7F, 0xFF, 0xFE]]

    def test_an_infinity_makes_an_infinite_scale(self, module):
        inf = float("inf")
        for scale_format in ("f32", "ue8m0"):
            codes, scales = module.quantize_fp8(
                torch.tensor([[1.0, inf, -inf]]), (1, 3), scale_format
            )
            assert scales.item() == inf
            assert bits(codes).tolist() == [[0, 0x7F, 0xFF]]

    def test_leading_dimensions_are_independent_matrices(self, module, generator):
        x = torch.randn(3, 2, 130, 129, generator=generator)
        codes, scales = module.quantize_fp8(x, (128, 128))
        assert scales.shape == (3, 2, 2, 2)
        values = module.dequantize_fp8(codes, scales, (128, 128), torch.float32)
        for expert in range(3):
            for part in range(2):
                alone = module.quantize_fp8(x[expert, part], (128, 128))
                assert_same_bits(codes[expert, part], alone[0])
                assert_same_bits(scales[expert, part], alone[1])
                again = module.dequantize_fp8(*alone, (128, 128), torch.float32)
                assert_same_bits(values[expert, part], again)

    def test_a_vector_has_a_vector_of_scales(self, module):
        codes, scales = module.quantize_fp8(torch.ones(130))
        assert (codes.shape, scales.shape) == ((130,), (2,))
        assert module.dequantize_fp8(codes, scales, (1, 128)).shape == (130,)

    def test_zero_rows_give_empty_results(self, module):
        codes, scales = module.quantize_fp8(torch.empty(0, 130))
        assert (codes.shape, scales.shape) == ((0, 130), (0, 2))
        assert module.dequantize_fp8(codes, scales, (1, 128)).shape == (0, 130)
        codes, scales = module.quantize_mxfp4(torch.empty(2, 0, 64))
        assert (codes.shape, scales.shape) == ((2, 0, 32), (2, 0, 2))
        assert module.dequantize_mxfp4(codes, scales).shape == (2, 0, 64)

    def test_strided_inputs_give_the_same_result(self, module, generator):
        x = torch.randn(64, 96, generator=generator)
        for function in (module.quantize_fp8, module.quantize_mxfp4):
            strided = function(x.T.contiguous().T)
            for left, right in zip(strided, function(x), strict=True):
                assert_same_bits(left, right)

    @pytest.mark.parametrize(
        ("call", "error", "message"),
        [
            (lambda m: m.quantize_fp8(torch.ones(2, 0)), ValueError, "x has 0 columns"),
            (
                lambda m: m.quantize_fp8(torch.ones(4), (2, 2)),
                ValueError,
                r"x has 1 dimensions; blocks of \(2, 2\) need at least 2",
            ),
            (
                lambda m: m.quantize_fp8(torch.ones(4, 4), (0, 2)),
                ValueError,
                r"block is \(0, 2\); it must hold two sizes of at least 1",
            ),
            (
                lambda m: m.quantize_fp8(torch.ones(4, 4), scale_format="e8m0"),
                ValueError,
                "scale_format is 'e8m0'; it must be one of 'f32', 'ue8m0'",
            ),
            (
                lambda m: m.quantize_fp8(torch.ones(4, 4).double()),
                TypeError,
                "x is torch.float64; it must be torch.float32 or",
            ),
            (
                lambda m: m.dequantize_fp8(
                    torch.ones(4, 4).to(torch.float8_e4m3fn), torch.ones(4, 2), (1, 128)
                ),
                ValueError,
                r"scales has shape \[4, 2\]; it must be \[4, 1\]",
            ),
            (
                lambda m: m.dequantize_fp8(torch.ones(4, 4), torch.ones(4, 1), (1, 128)),
                TypeError,
                "codes is torch.float32; it must be torch.float8_e4m3fn",
            ),
            (
                lambda m: m.dequantize_fp8(
                    torch.ones(4, 4).to(torch.float8_e4m3fn),
                    torch.ones(4, 1),
                    (1, 128),
                    torch.int32,
                ),
                TypeError,
                "dtype is torch.int32",
            ),
            (lambda m: m.quantize_mxfp4(torch.ones(2, 33)), ValueError, "x has 33 columns"),
            (
                lambda m: m.quantize_mxfp4(torch.full((2, 32), float("nan"))),
                ValueError,
                "x holds 64 NaN; MXFP4 has no code for it",
            ),
            (
                lambda m: m.dequantize_mxfp4(torch.zeros(2, 16).byte(), torch.zeros(2, 2).byte()),
                ValueError,
                r"scales has shape \[2, 2\]; it must be \[2, 1\]",
            ),
        ],
    )
    def test_a_bad_call_says_what_was_wrong(self, module, call, error, message):
        with pytest.raises(error, match=message):
            call(module)


# The sixteen e2m1 numbers by definition: sign, two exponent bits with bias 1, one mantissa bit.
E2M1 = torch.tensor(
    [
        (-1.0 if code & 8 else 1.0)
        * (
            (code & 1) * 0.5
            if code >> 1 & 3 == 0
            else (1 + (code & 1) / 2) * 2.0 ** ((code >> 1 & 3) - 1)
        )
        for code in range(16)
    ],
    dtype=torch.float64,
)


def mxfp4_by_search(x):
    """Quantize by definition, in float64: the least fitting power of two, then the nearest code."""
    blocks = x.double().view(*x.shape[:-1], -1, 32)
    amax = blocks.abs().amax(dim=-1, keepdim=True)
    powers = torch.exp2(torch.arange(-127, 128, dtype=torch.float64))
    scale_codes = (6 * powers < amax).sum(dim=-1, keepdim=True).clamp(max=254)
    quotients = blocks / powers[scale_codes]
    distance = (quotients.clamp(-6, 6).unsqueeze(-1) - E2M1).abs()
    # Among the nearest codes take the sign of the number, then the even one.
    wrong_sign = (quotients.signbit().unsqueeze(-1) != E2M1.signbit()).double()
    odd = (torch.arange(16) & 1).double()
    nearest = distance == distance.amin(dim=-1, keepdim=True)
    rank = torch.where(nearest, 2 * wrong_sign + odd, 9.0)
    codes = rank.argmin(dim=-1).flatten(-2)
    return codes, scale_codes.squeeze(-1)


@pytest.mark.parametrize("dtype", FLOATS)
def test_mxfp4_equals_a_nearest_even_search_over_the_sixteen_numbers(dtype, generator):
    spread = hard_values(400, 256, generator, nan=False)
    midpoints = (torch.arange(-28, 29) * 0.25).repeat(400, 5)[:, :256]
    scales = torch.exp2(torch.randint(-20, 20, (400, 8), generator=generator).float())
    for x in (spread, midpoints * scales.repeat_interleave(32, dim=1)):
        x = x.to(dtype)
        packed, scale_codes = ops.quantize_mxfp4(x)
        codes, expected_scales = mxfp4_by_search(x.float())
        assert torch.equal(scale_codes.long(), expected_scales)
        nibbles = torch.stack([packed & 15, packed >> 4], dim=-1).flatten(-2)
        assert torch.equal(nibbles.long(), codes)
        for left, right in zip(reference.quantize_mxfp4(x), (packed, scale_codes), strict=True):
            assert_same_bits(left, right)


def test_all_mxfp4_codes_and_scales_dequantize_to_their_values():
    codes = ALL_CODES.repeat(256, 1)
    scales = ALL_CODES[:, None].repeat(1, 16)
    numbers = torch.stack([E2M1[(ALL_CODES & 15).long()], E2M1[(ALL_CODES >> 4).long()]], dim=1)
    powers = torch.exp2(torch.arange(-127, 129, dtype=torch.float64))
    exact = numbers.flatten() * powers[:, None]
    for dtype in FLOATS:
        for module in (ops, reference):
            values = module.dequantize_mxfp4(codes, scales, dtype)
            assert_same_bits(values[:255], exact[:255].to(torch.float32).to(dtype))
            assert values[255].isnan().all()
    # The other dtypes that checkpoints use for the same bytes.
    same = ops.dequantize_mxfp4(codes.view(torch.int8), scales.view(torch.float8_e8m0fnu))
    assert_same_bits(same, ops.dequantize_mxfp4(codes, scales))


def test_what_mxfp4_can_express_survives_the_round_trip(generator):
    nibbles = torch.randint(16, (64, 64), generator=generator)
    nibbles[:, ::32] = 7  # a 6 in each block fixes the scale
    values = E2M1[nibbles].float() * 2.0**-5
    codes, scales = ops.quantize_mxfp4(values)
    assert (scales == 122).all()
    assert_same_bits(ops.dequantize_mxfp4(codes, scales, torch.float32), values)
