"""Operations called from several Python threads at once: they share inputs, never outputs."""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from abyssal import ops

THREADS, CALLS = 4, 12


def operations():
    """Calls that are long enough to release the interpreter, on inputs that all threads share."""
    torch.manual_seed(0)
    logits, bias = torch.randn(512, 256), torch.randn(256)
    weight, x = torch.randn(256, 384), torch.randn(5, 384)
    codes, scales = ops.quantize_fp8(weight, block=(128, 128))
    packed, exponents = ops.quantize_mxfp4(weight)
    indices = torch.randint(0, 256, (512, 8), dtype=torch.int32)
    return {
        "route": lambda: ops.route(
            logits, top_k=8, scoring="sigmoid", correction_bias=bias, num_groups=8, top_groups=4
        ),
        "permute": lambda: ops.permute(indices, 256),
        "quantize_fp8": lambda: ops.quantize_fp8(weight),
        "dequantize_fp8": lambda: (ops.dequantize_fp8(codes, scales, (128, 128)),),
        "quantize_mxfp4": lambda: ops.quantize_mxfp4(weight),
        "dequantize_mxfp4": lambda: (ops.dequantize_mxfp4(packed, exponents),),
        "linear": lambda: (ops.linear(x, weight),),
        "fp8_linear": lambda: (ops.fp8_linear(x, codes, scales),),
        "mxfp4_linear": lambda: (ops.mxfp4_linear(x, packed, exponents),),
    }


def as_bytes(result):
    return [part.contiguous().view(torch.uint8) for part in result]


@pytest.mark.parametrize("name", sorted(operations()))
def test_threads_get_the_results_of_one_thread(name):
    call = operations()[name]
    expected = as_bytes(call())

    def repeat(_):
        return [as_bytes(call()) for _ in range(CALLS)]

    with ThreadPoolExecutor(THREADS) as pool:
        for results in pool.map(repeat, range(THREADS)):
            for result in results:
                assert all(map(torch.equal, result, expected))


def test_threads_write_their_own_rows_of_one_output():
    logits = torch.randn(THREADS * 300, 64)
    expected = ops.route(logits, top_k=6, scoring="softmax")
    weights, indices = torch.zeros_like(expected[0]), torch.zeros_like(expected[1])

    def part(number):
        rows = slice(number * 300, (number + 1) * 300)
        ops.route(logits[rows], top_k=6, scoring="softmax", out=(weights[rows], indices[rows]))

    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(part, range(THREADS)))
    assert torch.equal(weights, expected[0])
    assert torch.equal(indices, expected[1])


def test_a_forked_child_has_threads_of_its_own():
    script = """
import os, sys, torch, abyssal
from abyssal import ops

abyssal.set_num_threads(2)
torch.set_num_threads(1)
packed = ops.quantize_fp8(torch.randn(2048, 1024), (128, 128))
x = torch.randn(2, 1024)
expected = ops.fp8_linear(x, *packed)
for _ in range(3):
    child = os.fork()
    same = all(torch.equal(ops.fp8_linear(x, *packed), expected) for _ in range(50))
    if child == 0:
        os._exit(0 if same else 1)
    assert same
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
