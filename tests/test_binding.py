"""The border between Python and Rust: which tensors it takes, and what it says of those it refuses.

`_core.route` stands for every function, because all of them read tensors through the same code.
Runs on every torch from 2.8 on, with the exchange interface and without.
"""

import warnings

import numpy as np
import pytest
import torch
from binding_calls import EXPERTS, TOKENS, TOP_K, arguments, route


def quantized():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.quantize_per_tensor(torch.ones(TOKENS, EXPERTS), 1.0, 0, torch.qint8)


def nested():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.nested.nested_tensor([torch.ones(2), torch.ones(3)])


def sparse_rows():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.ones(TOKENS, EXPERTS).to_sparse_csr()


def fake():
    from torch._subclasses.fake_tensor import FakeTensorMode

    return FakeTensorMode().from_tensor(torch.ones(TOKENS, EXPERTS))


def misaligned(dtype=torch.float32, shape=(TOKENS, EXPERTS)):
    return torch.frombuffer(bytearray(256), dtype=dtype, offset=1, count=shape[0] * shape[1]).view(
        shape
    )


def negated():
    return torch.ones(TOKENS, EXPERTS, dtype=torch.complex64).conj().imag


NOT_PLAIN = {
    "meta": lambda: torch.ones(TOKENS, EXPERTS, device="meta"),
    "sparse": lambda: torch.ones(TOKENS, EXPERTS).to_sparse(),
    "sparse rows": sparse_rows,
    "nested": nested,
    "quantized": quantized,
    "fake": fake,
}


def test_plain_tensors_are_read_and_written_in_place():
    tensors = arguments()
    assert route(**tensors) == 0
    assert tensors["indices"].tolist() == [[3, 2], [0, 1]]
    assert torch.equal(tensors["weights"].sum(1), torch.ones(TOKENS))


@pytest.mark.parametrize(
    "value", [None, 1, "text", [[0.0]], {}, object(), torch.float32], ids=lambda v: type(v).__name__
)
def test_what_is_no_tensor_is_a_type_error_that_names_the_argument_and_the_type(value):
    with pytest.raises(TypeError, match=rf"(?s)got .*{type(value).__name__}.*'logits'"):
        route(logits=value)


@pytest.mark.parametrize("kind", NOT_PLAIN)
def test_a_tensor_without_plain_memory_is_a_type_error(kind):
    with pytest.raises(TypeError, match=r"(?s)dense tensor in CPU memory.*'logits'"):
        route(logits=NOT_PLAIN[kind]())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_tensor_on_a_gpu_is_a_type_error_that_names_the_device():
    with pytest.raises(TypeError, match="cuda"):
        route(logits=torch.ones(TOKENS, EXPERTS, device="cuda"))


def test_a_lazily_negated_view_is_refused_and_its_resolved_copy_is_read():
    view = negated()
    assert view.is_neg()
    with pytest.raises(TypeError, match=r"(?s)resolve_neg\(\).*'logits'"):
        route(logits=view)
    assert route(logits=view.resolve_neg().contiguous()) == 0


def test_a_lazily_conjugated_tensor_is_refused_by_its_dtype():
    with pytest.raises(TypeError, match="logits: expected dtype"):
        route(logits=torch.ones(TOKENS, EXPERTS, dtype=torch.complex64).conj())


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("logits", torch.float64),
        ("logits", torch.int32),
        ("logits", torch.bool),
        ("logits", torch.complex64),
        ("logits", torch.float8_e4m3fn),
        ("logits", torch.uint16),
        ("weights", torch.float16),
        ("weights", torch.bfloat16),
        ("indices", torch.int64),
        ("indices", torch.uint8),
    ],
)
def test_another_dtype_is_a_type_error_that_names_the_argument(name, dtype):
    value = torch.zeros(arguments()[name].shape, dtype=dtype)
    with pytest.raises(TypeError, match=f"{name}: expected dtype .*, got ") as caught:
        route(**{name: value})
    known = {"float64", "int32", "bool", "float8_e4m3fn", "float16", "bfloat16", "int64", "uint8"}
    if (short := str(dtype).removeprefix("torch.")) in known:
        assert short in str(caught.value)


def test_another_dtype_is_a_type_error_where_an_output_lies_right_behind_it():
    memory = torch.zeros(32, dtype=torch.uint8)
    logits, weights = memory[:16].view(torch.uint16), memory[16:].view(torch.float32)
    with pytest.raises(TypeError, match=r"logits: expected dtype .*, got "):
        route(logits=logits.view(TOKENS, EXPERTS), weights=weights.view(TOKENS, TOP_K))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("logits", torch.zeros(EXPERTS, TOKENS).T),
        ("logits", torch.zeros(1, EXPERTS).expand(TOKENS, EXPERTS)),
        ("logits", torch.zeros(TOKENS, 2 * EXPERTS)[:, ::2]),
        ("weights", torch.zeros(1, TOP_K).expand(TOKENS, TOP_K)),
        ("weights", torch.zeros(TOP_K, TOKENS).T),
        ("indices", torch.zeros(TOKENS, 3, dtype=torch.int32)[:, :TOP_K]),
        ("logits", np.zeros((TOKENS, EXPERTS), np.float32)[::-1]),
    ],
    ids=["transposed", "expanded", "stepped", "expanded out", "transposed out", "cut", "reversed"],
)
def test_strided_memory_is_a_value_error_that_shows_the_strides(name, value):
    with pytest.raises(ValueError, match=rf"{name}: expected a contiguous tensor.*strides \["):
        route(**{name: value})


