"""The operations are well-behaved custom operators of PyTorch."""

import pytest
import torch

from abyssal import ops, reference
from abyssal.testing.numeric import assert_same_bits


def fp8_weight():
    return ops.quantize_fp8(torch.randn(40, 64), (128, 128))


def attention(up=None, scales=None):
    angles = torch.randn(2, 4, 4)
    spans = torch.tensor([[0, 3, 4, 1], [3, 1, 0, 0]], dtype=torch.int32)
    up = torch.randn(120, 32) if up is None else up
    tables = torch.tensor([[1], [0]], dtype=torch.int32)
    return (torch.randn(4, 3, 24), *angles, torch.randn(16, 40), spans, tables, up, scales, 8, 0.2)


def latents():
    slots = torch.tensor([3, 0, 7, 5])
    values = torch.randn(4, 40), torch.randn(32)
    return (*values, *torch.randn(2, 4, 4), torch.randn(16, 40), slots, 1e-6)


def arguments():
    """Return example arguments of every operator, with and without a gradient."""
    logits = torch.randn(6, 16)
    needs_gradient = torch.randn(6, 16, requires_grad=True)
    bias = torch.randn(16)
    table = torch.randint(16, (9, 3))
    ids = torch.randint(9, (6,))
    x = torch.randn(5, 64)
    codes, scales = ops.quantize_fp8(x)
    packed = ops.quantize_mxfp4(torch.randn(40, 64))
    gradient = torch.randn(5, 64, requires_grad=True)
    gate = torch.randn(16, 64)
    return [
        ("route", (logits, 3, "softmax")),
        ("route", (needs_gradient, 3, "sigmoid", bias, 4, 2, "top2_sum", True, 2.5)),
        ("route_table", (logits, ids, table, "sqrtsoftplus")),
        ("route_table", (needs_gradient, ids, table, "sigmoid", True, 1.5)),
        ("gate_route", (x, gate.clone(), 3, "softmax")),
        ("gate_route", (gradient, gate.requires_grad_(), 3, "sigmoid", bias, 4, 2)),
        ("permute", (torch.randint(16, (6, 3)), 16)),
        ("quantize_fp8", (x, [1, 128], "ue8m0")),
        ("dequantize_fp8", (codes, scales, [1, 128], torch.float16)),
        ("quantize_mxfp4", (x,)),
        ("dequantize_mxfp4", (*ops.quantize_mxfp4(x), torch.float32)),
        ("linear", (x, gate.detach().clone())),
        ("linear", (gradient, torch.randn(16, 64, requires_grad=True))),
        ("fp8_linear", (x, *fp8_weight())),
        ("fp8_linear", (gradient, *fp8_weight())),
        ("mxfp4_linear", (x, *packed)),
        ("mxfp4_linear", (gradient, *packed)),
        ("mla_attention", attention()),
        ("mla_attention", attention(*ops.quantize_fp8(torch.randn(120, 32), (128, 128)))),
        ("write_latents", latents()),
    ]


NAMES = [f"{name}-{index}" for index, (name, _) in enumerate(arguments())]


# Warnings of opcheck's own code.
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
@pytest.mark.parametrize("index", range(len(NAMES)), ids=NAMES)
def test_the_operator_passes_opcheck(index):
    torch.manual_seed(index)
    name, args = arguments()[index]
    checks = ["test_schema", "test_autograd_registration", "test_faketensor"]
    checks.append("test_aot_dispatch_dynamic")
    # To see whether an input was written to, the schema check multiplies it, which FP8 cannot do.
    narrow = (torch.float8_e4m3fn, torch.float8_e8m0fnu)
    if any(isinstance(arg, torch.Tensor) and arg.dtype in narrow for arg in args):
        checks.remove("test_schema")
    torch.library.opcheck(getattr(torch.ops.abyssal, name).default, args, test_utils=checks)


@pytest.mark.parametrize("index", range(len(NAMES)), ids=NAMES)
def test_the_operator_has_the_shapes_and_dtypes_that_tracing_expects(index):
    name, args = arguments()[index]
    operator = getattr(torch.ops.abyssal, name)
    on_meta = [arg.to("meta") if isinstance(arg, torch.Tensor) else arg for arg in args]
    found = [
        # An operator without results returns None.
        [leaf for leaf in torch.utils._pytree.tree_leaves(operator(*given)) if leaf is not None]
        for given in (args, on_meta)
    ]
    for real, fake in zip(*found, strict=True):
        assert (real.shape, real.dtype) == (fake.shape, fake.dtype)
        assert fake.device.type == "meta"


def test_a_tensor_subclass_is_routed_like_a_plain_tensor():
    class Marked(torch.Tensor):
        pass

    logits = torch.randn(4, 8)
    weights, indices = ops.route(logits.as_subclass(Marked), top_k=2, scoring="sigmoid")
    expected = reference.route(logits, top_k=2, scoring="sigmoid")
    assert_same_bits(weights.as_subclass(torch.Tensor), expected[0])
    assert_same_bits(indices.as_subclass(torch.Tensor), expected[1])


def test_load_is_counted_when_a_gradient_is_recorded():
    logits = torch.randn(50, 8)
    loads = [torch.zeros(8, dtype=torch.int64) for _ in range(2)]
    ops.route(logits, top_k=2, scoring="sigmoid", load=loads[0])
    ops.route(logits.requires_grad_(), top_k=2, scoring="sigmoid", load=loads[1])
    assert_same_bits(loads[0], loads[1])
    assert loads[0].sum() == 100


def test_out_is_refused_while_a_gradient_is_recorded():
    out = (torch.empty(2, 1), torch.empty(2, 1, dtype=torch.int32))
    logits = torch.zeros(2, 4, requires_grad=True)
    with pytest.raises(ValueError, match="out cannot be given when a gradient is recorded"):
        ops.route(logits, top_k=1, scoring="sigmoid", out=out)
    with torch.no_grad():
        ops.route(logits, top_k=1, scoring="sigmoid", out=out)
    assert out[1].tolist() == [[0], [0]]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_tensors_of_another_device_go_to_the_reference():
    logits = torch.randn(32, 64)
    here = ops.route(logits, top_k=4, scoring="sigmoid")
    there = ops.route(logits.cuda(), top_k=4, scoring="sigmoid")
    assert there[0].device.type == "cuda"
    assert (there[0].cpu() - here[0]).abs().max() <= 2e-6
