"""Block formats beside plain PyTorch and beside a copy of as many bytes, on one thread.

Every result is checked before it is timed. Ours write into tensors that are there already; a new
result of many megabytes costs its page faults as well, which the last group shows.
"""

import pytest
import torch

from abyssal import ops

ROWS, COLUMNS = 2048, 7168
E2M1 = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0])
E2M1 = torch.cat([E2M1, -E2M1])


@pytest.fixture(autouse=True)
def one_thread_and_the_same_numbers():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(threads)


def composite_rows(x):
    blocks = x.view(x.shape[0], -1, 128)
    scales = blocks.abs().amax(-1).float().clamp(1e-4) / 448
    return (blocks / scales.unsqueeze(-1)).to(torch.float8_e4m3fn).view_as(x), scales


def composite_squares(x):
    tiles = x.view(x.shape[0] // 128, 128, x.shape[1] // 128, 128)
    scales = tiles.abs().float().amax((1, 3), keepdim=True).clamp(1e-4) / 448
    return (tiles / scales).to(torch.float8_e4m3fn).view_as(x), scales[:, 0, :, 0]


def composite_dequantize(codes, scales, dtype):
    tiles = codes.view(codes.shape[0] // 128, 128, codes.shape[1] // 128, 128)
    return (tiles.float() * scales[:, None, :, None]).view(codes.shape).to(dtype)


def composite_dequantize_mxfp4(codes, scales, dtype):
    nibbles = torch.stack([codes & 15, codes >> 4], dim=-1).int()
    blocks = E2M1[nibbles].view(codes.shape[0], -1, 32)
    powers = torch.exp2(scales.float() - 127)
    return (blocks * powers.unsqueeze(-1)).view(codes.shape[0], -1).to(dtype)


def copy_of(*tensors):
    """Return a copy that reads and writes as many bytes as these tensors have."""
    half = sum(tensor.nbytes for tensor in tensors) // 2
    source, target = torch.ones(half, dtype=torch.uint8), torch.ones(half, dtype=torch.uint8)
    return lambda: target.copy_(source)


def assert_same(left, right):
    # torch before 2.12 compares no float8 tensors.
    assert torch.equal(left.view(torch.uint8), right.view(torch.uint8))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("block", [(1, 128), (128, 128)], ids=str)
@pytest.mark.parametrize("who", ["ours", "plain torch", "copy"])
def test_quantize_fp8(benchmark, block, dtype, who):
    benchmark.group = f"quantize {ROWS} x {COLUMNS} {dtype} in blocks of {block}"
    x = torch.randn(ROWS, COLUMNS).to(dtype)
    composite = composite_rows if block[0] == 1 else composite_squares
    out = ops.quantize_fp8(x, block)
    # The composite divides two-byte numbers by a float32 scale, in float32, like ours.
    for left, right in zip(out, composite(x), strict=True):
        assert_same(left, right.contiguous())
    calls = {
        "ours": lambda: ops.quantize_fp8(x, block, out=out),
        "plain torch": lambda: composite(x),
        "copy": copy_of(x, *out),
    }
    benchmark(calls[who])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("who", ["ours", "plain torch", "copy"])
def test_dequantize_fp8(benchmark, dtype, who):
    benchmark.group = f"dequantize {ROWS} x {COLUMNS} to {dtype}"
    codes, scales = ops.quantize_fp8(torch.randn(ROWS, COLUMNS), (128, 128))
    out = ops.dequantize_fp8(codes, scales, (128, 128), dtype)
    assert_same(out, composite_dequantize(codes, scales, dtype))
    calls = {
        "ours": lambda: ops.dequantize_fp8(codes, scales, (128, 128), dtype, out=out),
        "plain torch": lambda: composite_dequantize(codes, scales, dtype),
        "copy": copy_of(codes, scales, out),
    }
    benchmark(calls[who])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("who", ["ours", "plain torch", "copy"])
def test_dequantize_mxfp4(benchmark, dtype, who):
    benchmark.group = f"dequantize {ROWS} x {COLUMNS} MXFP4 to {dtype}"
    codes, scales = ops.quantize_mxfp4(torch.randn(ROWS, COLUMNS))
    out = ops.dequantize_mxfp4(codes, scales, dtype)
    assert_same(out, composite_dequantize_mxfp4(codes, scales, dtype))
    calls = {
        "ours": lambda: ops.dequantize_mxfp4(codes, scales, dtype, out=out),
        "plain torch": lambda: composite_dequantize_mxfp4(codes, scales, dtype),
        "copy": copy_of(codes, scales, out),
    }
    benchmark(calls[who])


@pytest.mark.parametrize("who", ["ours", "copy"])
def test_quantize_mxfp4(benchmark, who):
    benchmark.group = f"quantize {ROWS} x {COLUMNS} bfloat16 to MXFP4"
    x = torch.randn(ROWS, COLUMNS).bfloat16()
    out = ops.quantize_mxfp4(x)
    back = ops.dequantize_mxfp4(*out, torch.float32)
    scale = torch.exp2(out[1].float() - 127).repeat_interleave(32, dim=1)
    # Half of the widest step between two codes, 2 scales; a scale is at most twice amax / 6.
    assert ((back - x.float()).abs() <= scale).all()
    calls = {"ours": lambda: ops.quantize_mxfp4(x, out=out), "copy": copy_of(x, *out)}
    benchmark(calls[who])


@pytest.mark.parametrize("where", ["given tensors", "new tensors"])
@pytest.mark.parametrize("rows", [1, 2048])
def test_where_results_go(benchmark, rows, where):
    benchmark.group = f"dequantize {rows} x {COLUMNS} to bfloat16, where to"
    codes, scales = ops.quantize_fp8(torch.randn(rows, COLUMNS))
    out = ops.dequantize_fp8(codes, scales, (1, 128))
    given = {"out": out} if where == "given tensors" else {}
    assert_same(ops.dequantize_fp8(codes, scales, (1, 128), **given), out)
    benchmark(lambda: ops.dequantize_fp8(codes, scales, (1, 128), **given))
