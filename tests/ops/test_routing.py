"""Routing on the CPU equals the reference bit for bit, for every rule and every corner."""

import pytest
import torch

from abyssal import ops, reference
from abyssal.testing.generators import hard_logits, plain_logits
from abyssal.testing.numeric import assert_same_bits

# Rule, number of experts, whether a correction bias is used.
RULES = {
    "v2_lite": (dict(top_k=6, scoring="softmax", normalize=False), 64, False),
    "v2": (
        dict(
            top_k=6,
            scoring="softmax",
            num_groups=8,
            top_groups=3,
            group_score="max",
            normalize=False,
            scale=16.0,
        ),
        160,
        False,
    ),
    "v3": (dict(top_k=8, scoring="sigmoid", num_groups=8, top_groups=4, scale=2.5), 256, True),
    "moonlight": (dict(top_k=6, scoring="sigmoid", scale=2.446), 64, True),
    "kimi_k2": (dict(top_k=8, scoring="sigmoid", scale=2.827), 384, True),
    "glm_4_7_flash": (dict(top_k=4, scoring="sigmoid", scale=1.8), 64, True),
    "v4": (dict(top_k=6, scoring="sqrtsoftplus", scale=1.5), 256, True),
    "longcat": (dict(top_k=12, scoring="softmax", normalize=False, scale=6.0), 768, True),
}
CHUNK = 2048


def inputs(name, rows, generator):
    rule, experts, biased = RULES[name]
    logits = hard_logits(rows, experts, generator)
    spread = 0.5 / experts if rule["scoring"] == "softmax" else 0.1
    bias = torch.randn(experts, generator=generator) * spread if biased else None
    return rule, logits, bias


@pytest.mark.parametrize("name", RULES)
def test_every_row_equals_the_reference(name, generator, full_profile):
    rows = 1_000_000 if full_profile else 12 * CHUNK
    incomplete = 0
    for start in range(0, rows, CHUNK):
        rule, logits, bias = inputs(name, min(CHUNK, rows - start), generator)
        loads = [torch.full((logits.shape[1],), 5), torch.full((logits.shape[1],), 5)]
        fast = ops.route(logits, correction_bias=bias, load=loads[0], **rule)
        slow = reference.route(logits, correction_bias=bias, load=loads[1], **rule)
        assert_same_bits(fast[1], slow[1])
        assert_same_bits(fast[0], slow[0])
        assert_same_bits(loads[0], loads[1])
        incomplete += int(fast[0].isnan().any(dim=1).sum())
    print(f"{name}: {rows} rows equal, {incomplete} of them without enough experts")
    assert 0 < incomplete < rows / 8


@pytest.mark.parametrize("scoring", ["softmax", "sigmoid", "sqrtsoftplus"])
def test_table_look_up_equals_the_reference(scoring, generator, full_profile):
    rows = 1_000_000 if full_profile else 8 * CHUNK
    table = torch.rand(1000, 256, generator=generator).argsort(dim=1)[:, :6].to(torch.int32)
    incomplete = 0
    for start in range(0, rows, CHUNK):
        count = min(CHUNK, rows - start)
        logits = hard_logits(count, 256, generator)
        ids = torch.randint(1000, (count,), generator=generator)
        loads = [torch.zeros(256, dtype=torch.int64), torch.zeros(256, dtype=torch.int64)]
        fast = ops.route_table(logits, ids, table, scoring=scoring, scale=1.5, load=loads[0])
        slow = reference.route_table(logits, ids, table, scoring=scoring, scale=1.5, load=loads[1])
        for left, right in zip((*fast, loads[0]), (*slow, loads[1]), strict=True):
            assert_same_bits(left, right)
        incomplete += int(fast[0].isnan().any(dim=1).sum())
    print(f"table, {scoring}: {rows} rows equal, {incomplete} of them with a NaN score")
    assert incomplete > 0


