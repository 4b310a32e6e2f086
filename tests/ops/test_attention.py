"""Latent attention equals the reference within rounding, and a token's bits depend on itself."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from abyssal import ops, reference
from abyssal.testing.numeric import assert_same_bits

from .attention_case import DTYPES, PACKINGS, SIZES, Layer


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("packing", PACKINGS)
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_results_equal_the_references_within_rounding(sizes, packing, dtype, generator):
    layer = Layer(sizes, 70, generator, packing, dtype)
    for start, end, expanded in [(0, 70, 0), (0, 70, 70), (0, 70, 40), (69, 70, 0), (50, 60, 55)]:
        found = layer.attend(ops, start, end, expanded)
        expected = layer.attend(reference, start, end, expanded)
        assert found.dtype == dtype
        absolute, relative = layer.bound(dtype)
        torch.testing.assert_close(found, expected, rtol=relative, atol=2 * absolute)


@given(
    st.integers(1, 5),
    st.integers(1, 70),
    st.integers(1, 9),
    st.integers(1, 20),
    st.integers(1, 20),
    st.integers(1, 90),
    st.integers(0, 90),
    st.randoms(use_true_random=False),
)
def test_random_sizes(heads, kv_lora, half, nope, v, tokens, expanded, random):
    generator = torch.Generator().manual_seed(random.getrandbits(32))
    layer = Layer((heads, kv_lora, 2 * half, nope, v), tokens, generator)
    absolute, _ = layer.bound(torch.float32)
    torch.testing.assert_close(
        layer.attend(ops, 0, tokens, expanded),
        layer.attend(reference, 0, tokens, expanded),
        rtol=0,
        atol=2 * absolute,
    )


@pytest.mark.parametrize("query_dtype", DTYPES, ids=str)
@pytest.mark.parametrize("cache_dtype", DTYPES, ids=str)
def test_the_cache_may_have_another_type(query_dtype, cache_dtype, generator):
    layer = Layer(SIZES[2], 60, generator, "bfloat16", query_dtype)
    found = layer.attend(ops, 10, 60, 30, cache_dtype)
    expected = layer.attend(reference, 10, 60, 30, cache_dtype)
    absolute, relative = layer.bound(query_dtype)
    torch.testing.assert_close(found, expected, rtol=relative, atol=2 * absolute)


@pytest.mark.parametrize("cut", [1, 7, 64, 512])
def test_the_cut_of_a_prompt_and_the_threads_do_not_change_a_bit(cut, generator):
    layer = Layer(SIZES[2], 560, generator, "fp8", torch.bfloat16)
    whole = layer.attend(ops, 0, 560, 512)
    threads = torch.get_num_threads()
    starts = range(0, 560, cut) if cut > 1 else [0, 1, 47, 48, 100, 255, 256, 511, 512, 559]
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            for start in starts:
                end = min(start + cut, 560)
                assert_same_bits(layer.attend(ops, start, end, 512), whole[start:end])
    finally:
        torch.set_num_threads(threads)


def test_what_a_compiled_caller_gets_is_the_same(generator):
    layer = Layer(SIZES[2], 20, generator)
    compiled = torch.compile(lambda: layer.attend(ops, 0, 20), backend="eager", fullgraph=False)
    assert_same_bits(compiled(), layer.attend(ops, 0, 20))


def test_a_gradient_is_the_references(generator):
    layer = Layer(SIZES[2], 20, generator)
    layer.query.requires_grad_()
    layer.attend(ops, 0, 20, 10).square().sum().backward()
    found, layer.query.grad = layer.query.grad, None
    layer.attend(reference, 0, 20, 10).square().sum().backward()
    assert_same_bits(found, layer.query.grad)


@pytest.mark.parametrize("module", [ops, reference], ids=["ops", "reference"])
class TestCorners:
    def test_zero_tokens_give_an_empty_result(self, module, generator):
        layer = Layer(SIZES[2], 4, generator)
        result = module.mla_attention(
            layer.query[:0],
            layer.cos[:0],
            layer.sin[:0],
            layer.cache(0),
            torch.empty(0, 4, dtype=torch.int32),
            torch.empty(0, 0, dtype=torch.int32),
            layer.up,
            page_size=16,
            scale=1.0,
        )
        assert result.shape == (0, 3, 24)

    @pytest.mark.parametrize(
        ("change", "error", "message"),
        [
            (dict(query=torch.zeros(4, 24)), ValueError, "query has 2 dimensions; it must have 3"),
            (dict(query=torch.zeros(4, 3, 24).double()), TypeError, "query is torch.float64"),
            (dict(query=torch.zeros(4, 3, 8)), ValueError, "width of a query is 8"),
            (dict(cos=torch.zeros(4, 0)), ValueError, "pairs of the rotary part is 0"),
            (dict(sin=torch.zeros(4, 3)), ValueError, r"sin has shape \[4, 3\]"),
            (dict(cache=torch.zeros(17, 40)), ValueError, "cache has 17 rows; it must have whole"),
            (dict(cache=torch.zeros(16, 39)), ValueError, r"cache has shape \[16, 39\]; it must"),
            (dict(spans=torch.tensor([[0, 4, 0, 0]])), TypeError, "spans is torch.int64"),
            (dict(spans=torch.zeros(1, 3).int()), ValueError, r"spans has shape \[1, 3\]"),
            (dict(up=torch.zeros(121, 32)), ValueError, "up has 121 rows; it must have more than"),
            (dict(up=torch.zeros(120, 16).byte()), ValueError, "up is torch.uint8; a packed"),
            (dict(page_size=0), ValueError, r"page_size is 0; it must lie in 1\.\."),
            (dict(block_tables=torch.tensor([[1]]).int()), ValueError, "page 0 of span 0 is 1"),
            (
                dict(block_tables=torch.tensor([[]]).int()),
                ValueError,
                "block table of span 0 has 0",
            ),
            (dict(spans=torch.tensor([[0, 3, 0, 0]]).int()), ValueError, "spans cover 3 tokens"),
            (dict(spans=torch.tensor([[0, 5, 0, 0]]).int()), ValueError, "length of span 0 is 5"),
            (dict(spans=torch.tensor([[0, 4, -1, 0]]).int()), ValueError, "position of span 0 is"),
            (dict(spans=torch.tensor([[0, 4, 0, 5]]).int()), ValueError, "expanded tokens of span"),
        ],
    )
    def test_a_bad_call_says_what_was_wrong(self, module, change, error, message):
        kwargs = dict(
            query=torch.zeros(4, 3, 24),
            cos=torch.zeros(4, 4),
            sin=torch.zeros(4, 4),
            cache=torch.zeros(16, 40),
            spans=torch.tensor([[0, 4, 0, 0]], dtype=torch.int32),
            block_tables=torch.zeros(1, 1, dtype=torch.int32),
            up=torch.zeros(120, 32),
            page_size=16,
            scale=1.0,
        )
        module.mla_attention(**kwargs)
        with pytest.raises(error, match=message):
            module.mla_attention(**(kwargs | change))


@pytest.mark.parametrize("cache_dtype", DTYPES, ids=str)
@pytest.mark.parametrize("norm_dtype", DTYPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_written_rows_equal_the_references(dtype, norm_dtype, cache_dtype, generator):
    tokens, kv_lora, rope = 100, 512, 64
    values = torch.randn(tokens, kv_lora + rope, generator=generator).to(dtype)
    norm = (1 + torch.randn(kv_lora, generator=generator) * 0.1).to(norm_dtype)
    angles = torch.randn(tokens, rope // 2, generator=generator)
    slots = torch.randperm(150, generator=generator)[:tokens]
    found, expected = (torch.full((150, kv_lora + rope), 9.0).to(cache_dtype) for _ in range(2))
    arguments = (values, norm, angles.cos(), angles.sin())
    ops.write_latents(*arguments, found, slots, eps=1e-6)
    reference.write_latents(*arguments, expected, slots, eps=1e-6)
    # The sum of squares is added up in another order: the factor may differ by some units, and a
    # rounding to bfloat16 fall to the other side.
    unit = 2.0**-7 if torch.bfloat16 in (dtype, cache_dtype) else 2.0**-20
    torch.testing.assert_close(found, expected, rtol=unit, atol=1e-7)
    assert_same_bits(found[:, kv_lora:].contiguous(), expected[:, kv_lora:].contiguous())
    untouched = torch.ones(150, dtype=torch.bool)
    untouched[slots] = False
    assert (found[untouched] == 9).all()
    alone = torch.full_like(found, 9.0)
    for token in range(tokens):
        here = slice(token, token + 1)
        cos, sin = angles[here].cos(), angles[here].sin()
        ops.write_latents(values[here], norm, cos, sin, alone, slots[here], eps=1e-6)
    assert_same_bits(alone, found)


def test_a_slot_outside_the_cache_is_refused_and_nothing_is_written():
    cache = torch.zeros(8, 40)
    arguments = (torch.ones(2, 40), torch.ones(32), torch.ones(2, 4), torch.zeros(2, 4), cache)
    for slot in (8, -1):
        with pytest.raises(ValueError, match=f"slot of token 1 is {slot}; it must lie in 0..8"):
            ops.write_latents(*arguments, torch.tensor([0, slot]), eps=1e-6)
    with pytest.raises(ValueError, match=r"norm has shape \[31\]"):
        ops.write_latents(
            arguments[0], torch.ones(31), *arguments[2:], torch.zeros(2).long(), eps=0
        )
    assert not cache.any()
