"""Normalization and the likeliest token agree with the reference; a row is its own affair."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import abyssal
from abyssal import ops, reference
from abyssal.testing.numeric import assert_same_bits

DTYPES = [torch.float32, torch.bfloat16]


@pytest.mark.parametrize("result", [None, *DTYPES], ids=str)
@pytest.mark.parametrize("weight_dtype", DTYPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", [1, 15, 512, 2048])
@pytest.mark.parametrize("scale", [1e-10, 1.0, 1e4])
def test_rows_are_normalized(dtype, weight_dtype, result, size, scale, generator):
    x = (torch.randn(3, 5, size, generator=generator) * scale).to(dtype)
    weight = torch.randn(size, generator=generator).to(weight_dtype)
    found = ops.rms_norm(x, weight, 1e-6, dtype=result)
    expected = reference.rms_norm(x, weight, 1e-6, dtype=result)
    assert found.dtype == expected.dtype == (result or dtype)
    assert found.shape == x.shape
    # The sums of squares differ by the order of at most `size` additions; half of that reaches the
    # root. A narrow type may round the other way, once before and once after the weight.
    narrow = torch.bfloat16 in (dtype, result)
    bound = 2 * 2**-8 if narrow else (size / 2 + 4) * 2**-24
    error = (found.double() - expected.double()).abs()
    assert (error <= bound * expected.double().abs() + 1e-45).all()


def test_a_row_depends_neither_on_its_neighbors_nor_on_the_threads(generator):
    x = torch.randn(70, 2048, generator=generator)
    weight = torch.randn(2048, generator=generator)
    threads = abyssal.get_num_threads()
    try:
        abyssal.set_num_threads(3)
        together = ops.rms_norm(x, weight, 1e-6)
        abyssal.set_num_threads(1)
        for row in (0, 33, 69):
            assert_same_bits(ops.rms_norm(x[row], weight, 1e-6), together[row])
    finally:
        abyssal.set_num_threads(threads)


def test_gradients_and_other_types_go_to_the_reference(generator):
    x = torch.randn(4, 8, generator=generator, requires_grad=True)
    weight = torch.randn(8, generator=generator, requires_grad=True)
    ops.rms_norm(x, weight, 1e-6).sum().backward()
    assert x.grad is not None and weight.grad is not None
    half = torch.randn(4, 8, generator=generator).half()
    assert_same_bits(ops.rms_norm(half, half[0], 1e-6), reference.rms_norm(half, half[0], 1e-6))
    assert ops.rms_norm(torch.empty(0, 8), torch.ones(8), 1e-6).shape == (0, 8)
    assert ops.rms_norm(torch.empty(3, 0), torch.ones(0), 1e-6).shape == (3, 0)


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match=r"weight has shape \[7\]; it must be \[8\]"):
        ops.rms_norm(torch.ones(2, 8), torch.ones(7), 1e-6)
    with pytest.raises(TypeError, match="x is torch"):
        ops.rms_norm(torch.ones(2, 8, dtype=torch.int64), torch.ones(8), 1e-6)
    with pytest.raises(TypeError, match="logits is torch"):
        ops.greedy(torch.ones(2, 8, dtype=torch.bfloat16))
    with pytest.raises(ValueError, match="1 dimensions"):
        ops.greedy(torch.ones(8))
    with pytest.raises(ValueError, match="0 columns"):
        ops.greedy(torch.ones(2, 0))


@given(
    st.lists(
        st.lists(
            st.one_of(st.integers(-3, 3).map(float), st.floats(width=32)), min_size=37, max_size=37
        ),
        max_size=4,
    )
)
def test_the_likeliest_token_is_the_first_largest_of_finite_rows(rows):
    logits = torch.tensor(rows, dtype=torch.float32).view(-1, 37)
    found = ops.greedy(logits)
    assert found == reference.greedy(logits)
    for row, token in zip(rows, found, strict=True):
        finite = all(abs(value) < float("inf") for value in row)
        assert token == (row.index(max(row)) if finite else -1)
