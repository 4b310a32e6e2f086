"""Memory for large results: what callers can rely on."""

import copy
import io
import mmap
import sys

import pytest
import torch

from abyssal import ops
from abyssal.ops import large
from abyssal.reference import dequantize_fp8

ROWS = large.ALWAYS_NEW // 4 // 1024


@pytest.mark.parametrize("size", [100, large.LARGE_RESULT, large.ALWAYS_NEW, large.ALWAYS_NEW + 3])
def test_a_storage_holds_its_tensor_and_nothing_else(size):
    place = large.empty((size,), torch.uint8)
    assert place.shape == (size,) and place.is_contiguous()
    assert place.untyped_storage().nbytes() == size and place.storage_offset() == 0
    place.fill_(7)
    assert int(place[-1]) == 7


@pytest.mark.skipif(not hasattr(mmap, "MADV_HUGEPAGE"), reason="this system has no large pages")
def test_the_largest_results_begin_with_a_page():
    place = large.empty((ROWS, 1024), torch.float32)
    assert place.data_ptr() % large.LARGE_PAGE == 0


def test_a_large_result_is_like_any_other():
    codes = torch.randint(0, 120, (ROWS, 1024), dtype=torch.uint8).view(torch.float8_e4m3fn)
    scales = torch.rand(ROWS // 128, 8)
    values = ops.dequantize_fp8(codes, scales, (128, 128), torch.float32)
    assert torch.equal(values, dequantize_fp8(codes, scales, (128, 128), torch.float32))
    expected = values.tolist()[-1]
    saved = io.BytesIO()
    torch.save(values, saved)
    assert len(saved.getvalue()) < values.nbytes + 10_000
    saved.seek(0)
    for same in (torch.load(saved), copy.deepcopy(values), values.clone().share_memory_()):
        assert same[-1].tolist() == expected
    parameter = torch.nn.Parameter(values)
    parameter.sum().backward()
    assert parameter.grad is not None
    row = values[-1]
    del values, parameter
    assert row.tolist() == expected


@pytest.mark.skipif(sys.platform != "linux", reason="reads what Linux says of a process")
def test_memory_goes_back_with_the_last_tensor():
    def resident():
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * mmap.PAGESIZE

    before = resident()
    for _ in range(20):
        large.empty((ROWS, 1024), torch.float32).fill_(1.0)
    assert resident() - before < 4 * large.ALWAYS_NEW


@pytest.mark.parametrize("failure", ["no large pages", "no memory"])
def test_torch_gives_the_memory_where_the_system_does_not(failure, monkeypatch):
    def refuse(*args, **kwargs):
        raise OSError("Cannot allocate memory")

    if failure == "no memory":
        monkeypatch.setattr(mmap, "mmap", refuse)
    else:
        monkeypatch.delattr(mmap, "MADV_HUGEPAGE", raising=False)
    place = large.empty((ROWS, 1024), torch.float32)
    assert place.untyped_storage().resizable()