@pytest.mark.parametrize("module", [ops, reference])
class TestGuarantees:
    """What the docstrings promise, of both implementations."""

    def test_ties_pick_the_lower_expert(self, module):
        logits = torch.tensor([[0.0, 1.0, -0.0, 1.0, 0.0]])
        for scoring in ("softmax", "sigmoid", "sqrtsoftplus"):
            _, indices = module.route(logits, top_k=4, scoring=scoring)
            assert indices.tolist() == [[1, 3, 0, 2]]

    def test_masked_groups_are_never_chosen_even_when_their_keys_are_larger(self, module):
        # Group 0 wins by its two best; its other expert's key is negative, group 1's is positive.
        logits = torch.zeros(1, 4)
        bias = torch.tensor([3.0, -2.0, 0.1, 0.1])
        _, indices = module.route(
            logits, top_k=2, scoring="sigmoid", correction_bias=bias, num_groups=2, top_groups=1
        )
        assert indices.tolist() == [[0, 1]]

    def test_the_two_group_scores_differ(self, module):
        logits = torch.tensor([[5.0, -5.0, 2.0, 2.0]])
        kwargs = dict(top_k=1, scoring="sigmoid", num_groups=2, top_groups=1)
        assert module.route(logits, group_score="max", **kwargs)[1].tolist() == [[0]]
        assert module.route(logits, group_score="top2_sum", **kwargs)[1].tolist() == [[2]]

    def test_all_groups_kept_is_an_exact_no_op(self, module, generator):
        logits = hard_logits(64, 32, generator)
        bias = torch.randn(32, generator=generator) * 0.1
        kwargs = dict(top_k=6, scoring="sigmoid", correction_bias=bias)
        plain = module.route(logits, **kwargs)
        for groups in (4, 32):
            grouped = module.route(logits, num_groups=groups, top_groups=groups, **kwargs)
            assert_same_bits(grouped[0], plain[0])
            assert_same_bits(grouped[1], plain[1])

    def test_weights_come_from_the_scores_without_bias(self, module):
        logits = torch.tensor([[0.0, 0.0]])
        weights, indices = module.route(
            logits,
            top_k=1,
            scoring="sigmoid",
            correction_bias=torch.tensor([0.0, 9.0]),
            normalize=False,
        )
        assert (weights.item(), indices.item()) == (0.5, 1)

    def test_normalized_weights_are_divided_by_their_sum_and_scaled(self, module):
        logits = torch.zeros(1, 4)
        weights, _ = module.route(logits, top_k=2, scoring="sigmoid", scale=3.0)
        assert weights.tolist() == [[1.5, 1.5]]

    def test_a_nan_logit_is_never_chosen_and_too_few_experts_give_nan_weights(self, module):
        nan = float("nan")
        logits = torch.tensor([[nan, float("-inf"), 1.0], [nan, nan, 1.0]])
        load = torch.zeros(3, dtype=torch.int64)
        weights, indices = module.route(logits, top_k=2, scoring="sigmoid", load=load)
        assert indices[0].tolist() == [2, 1]
        assert weights[0].tolist() == [1.0, 0.0]
        assert weights[1].isnan().all()
        assert ((indices >= 0) & (indices < 3)).all()
        assert load.tolist() == [0, 1, 1], "a row without enough experts is not counted"

    def test_infinite_logits_take_their_limits(self, module):
        inf = float("inf")
        logits = torch.tensor([[inf, 0.0, inf, -inf]])
        weights, indices = module.route(logits, top_k=3, scoring="softmax", normalize=False)
        assert indices.tolist() == [[0, 2, 1]]
        assert weights.tolist() == [[0.5, 0.5, 0.0]]
        weights, indices = module.route(logits, top_k=3, scoring="sqrtsoftplus", scale=2.0)
        assert (weights.tolist(), indices.tolist()) == ([[1.0, 1.0, 0.0]], [[0, 2, 1]])
        empty = torch.full((1, 4), -inf)
        weights, _ = module.route(empty, top_k=2, scoring="softmax", normalize=False)
        assert weights.tolist() == [[0.25, 0.25]]

    def test_a_row_does_not_depend_on_its_neighbors(self, module, generator):
        logits = hard_logits(64, 48, generator)
        kwargs = dict(top_k=4, scoring="softmax", num_groups=4, top_groups=2)
        together = module.route(logits, **kwargs)
        for row in range(64):
            alone = module.route(logits[row : row + 1], **kwargs)
            assert_same_bits(alone[0][0], together[0][row])
            assert_same_bits(alone[1][0], together[1][row])

    def test_narrow_logits_are_computed_in_float32(self, module, generator):
        for dtype in (torch.bfloat16, torch.float16):
            logits = plain_logits(16, 32, generator).to(dtype)
            narrow = module.route(logits, top_k=4, scoring="softmax")
            wide = module.route(logits.float(), top_k=4, scoring="softmax")
            assert_same_bits(narrow[0], wide[0])
            assert_same_bits(narrow[1], wide[1])

    def test_zero_tokens_give_empty_results(self, module):
        weights, indices = module.route(torch.empty(0, 8), top_k=2, scoring="softmax")
        assert weights.shape == indices.shape == (0, 2)
        assert (weights.dtype, indices.dtype) == (torch.float32, torch.int32)
        ids = torch.empty(0, dtype=torch.int64)
        table = torch.zeros(3, 2, dtype=torch.int64)
        weights, indices = module.route_table(torch.empty(0, 8), ids, table, scoring="softmax")
        assert weights.shape == indices.shape == (0, 2)

    def test_results_are_written_to_out_strided_too(self, module, generator):
        logits = plain_logits(9, 16, generator)
        expected = module.route(logits, top_k=3, scoring="sigmoid")
        for stride in (1, 2):
            out = (
                torch.zeros(9, 3 * stride)[:, ::stride],
                torch.zeros(9, 3 * stride, dtype=torch.int32)[:, ::stride],
            )
            result = module.route(logits, top_k=3, scoring="sigmoid", out=out)
            assert result[0] is out[0] and result[1] is out[1]
            assert_same_bits(out[0], expected[0])
            assert_same_bits(out[1], expected[1])

    def test_strided_inputs_give_the_same_result(self, module, generator):
        logits = plain_logits(9, 16, generator)
        load = torch.zeros(32, dtype=torch.int64)
        expected = module.route(logits, top_k=3, scoring="sigmoid", load=load[::2])
        strided = module.route(logits.T.contiguous().T, top_k=3, scoring="sigmoid")
        assert_same_bits(strided[0], expected[0])
        assert (load[::2].sum(), load[1::2].sum()) == (27, 0)

    def test_what_the_table_says_is_weighed_in_its_order(self, module):
        logits = torch.tensor([[0.0, 20.0, 0.0], [0.0, 0.0, float("nan")]])
        table = torch.tensor([[2, 1], [2, 0], [9, -1]])
        weights, indices = module.route_table(
            logits, torch.tensor([0, 1]), table, scoring="sigmoid", normalize=False
        )
        assert indices.tolist() == [[2, 1], [2, 0]]
        assert weights[0].tolist() == [0.5, 1.0]
        assert weights[1].isnan().all()

    def test_permuting_groups_positions_by_expert_in_order(self, module, generator):
        for dtype in (torch.int32, torch.int64):
            indices = torch.randint(7, (50, 3), generator=generator).to(dtype)
            order, offsets = module.permute(indices, 9)
            assert (order.dtype, offsets.dtype) == (torch.int32, torch.int32)
            flat = indices.reshape(-1).tolist()
            for expert in range(9):
                group = order[offsets[expert] : offsets[expert + 1]].tolist()
                assert group == [at for at, value in enumerate(flat) if value == expert]
        order, offsets = module.permute(indices[:0], 4)
        assert (order.tolist(), offsets.tolist()) == ([], [0] * 5)

    @pytest.mark.parametrize(
        ("change", "error", "message"),
        [
            (dict(top_k=0), ValueError, "top_k is 0; it must lie in 1..8"),
            (dict(top_k=9), ValueError, "top_k is 9; it must lie in 1..8"),
            (dict(num_groups=4, top_groups=1), ValueError, "top_k is 3; it must lie in 1..2"),
            (dict(num_groups=3), ValueError, "num_groups is 3; it must divide the 8 experts"),
            (dict(num_groups=0), ValueError, "num_groups is 0; it must lie in 1..8"),
            (dict(top_groups=2), ValueError, "top_groups is 2; it must lie in 1..1"),
            (dict(scoring="relu"), ValueError, "scoring is 'relu'; it must be one of 'softmax'"),
            (dict(group_score="sum"), ValueError, "group_score is 'sum'; it must be one of 'max'"),
            (dict(correction_bias=torch.zeros(7)), ValueError, r"has shape \[7\]; it must be"),
            (
                dict(correction_bias=torch.zeros(8, dtype=torch.bfloat16)),
                TypeError,
                "correction_bias is torch.bfloat16; it must be torch.float32",
            ),
            (dict(load=torch.zeros(8)), TypeError, "load is torch.float32"),
            (dict(load=torch.zeros(9, dtype=torch.int64)), ValueError, r"load has shape \[9\]"),
            (dict(logits=torch.zeros(8)), ValueError, "logits has 1 dimensions; it must have 2"),
            (dict(logits=torch.zeros(2, 0)), ValueError, "0 experts; at least 1 is needed"),
            (dict(logits=torch.zeros(2, 8).double()), TypeError, "logits is torch.float64"),
            (dict(logits=[[0.0] * 8]), TypeError, "logits is a list; it must be a torch.Tensor"),
        ],
    )
    def test_a_bad_call_says_what_was_wrong(self, module, change, error, message):
        kwargs = dict(logits=torch.zeros(2, 8), top_k=3, scoring="sigmoid") | change
        with pytest.raises(error, match=message):
            module.route(**kwargs)

    def test_ids_and_indices_out_of_range_are_refused(self, module):
        table = torch.tensor([[0, 1], [0, 4]])
        logits = torch.zeros(1, 4)
        for bad in (-1, 2):
            with pytest.raises(ValueError, match=f"token id is {bad}; it must lie in 0..1"):
                module.route_table(logits, torch.tensor([bad]), table, scoring="sigmoid")
        with pytest.raises(ValueError, match=r"expert is 4; it must lie in 0\.\.3"):
            module.route_table(logits, torch.tensor([1]), table, scoring="sigmoid")
        with pytest.raises(ValueError, match=r"expert is 4; it must lie in 0\.\.3"):
            module.permute(table, 4)


def test_outputs_that_share_memory_are_refused():
    shared = torch.zeros(4, 2)
    with pytest.raises(ValueError, match="shares memory"):
        ops.route(
            torch.zeros(4, 8), top_k=2, scoring="sigmoid", out=(shared, shared.view(torch.int32))
        )


@pytest.mark.parametrize("name", RULES)
def test_the_gradient_of_the_weights_equals_the_references(name, generator):
    rule, logits, bias = inputs(name, 64, generator)
    logits = logits[torch.arange(64) % 8 < 6]  # gradients at infinity and NaN have no meaning
    gradients = []
    for module in (ops, reference):
        given = logits.clone().requires_grad_()
        weights, indices = module.route(given, correction_bias=bias, **rule)
        assert weights.requires_grad and not indices.requires_grad
        (weights * torch.linspace(1, 2, weights.shape[1])).sum().backward()
        gradients.append(given.grad)
    assert_same_bits(gradients[0], gradients[1])
    assert gradients[0].abs().sum() > 0
