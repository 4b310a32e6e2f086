"""The gate's product and routing in one call equal the reference bit for bit."""

import pytest
import torch

import abyssal
from abyssal import ops, reference
from abyssal.testing.generators import plain_logits
from abyssal.testing.numeric import assert_same_bits

RULES = {
    "v2_lite": (dict(top_k=6, scoring="softmax", normalize=False), 64, 128),
    "v3": (dict(top_k=8, scoring="sigmoid", num_groups=8, top_groups=4, scale=2.5), 256, 100),
    "odd": (dict(top_k=3, scoring="sqrtsoftplus"), 13, 17),
}
DTYPES = [torch.float32, torch.bfloat16]


def matrices(name, tokens, generator, dtype=torch.float32, weight_dtype=torch.float32):
    rule, experts, width = RULES[name]
    x = torch.randn(tokens, width, generator=generator).to(dtype)
    weight = (torch.randn(experts, width, generator=generator) * 0.1).to(weight_dtype)
    return x, weight, rule


@pytest.mark.parametrize("weight_dtype", DTYPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", RULES)
def test_results_and_logits_equal_the_references(name, dtype, weight_dtype, generator):
    x, weight, rule = matrices(name, 70, generator, dtype, weight_dtype)
    bias = torch.randn(weight.shape[0], generator=generator) * 0.1
    found = []
    for module in (ops, reference):
        logits = torch.empty(70, weight.shape[0])
        load = torch.zeros(weight.shape[0], dtype=torch.int64)
        routed = module.gate_route(
            x, weight, correction_bias=bias, logits=logits, load=load, **rule
        )
        found.append((*routed, logits, load))
    for ours, theirs in zip(*found, strict=True):
        assert_same_bits(ours, theirs)


def test_the_gate_is_the_route_of_its_logits_and_those_are_near_the_exact_product(generator):
    x, weight, rule = matrices("v3", 33, generator)
    logits = torch.empty(33, 256)
    weights, indices = ops.gate_route(x, weight, logits=logits, **rule)
    expected = ops.route(logits, **rule)
    assert_same_bits(weights, expected[0])
    assert_same_bits(indices, expected[1])
    exact = x.double() @ weight.double().T
    # A product, 7 additions in its lane and 4 between lanes each round by half an epsilon at most.
    bound = 12 * 2**-24 * (x.double().abs() @ weight.double().abs().T)
    assert ((logits.double() - exact).abs() <= bound).all()


def test_a_row_depends_neither_on_its_neighbors_nor_on_the_threads(generator):
    x = torch.randn(70, 2048, generator=generator)
    weight = torch.randn(65, 2048, generator=generator) * 0.02
    kwargs = dict(top_k=6, scoring="softmax")
    threads = abyssal.get_num_threads()
    together = ops.gate_route(x, weight, **kwargs)
    try:
        for count in (1, 2, 3):
            abyssal.set_num_threads(count)
            again = ops.gate_route(x, weight, **kwargs)
            assert_same_bits(again[0], together[0])
            assert_same_bits(again[1], together[1])
            for row in (0, 1, 63, 64, 69):
                alone = ops.gate_route(x[row : row + 1], weight, **kwargs)
                assert_same_bits(alone[0][0], together[0][row])
                assert_same_bits(alone[1][0], together[1][row])
    finally:
        abyssal.set_num_threads(threads)


@pytest.mark.parametrize("module", [ops, reference], ids=["ops", "reference"])
class TestCorners:
    def test_zero_tokens_give_empty_results(self, module):
        x, weight = torch.empty(0, 8), torch.ones(4, 8)
        weights, indices = module.gate_route(x, weight, top_k=2, scoring="softmax")
        assert weights.shape == indices.shape == (0, 2)
        assert (weights.dtype, indices.dtype) == (torch.float32, torch.int32)

    def test_hidden_states_that_are_not_finite_give_nan_weights(self, module):
        x = torch.tensor([[1.0, float("nan")], [1.0, 2.0]])
        load = torch.zeros(3, dtype=torch.int64)
        weights, _ = module.gate_route(x, torch.ones(3, 2), top_k=2, scoring="sigmoid", load=load)
        assert weights[0].isnan().all() and not weights[1].isnan().any()
        assert load.tolist() == [1, 1, 0]

    def test_strided_arguments_give_the_same_results(self, module, generator):
        x, weight, rule = matrices("odd", 9, generator)
        expected = module.gate_route(x, weight, **rule)
        out = (torch.zeros(9, 6)[:, ::2], torch.zeros(9, 6, dtype=torch.int32)[:, ::2])
        load = torch.zeros(26, dtype=torch.int64)[::2]
        logits = torch.zeros(13, 9).T
        result = module.gate_route(
            x.T.contiguous().T,
            weight.T.contiguous().T,
            out=out,
            load=load,
            logits=logits,
            **rule,
        )
        assert result[0] is out[0] and result[1] is out[1]
        assert_same_bits(out[0], expected[0])
        assert_same_bits(out[1], expected[1])
        assert load.sum() == 27
        assert_same_bits(logits.contiguous(), reference.gate_logits(x, weight))

    @pytest.mark.parametrize(
        ("change", "error", "message"),
        [
            (dict(x=torch.zeros(2, 0)), ValueError, r"hidden size is 0; it must lie in 1\.\."),
            (dict(x=torch.zeros(8)), ValueError, "x has 1 dimensions; it must have 2"),
            (dict(x=torch.zeros(2, 8).half()), TypeError, "x is torch.float16; it must be"),
            (dict(x=[[0.0]]), TypeError, "x is a list; it must be a torch.Tensor"),
            (dict(weight=torch.zeros(4, 9)), ValueError, r"weight has shape \[4, 9\]; it must be"),
            (dict(weight=torch.zeros(0, 8)), ValueError, "0 experts; at least 1 is needed"),
            (dict(top_k=5), ValueError, r"top_k is 5; it must lie in 1\.\.4"),
            (dict(logits=torch.zeros(2, 5)), ValueError, r"logits has shape \[2, 5\]"),
            (dict(logits=torch.zeros(2, 4).double()), TypeError, "logits is torch.float64"),
        ],
    )
    def test_a_bad_call_says_what_was_wrong(self, module, change, error, message):
        kwargs = dict(x=torch.zeros(2, 8), weight=torch.zeros(4, 8), top_k=2, scoring="sigmoid")
        with pytest.raises(error, match=message):
            module.gate_route(**(kwargs | change))


def test_outputs_that_share_memory_are_refused():
    x, weight = torch.zeros(4, 8), torch.zeros(8, 8)
    for shared in (dict(logits=x.view(4, 8)), dict(logits=weight[:4])):
        with pytest.raises(ValueError, match="logits shares memory"):
            ops.gate_route(x, weight, top_k=2, scoring="sigmoid", **shared)


def test_the_gradients_agree_with_the_references(generator):
    x, weight, rule = matrices("v3", 20, generator)
    gradients = []
    for module in (ops, reference):
        given = (x.clone().requires_grad_(), weight.clone().requires_grad_())
        weights, indices = module.gate_route(*given, **rule)
        assert weights.requires_grad and not indices.requires_grad
        (weights * torch.linspace(1, 2, 8)).sum().backward()
        gradients.append([matrix.grad for matrix in given])
    for ours, theirs in zip(*gradients, strict=True):
        # The same sums of at most 256 products, in another order.
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)
        assert ours.abs().sum() > 0


def test_the_identity_as_weight_routes_the_hidden_states_themselves(generator):
    logits = plain_logits(50, 64, generator)
    identity = torch.eye(64)
    weights, indices = ops.gate_route(logits, identity, top_k=6, scoring="softmax")
    expected = ops.route(logits, top_k=6, scoring="softmax")
    assert_same_bits(weights, expected[0])
    assert_same_bits(indices, expected[1])