@pytest.mark.parametrize("name", ["logits", "weights", "indices"])
def test_misaligned_memory_is_a_value_error(name):
    value = arguments()[name]
    with pytest.raises(ValueError, match=f"{name}: expected memory aligned to 4 bytes"):
        route(**{name: misaligned(value.dtype, value.shape)})


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("logits", (TOKENS,), "logits: expected 2 dimensions, got 1"),
        ("logits", (1, TOKENS, EXPERTS), "logits: expected 2 dimensions, got 3"),
        ("logits", (TOKENS, 0), "0"),
        ("weights", (TOKENS, 3), r"weights: expected shape \[2, 2\], got \[2, 3\]"),
        ("weights", (3, TOP_K), r"weights: expected shape \[2, 2\], got \[3, 2\]"),
        ("indices", (4,), r"indices: expected shape \[2, 2\], got \[4\]"),
    ],
)
def test_another_shape_is_a_value_error_with_both_shapes(name, shape, message):
    value = torch.zeros(shape, dtype=arguments()[name].dtype)
    with pytest.raises(ValueError, match=message):
        route(**{name: value})


def test_more_dimensions_than_any_operation_takes_are_refused():
    with pytest.raises(TypeError, match="at most 8 dimensions, got 9"):
        route(logits=torch.zeros((1,) * 9))


def test_outputs_that_share_memory_are_refused():
    memory = torch.zeros(TOKENS * TOP_K + 2)
    weights = memory[: TOKENS * TOP_K].view(TOKENS, TOP_K)
    indices = memory.view(torch.int32)[2:].view(TOKENS, TOP_K)
    with pytest.raises(ValueError, match="weights shares memory with indices"):
        route(weights=weights, indices=indices)


def test_an_output_that_shares_memory_with_an_input_is_refused():
    memory = torch.zeros(TOKENS * EXPERTS)
    with pytest.raises(ValueError, match="weights shares memory with logits"):
        route(
            logits=memory.view(TOKENS, EXPERTS),
            weights=memory[: TOKENS * TOP_K].view(TOKENS, TOP_K),
        )


def test_neighboring_memory_is_not_shared_memory():
    memory = torch.zeros(TOKENS * (EXPERTS + TOP_K))
    logits = memory[: TOKENS * EXPERTS].view(TOKENS, EXPERTS)
    weights = memory[TOKENS * EXPERTS :].view(TOKENS, TOP_K)
    assert route(logits=logits, weights=weights) == 0


def test_a_refused_call_leaves_every_output_as_it_was():
    weights = torch.full((TOKENS, TOP_K), 7.0)
    load = torch.full((EXPERTS,), 5, dtype=torch.int64)
    with pytest.raises(ValueError, match="indices"):
        route(weights=weights, load=load, indices=torch.zeros(TOKENS, 3, dtype=torch.int32))
    assert weights.eq(7.0).all()
    assert load.eq(5).all()


def test_an_input_that_requires_a_gradient_is_read_and_an_output_is_refused():
    logits = arguments()["logits"].requires_grad_()
    assert route(logits=logits) == 0
    with pytest.raises(ValueError, match=r"weights: .*requires a gradient; pass \.detach\(\)"):
        route(weights=torch.zeros(TOKENS, TOP_K, requires_grad=True))


def test_parameters_and_other_subclasses_are_tensors():
    class Named(torch.Tensor):
        pass

    logits = arguments()["logits"]
    for value in (torch.nn.Parameter(logits), logits.as_subclass(Named)):
        expected, got = arguments(), arguments(logits=value)
        route(**expected)
        route(**got)
        assert torch.equal(expected["indices"], got["indices"])


def test_a_view_with_an_offset_is_read_from_its_offset():
    memory = torch.arange(24, dtype=torch.float32).view(6, 4).flip(1).contiguous()
    tensors = arguments(logits=memory[4:])
    route(**tensors)
    assert tensors["indices"].tolist() == [[0, 1], [0, 1]]


def test_dimensions_of_one_element_have_no_stride_to_check():
    logits = torch.zeros(1, 2 * EXPERTS)[:, :EXPERTS]
    assert logits.stride(0) == 2 * EXPERTS
    one_row = {
        "weights": torch.zeros(1, TOP_K),
        "indices": torch.zeros(1, TOP_K, dtype=torch.int32),
    }
    assert route(logits=logits, **one_row) == 0


def test_zero_tokens_are_no_error():
    empty = {
        "logits": torch.zeros(0, EXPERTS),
        "weights": torch.zeros(0, TOP_K),
        "indices": torch.zeros(0, TOP_K, dtype=torch.int32),
    }
    assert route(**empty) == 0
