"""The usual call of routing goes straight to the compiled code; every other call is still right."""

import pytest
import torch

from abyssal import _core, ops, reference
from abyssal.testing.generators import plain_logits
from abyssal.testing.numeric import assert_same_bits

RULE = {"top_k": 3, "scoring": "sigmoid"}


def direct(logits, **changes):
    """Call the compiled function with the arguments of ``ops.route``, some of them replaced."""
    valid = {
        "top_k": 3,
        "scoring": "sigmoid",
        "correction_bias": None,
        "num_groups": 1,
        "top_groups": 1,
        "group_score": "top2_sum",
        "normalize": True,
        "scale": 1.0,
        "out": None,
        "load": None,
    }
    return _core.route_direct(logits, *(valid | changes).values())


class Named(torch.Tensor):
    pass


LOGITS = torch.linspace(-3, 3, 48).view(4, 12).cos()
UNUSUAL = {
    "a subclass": LOGITS.as_subclass(Named),
    "strided": LOGITS.T.contiguous().T,
    "a recorded gradient": LOGITS.clone().requires_grad_(),
    "no tensor": LOGITS.tolist(),
    "another device": LOGITS.to("meta"),
    "sparse": LOGITS.to_sparse(),
    "double": LOGITS.double(),
    "one dimension": LOGITS[0],
    "no experts": LOGITS[:, :0],
}


needs_table = pytest.mark.skipif(
    not hasattr(torch.Tensor, "__dlpack_c_exchange_api__"), reason="needs torch 2.10"
)


@needs_table
def test_the_usual_call_is_direct_and_equal_to_the_reference():
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        logits = LOGITS.to(dtype)
        for value in (logits, torch.nn.Parameter(logits, requires_grad=False)):
            weights, indices = direct(value)
            expected = reference.route(logits, **RULE)
            assert_same_bits(weights, expected[0])
            assert_same_bits(indices, expected[1])
    recorded = LOGITS.clone().requires_grad_()
    with torch.no_grad():
        assert direct(recorded) is not None


@pytest.mark.parametrize("kind", UNUSUAL)
def test_an_unusual_tensor_is_left_to_the_caller(kind):
    assert direct(UNUSUAL[kind]) is None


@pytest.mark.parametrize(
    "change",
    [
        {"top_k": 0},
        {"top_k": -1},
        {"top_k": 2**70},
        {"top_k": 1.5},
        {"scoring": "relu"},
        {"scoring": None},
        {"num_groups": 5},
        {"group_score": 3},
        {"normalize": "yes"},
        {"scale": "large"},
        {"correction_bias": torch.zeros(11)},
        {"out": [torch.zeros(4, 3), torch.zeros(4, 3, dtype=torch.int32)]},
        {"out": (torch.zeros(4, 3),)},
        {"out": (torch.zeros(4, 3), torch.zeros(4, 3))},
        {"out": (torch.zeros(3, 3), torch.zeros(3, 3, dtype=torch.int32))},
        {"load": torch.zeros(12)},
    ],
    ids=str,
)
def test_an_unusual_argument_is_left_to_the_caller_and_nothing_is_written(change):
    assert direct(LOGITS, **change) is None
    for value in change.values():
        for tensor in value if isinstance(value, (list, tuple)) else [value]:
            assert not isinstance(tensor, torch.Tensor) or not tensor.any()


@pytest.mark.parametrize("kind", ["a subclass", "strided", "a recorded gradient"])
def test_unusual_tensors_are_routed_all_the_same(kind):
    weights, indices = ops.route(UNUSUAL[kind], **RULE)
    expected = reference.route(LOGITS, **RULE)
    assert_same_bits(weights.detach().as_subclass(torch.Tensor), expected[0])
    assert_same_bits(indices.as_subclass(torch.Tensor), expected[1])


def test_another_device_goes_to_the_reference():
    weights, indices = ops.route(UNUSUAL["another device"], **RULE)
    assert weights.device.type == indices.device.type == "meta"
    assert (weights.shape, indices.dtype) == ((4, 3), torch.int32)


def test_results_are_in_cpu_memory_whatever_the_default_device_and_dtype():
    expected = reference.route(LOGITS, **RULE)
    torch.set_default_dtype(torch.float64)
    try:
        with torch.device("meta"):
            weights, indices = ops.route(LOGITS, **RULE)
    finally:
        torch.set_default_dtype(torch.float32)
    assert_same_bits(weights, expected[0])
    assert_same_bits(indices, expected[1])


def test_given_outputs_are_returned_as_they_are():
    out = (torch.empty(4, 3), torch.empty(4, 3, dtype=torch.int32))
    assert ops.route(LOGITS, out=out, **RULE) is out


def test_an_object_that_claims_the_class_of_a_tensor_is_never_asked_for_its_memory():
    class Impostor:
        __class__ = torch.Tensor

    assert isinstance(Impostor(), torch.Tensor)
    assert direct(Impostor()) is None
    with pytest.raises(TypeError, match=r"expected a torch\.Tensor or a numpy array, got"):
        _core.permute(Impostor(), 4, torch.zeros(4), torch.zeros(5))


def test_many_rows_of_few_experts_equal_the_reference(generator):
    """Sixteen rows together, rows that are left over, and rows that are not tame among them."""
    for top_k, biased in ((1, False), (4, True), (6, False), (8, True), (9, False)):
        logits = plain_logits(75, 61, generator)
        logits[20, 3] = float("nan")
        logits[40] = 200.0
        bias = torch.randn(61, generator=generator) * 0.2 if biased else None
        for scoring in ("softmax", "sigmoid", "sqrtsoftplus"):
            rule = {"top_k": top_k, "scoring": scoring, "correction_bias": bias}
            ours, theirs = ops.route(logits, **rule), reference.route(logits, **rule)
            assert_same_bits(ours[0], theirs[0])
            assert_same_bits(ours[1], theirs[1])
