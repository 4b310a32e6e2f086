"""Where the block formats read and write: strides, given results, and memory they refuse."""

import pytest
import torch

from abyssal import _core, ops, reference
from abyssal.testing.generators import hard_values
from abyssal.testing.numeric import assert_same_bits

FLOATS = (torch.float32, torch.bfloat16, torch.float16)


def same(left, right):
    for one, other in zip(left, right, strict=True):
        assert_same_bits(one, other)


def layouts(x):
    """Return views with the elements of ``x``, ``[rows, columns]``, that lie in other ways."""
    rows, columns = x.shape
    wide = x.new_full((rows, columns + 9), 7.0)
    wide[:, 3 : columns + 3] = x
    apart = x.new_full((2 * rows, columns), 7.0)
    apart[::2] = x
    stepped = x.new_full((rows, 2 * columns), 7.0)
    stepped[:, ::2] = x
    return {
        "cut columns": wide[:, 3 : columns + 3],
        "every other row": apart[::2],
        "transposed": x.T.contiguous().T,
        "every other column": stepped[:, ::2],
        "at an odd element": torch.cat([x.new_zeros(1), x.flatten()])[1:].view(rows, columns),
    }


@pytest.mark.parametrize("dtype", FLOATS)
def test_every_layout_gives_the_same_result(dtype, generator):
    x = hard_values(130, 160, generator, nan=False).to(dtype)
    expected = [ops.quantize_fp8(x, block) for block in ((1, 128), (128, 128), (3, 50))]
    packed = ops.quantize_mxfp4(x)
    for view in layouts(x).values():
        for block, result in zip(((1, 128), (128, 128), (3, 50)), expected, strict=True):
            same(ops.quantize_fp8(view, block), result)
        same(ops.quantize_mxfp4(view), packed)
    codes, scales = expected[1]
    values = ops.dequantize_fp8(codes, scales, (128, 128))
    bytes_ = codes.view(torch.uint8)
    for view in layouts(bytes_).values():
        again = ops.dequantize_fp8(view.view(torch.float8_e4m3fn), scales, (128, 128))
        assert_same_bits(again, values)
    for view in layouts(packed[0]).values():
        assert_same_bits(ops.dequantize_mxfp4(view, packed[1]), ops.dequantize_mxfp4(*packed))


def test_leading_dimensions_may_lie_apart(generator):
    x = hard_values(6 * 130, 160, generator, nan=False).view(6, 130, 160)
    for view in (x[::2], x[:, :100], x[1:, ::3, 20:], x.transpose(0, 1), x.expand(2, 6, 130, 160)):
        for block in ((1, 128), (128, 128)):
            same(ops.quantize_fp8(view, block), ops.quantize_fp8(view.contiguous(), block))
        if view.shape[-1] == 160:
            same(ops.quantize_mxfp4(view), ops.quantize_mxfp4(view.contiguous()))
    one_row = x[:1, :1].expand(4, 3, 160)
    same(ops.quantize_fp8(one_row), ops.quantize_fp8(one_row.contiguous()))


def test_the_compiled_code_reads_rows_where_they_lie(generator):
    x = torch.randn(8, 300, generator=generator)
    cut = x[::2, 5:205]
    codes = torch.empty(4, 200, dtype=torch.float8_e4m3fn)
    scales = torch.empty(4, 2)
    _core.quantize_fp8(cut, codes, scales, (1, 128), "f32")
    same((codes, scales), reference.quantize_fp8(cut))
    message = r"x: expected columns side by side .*strides \[1, 4\]; call \.contiguous\(\)"
    with pytest.raises(ValueError, match=message):
        _core.quantize_fp8(x[:4, :200].T.contiguous().T, codes, scales, (1, 128), "f32")


