"""A feed-forward part as one call: right to rounding, and the same bits however it is called."""

import pytest
import torch

import abyssal
from abyssal import ops
from abyssal._core import kernel_tier
from abyssal.reference.experts import dense, expert_output, experts
from abyssal.testing.numeric import assert_same_bits

KINDS = ["fp8", "fp8_e8m0", "mxfp4", "bf16", "f32", "mixed"]


def pack(kind, shape, generator):
    weight = torch.randn(shape, generator=generator) * shape[1] ** -0.5
    if kind == "mxfp4":
        return ops.quantize_mxfp4(weight)
    if kind in ("fp8", "fp8_e8m0"):
        codes, scales = ops.quantize_fp8(weight, (128, 128), "f32" if kind == "fp8" else "ue8m0")
        return codes, scales if kind == "fp8" else scales.to(torch.float8_e8m0fnu)
    return weight.to(torch.bfloat16 if kind == "bf16" else torch.float32), None


def make(kind, generator, *, hidden=160, inner=96, shared=224, count=6):
    """Return the routed experts and the shared one; ``mixed`` stores every matrix otherwise."""

    def expert(width, number):
        shapes = [(width, hidden), (width, hidden), (hidden, width)]
        kinds = [kind if kind != "mixed" else KINDS[(number + part) % 5] for part in range(3)]
        return [pack(kind, shape, generator) for kind, shape in zip(kinds, shapes, strict=True)]

    routed = [expert(inner, number) for number in range(count)]
    return routed, expert(shared, count) if shared else None


def choose(tokens, count, generator, top_k=3):
    scores = torch.rand(tokens, count, generator=generator)
    weights, indices = scores.topk(top_k)
    return weights, indices.int()


@pytest.fixture
def threads():
    """Set the number of threads for the length of a test."""
    before = abyssal.get_num_threads()
    yield abyssal.set_num_threads
    abyssal.set_num_threads(before)


def part_error(part):
    """Return how far a weight is rounded where pairs of bfloat16 numbers are multiplied."""
    weight, scales = part
    return 2.0**-8 if weight.dtype == torch.float8_e4m3fn and scales.dtype == torch.float32 else 0.0


def exact(x, weights, indices, routed, shared, limit=None):
    """The same in float64, and a bound of the rounding errors in float32.

    Where pairs are multiplied, codes times scales and the inner activations are bfloat16.
    """
    pairs = kernel_tier() == "avx512-bf16" and x.dtype == torch.bfloat16
    total, bound, size = (torch.zeros_like(x.double()) for _ in range(3))

    def add(rows, expert, weight):
        gate, up, down = (dense(part).double() for part in expert)
        gate_unit, up_unit, down_unit = (part_error(part) if pairs else 0.0 for part in expert)
        halves = pairs and expert[2][0].dtype != torch.float32
        wide = x[rows].double()
        unit = 2.0**-24
        # Every product's error is bounded by its terms' sizes, one rounding for each.
        opened, other = wide @ gate.T, wide @ up.T
        opened_error = (wide.abs() @ gate.abs().T) * ((gate.shape[1] + 12) * unit + gate_unit)
        other_error = (wide.abs() @ up.abs().T) * ((up.shape[1] + 12) * unit + up_unit)
        if limit is not None:
            opened, other = opened.clamp(max=limit), other.clamp(-limit, limit)
        silu = torch.nn.functional.silu(opened)
        inner = silu * other
        # silu's slope is at most 1.1 in size, and its value is right to 3 units.
        silu_error = 1.1 * opened_error + silu.abs() * 6 * unit
        inner_error = silu_error * (other.abs() + other_error) + silu.abs() * other_error
        inner_error = inner_error + inner.abs() * unit
        if halves:
            inner_error = inner_error + (inner.abs() + inner_error) * 2.0**-8
        result = inner @ down.T
        error = (inner.abs() + inner_error) @ down.abs().T
        error = error * ((down.shape[1] + 12) * unit + down_unit)
        error = error + inner_error @ down.abs().T
        total[rows] += result * weight
        bound[rows] += (error + result.abs() * unit) * weight.abs()
        size[rows] += (result.abs() + error) * weight.abs()

    for index in range(len(routed) if indices is not None else 0):
        rows, places = (indices == index).nonzero(as_tuple=True)
        add(rows, routed[index], weights[rows, places].double().unsqueeze(1))
    if indices is not None:
        zero = torch.where(indices >= len(routed), weights, 0.0).double().sum(1, keepdim=True)
        total += x.double() * zero
        size += x.double().abs() * zero
    if shared is not None:
        add(slice(None), shared, torch.ones(1, 1, dtype=torch.float64))
    # A term meets its product with the weight and at most four additions, each half a unit of what
    # has been added so far.
    return total, bound + 5 * 2.0**-24 * size * 1.01


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shared", [0, 224])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("limit", [None, 0.25])
def test_the_sum_is_right_to_rounding(kind, shared, dtype, limit, generator):
    routed, common = make(kind, generator, shared=shared)
    held = ops.Experts(routed, common, num_routes=8, limit=limit)
    for tokens in (1, 2, 40):
        x = torch.randn(tokens, 160, generator=generator).to(dtype)
        chosen = choose(tokens, 8, generator)
        total, bound = exact(x, *chosen, routed, common, limit)
        if dtype == torch.bfloat16:
            bound = bound + (total.abs() + bound) * 2.0**-8
        for result in (held(x, *chosen), experts(x, *chosen, routed, common, limit=limit)):
            assert result.dtype == dtype
            assert ((result.double() - total).abs() <= bound).all()


@pytest.mark.parametrize("kind", KINDS)
def test_the_shared_expert_alone_is_a_dense_layer(kind, generator):
    _, common = make(kind, generator)
    x = torch.randn(9, 160, generator=generator)
    total, bound = exact(x, None, None, [], common)
    result = ops.Experts([], common)(x)
    assert ((result.double() - total).abs() <= bound).all()
    assert ((expert_output(x, common).double() - total).abs() <= bound).all()


@pytest.mark.parametrize("kind", ["fp8", "mxfp4", "bf16", "f32"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_token_has_the_same_bits_alone_in_every_batch_and_with_any_threads(
    kind, dtype, generator, threads
):
    routed, common = make(kind, generator)
    held = ops.Experts(routed, common, num_routes=7)
    x = torch.randn(120, 160, generator=generator).to(dtype)
    weights, indices = choose(120, 7, generator)
    threads(1)
    alone = torch.cat(
        [held(x[i : i + 1], weights[i : i + 1], indices[i : i + 1]) for i in range(120)]
    )
    for count in (1, 2, 5):
        threads(count)
        assert_same_bits(held(x, weights, indices), alone)
        for size in range(2, 34):
            here = slice(size, 2 * size)
            assert_same_bits(held(x[here], weights[here], indices[here]), alone[here])


def test_outputs_are_added_in_ascending_order_whatever_the_order_of_the_choices(generator):
    routed, common = make("fp8", generator)
    held = ops.Experts(routed, common)
    x = torch.randn(5, 160, generator=generator)
    weights, indices = choose(5, 6, generator)
    turned = held(x, weights.flip(1), indices.flip(1))
    assert_same_bits(held(x, weights, indices), turned)
    one = [ops.Experts([routed[index]]) for index in range(6)]
    last = ops.Experts([], common)(x)
    for token in range(5):
        row, total = x[token : token + 1], torch.zeros(1, 160)
        for place in indices[token].argsort():
            alone = one[int(indices[token, place])](
                row, torch.ones(1, 1), torch.zeros(1, 1, dtype=torch.int32)
            )
            total = total + weights[token, place] * alone
        assert_same_bits(
            held(row, weights[token : token + 1], indices[token : token + 1]), total + last[token]
        )


def test_nan_stays_with_its_token_and_expert(generator):
    routed, common = make("fp8", generator)
    routed[2][1][0].view(torch.uint8)[5, 7] = 0x7F
    held = ops.Experts(routed, common)
    x = torch.randn(30, 160, generator=generator)
    x[4, 3] = float("nan")
    weights, indices = choose(30, 6, generator)
    weights[9, 0] = float("nan")
    bad = (indices == 2).any(1)
    bad[[4, 9]] = True
    result = held(x, weights, indices)
    assert (result.isnan().any(1) == bad).all()
    assert not bad.all()


def test_weights_are_read_at_every_call_and_kept_in_memory(generator):
    routed, common = make("f32", generator)
    held = ops.Experts(routed, common)
    x = torch.randn(3, 160, generator=generator)
    weights, indices = choose(3, 6, generator)
    before = held(x, weights, indices)
    common[2][0].mul_(2.0)
    after = held(x, weights, indices)
    assert not torch.equal(before, after)
    del routed, common
    torch.randn(1 << 20)
    assert_same_bits(held(x, weights, indices), after)


def test_no_tokens_give_no_rows(generator):
    routed, common = make("fp8", generator)
    none = torch.zeros(0, 3)
    assert ops.Experts(routed, common)(torch.zeros(0, 160), none, none.int()).shape == (0, 160)


def test_calls_that_do_not_fit_are_refused(generator):
    routed, common = make("f32", generator)
    held = ops.Experts(routed, common)
    x = torch.randn(2, 160, generator=generator)
    weights, indices = choose(2, 6, generator)
    with pytest.raises(ValueError, match=r"expert is 6; it must lie in 0\.\.5"):
        held(x, weights, torch.full((2, 3), 6, dtype=torch.int32))
    with pytest.raises(ValueError, match=r"expected shape \[2, 160\], got \[2, 159\]"):
        held(x[:, 1:], weights, indices)
    with pytest.raises(ValueError, match=r"weights has shape \[2, 2\]; it must be \[2, 3\]"):
        held(x, weights[:, 1:], indices)
    with pytest.raises(ValueError, match="belong together"):
        held(x, weights)
    with pytest.raises(TypeError, match=r"indices is torch\.int64"):
        held(x, weights, indices.long())
    with pytest.raises(ValueError, match="there must be at least one expert"):
        ops.Experts([])
    with pytest.raises(ValueError, match="up must be as gate, down its transpose"):
        ops.Experts([[routed[0][0], routed[0][1], routed[0][1]]])
    with pytest.raises(ValueError, match=r"num_routes is 2; it must be at least the 6 experts"):
        ops.Experts(routed, num_routes=2)
    with pytest.raises(TypeError, match="float16"):
        ops.Experts([], [(part.half(), None) for part, _ in common])
    with pytest.raises(ValueError, match="contiguous"):
        ops.Experts([], [(part.T.contiguous().T, None) for part, _ in common])