@pytest.mark.parametrize("module", [ops, reference])
class TestGivenResults:
    """``out=`` of both implementations."""

    def test_results_go_where_they_are_wanted(self, module, generator):
        x = torch.randn(64, 96, generator=generator)
        for quantize in (module.quantize_fp8, module.quantize_mxfp4):
            expected = quantize(x)
            lying = [torch.zeros_like(result) for result in expected]
            standing = [torch.zeros_like(result.T).T for result in expected]
            for out in (lying, standing):
                given = quantize(x, out=tuple(out))
                assert all(left is right for left, right in zip(given, out, strict=True))
                same(given, expected)
        codes, scales = module.quantize_fp8(x)
        for out in (torch.zeros(64, 96), torch.zeros(96, 64).T):
            result = module.dequantize_fp8(codes, scales, (1, 128), torch.float32, out=out)
            assert result is out
            assert_same_bits(
                out.contiguous(), module.dequantize_fp8(codes, scales, (1, 128), torch.float32)
            )
        packed = module.quantize_mxfp4(x)
        out = torch.zeros(64, 96, dtype=torch.float16)
        assert module.dequantize_mxfp4(*packed, torch.float16, out=out) is out
        assert_same_bits(out, module.dequantize_mxfp4(*packed, torch.float16))

    def test_another_shape_or_dtype_is_refused(self, module):
        x = torch.ones(4, 32)
        codes, scales = module.quantize_fp8(x)
        with pytest.raises(ValueError, match=r"out\[1\] has shape \[4, 2\]; it must be \[4, 1\]"):
            module.quantize_fp8(x, out=(codes, torch.zeros(4, 2)))
        with pytest.raises(TypeError, match=r"out\[0\] is torch\.float32"):
            module.quantize_fp8(x, out=(x, scales))
        with pytest.raises(ValueError, match="out holds 1 tensors; it must hold 2"):
            module.quantize_mxfp4(x, out=(codes,))
        with pytest.raises(TypeError, match=r"out is torch\.float32; it must be torch\.bfloat16"):
            module.dequantize_fp8(codes, scales, (1, 128), out=torch.zeros(4, 32))
        wanted = torch.zeros(4, 32, dtype=torch.bfloat16, requires_grad=True)
        with pytest.raises(ValueError, match="out cannot be given when a gradient is recorded"):
            module.dequantize_fp8(codes, scales, (1, 128), out=wanted)


def test_results_may_not_share_memory():
    x = torch.ones(4, 32)
    _, scales = ops.quantize_fp8(x)
    with pytest.raises(ValueError, match="codes shares memory with x"):
        inside = x.view(-1).view(torch.float8_e4m3fn)[:128].view(4, 32)
        ops.quantize_fp8(x, out=(inside, scales))
    memory = torch.zeros(144, dtype=torch.uint8)
    both = memory[:128].view(torch.float8_e4m3fn).view(4, 32), memory[112:128].view(torch.float32)
    with pytest.raises(ValueError, match="codes shares memory with scales"):
        ops.quantize_fp8(x, out=(both[0], both[1].view(4, 1)))
    wide = torch.zeros(4 * 32 * 2, dtype=torch.uint8)
    inside = wide[:128].view(torch.float8_e4m3fn).view(4, 32)
    with pytest.raises(ValueError, match="out shares memory with codes"):
        ops.dequantize_fp8(inside, scales, (1, 128), out=wide.view(torch.bfloat16).view(4, 32))


def misaligned(x):
    return torch.frombuffer(bytearray(x.nbytes + 8), dtype=x.dtype, offset=1, count=x.numel()).view(
        x.shape
    )


def test_misaligned_memory_is_refused_and_says_so():
    x = misaligned(torch.ones(4, 32))
    with pytest.raises(ValueError, match="x: expected memory aligned to 4 bytes"):
        ops.quantize_fp8(x)
    with pytest.raises(ValueError, match="x: expected memory aligned to 2 bytes"):
        ops.quantize_mxfp4(misaligned(torch.ones(4, 32).half()))
    codes, scales = ops.quantize_fp8(torch.ones(4, 32))
    with pytest.raises(ValueError, match="scales: expected memory aligned to 4 bytes"):
        ops.quantize_fp8(torch.ones(4, 32), out=(codes, misaligned(scales)))
    out = misaligned(torch.ones(4, 32).bfloat16())
    with pytest.raises(ValueError, match="out: expected memory aligned to 2 bytes"):
        ops.dequantize_fp8(codes, scales, (1, 128), out=out)


def test_other_devices_are_left_to_the_reference():
    x = torch.empty(4, 64, device="meta")
    codes, scales = ops.quantize_fp8(x)
    assert (codes.device.type, codes.shape, scales.shape) == ("meta", (4, 64), (4, 1))
    assert ops.dequantize_fp8(codes, scales, (1, 128)).device.type == "meta"
    packed = ops.quantize_mxfp4(x)
    assert (packed[0].shape, packed[1].shape) == ((4, 32), (4, 2))
    assert ops.dequantize_mxfp4(*packed).shape == (4, 64)
    with pytest.raises(TypeError, match="dense tensor in CPU memory"):
        _core.quantize_fp8(x, codes, scales, (1, 128), "f32")


@pytest.mark.parametrize("quantize", [ops.quantize_fp8, ops.quantize_mxfp4])
def test_sparse_tensors_are_refused(quantize):
    with pytest.raises(
        TypeError, match="expected a dense tensor in CPU memory, got a Tensor of layout"
    ):
        quantize(torch.ones(4, 32).to_sparse())


def test_large_new_results_hold_the_same_numbers(generator):
    x = torch.randn(1024, 4096 + 32, generator=generator)
    codes, scales = ops.quantize_fp8(x)
    out = torch.zeros(x.shape)
    ops.dequantize_fp8(codes, scales, (1, 128), torch.float32, out=out)
    assert_same_bits(ops.dequantize_fp8(codes, scales, (1, 128), torch.float32), out)
    assert_same_bits(out, reference.dequantize_fp8(codes, scales, (1, 128), torch.float32))
