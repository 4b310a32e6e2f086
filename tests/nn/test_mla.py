"""Latent attention: its two forms, and what it reads and writes."""

import pytest
import torch

from abyssal.nn import MLA, Batch, RotaryEmbedding, Span
from abyssal.reference.attention import mla_absorbed, mla_expanded

SIZES = {"kv_lora_rank": 32, "nope_dim": 16, "rope_dim": 8, "v_dim": 24, "scale": 0.2}
WIDTH = 40


def make_attention(generator, q_lora_rank=20, **changes):
    attention = MLA(48, 3, q_lora_rank=q_lora_rank, **{**SIZES, **changes})
    for weight in attention.parameters():
        if weight.dim() == 2:
            torch.nn.init.normal_(weight, std=weight.shape[1] ** -0.5, generator=generator)
    return attention.requires_grad_(False)


def run(attention, x, prompt_tokens, cuts=(), page_size=16, cache=None):
    """Run one sequence in the given pieces over shuffled pages."""
    tokens = len(x)
    pages = -(-tokens // page_size)
    table = torch.randperm(pages, generator=torch.Generator().manual_seed(1)).int()
    cache = torch.full((pages * page_size, WIDTH), float("nan")) if cache is None else cache
    cos, sin = RotaryEmbedding(8, 100.0)(torch.arange(tokens))
    outputs = []
    for start, end in zip((0, *cuts), (*cuts, tokens), strict=True):
        positions = torch.arange(start, end)
        slots = table[positions // page_size].long() * page_size + positions % page_size
        span = Span(0, end - start, start, prompt_tokens, table)
        batch = Batch(positions, positions, slots, (span,), page_size)
        outputs.append(attention(x[start:end], cos[start:end], sin[start:end], batch, cache))
    return torch.cat(outputs)


@pytest.mark.parametrize("first", [0, 5, 700])
@pytest.mark.parametrize("count", [1, 40])
def test_the_two_forms_compute_the_same_function(first, count, generator):
    query_nope = torch.randn(count, 3, 16, generator=generator)
    query_rope = torch.randn(count, 3, 8, generator=generator)
    latents = torch.randn(first + count, WIDTH, generator=generator)
    up = torch.randn(3, 40, 32, generator=generator) / 32**0.5
    arguments = (query_nope, query_rope, latents, up, 0.2, first)
    absorbed, expanded = mla_absorbed(*arguments), mla_expanded(*arguments)
    assert absorbed.shape == (count, 3, 24)
    exact = mla_expanded(*(each.double() if torch.is_tensor(each) else each for each in arguments))
    # Sums of at most 700 f32 terms of size about 1 under weights that add to 1.
    torch.testing.assert_close(absorbed, expanded, rtol=0, atol=1e-5)
    torch.testing.assert_close(expanded, exact.float(), rtol=0, atol=1e-5)


@pytest.mark.parametrize("q_lora_rank", [None, 20])
@pytest.mark.parametrize("tokens, prompt", [(30, 30), (600, 520), (530, 1)])
def test_pieces_and_page_order_do_not_change_the_result(q_lora_rank, tokens, prompt, generator):
    attention = make_attention(generator, q_lora_rank)
    x = torch.randn(tokens, 48, generator=generator)
    whole = run(attention, x, prompt)
    cut = run(attention, x, prompt, cuts=(1, 17, tokens - 3), page_size=64)
    assert whole.isfinite().all()
    torch.testing.assert_close(cut, whole, rtol=0, atol=1e-5)
    cos, sin = RotaryEmbedding(8, 100.0)(torch.arange(tokens))
    torch.testing.assert_close(
        attention.forward_sequence(x[None], cos, sin)[0], whole, rtol=0, atol=1e-5
    )


def test_a_token_never_sees_a_later_one(generator):
    attention = make_attention(generator)
    x = torch.randn(300, 48, generator=generator)
    before = run(attention, x, 300)
    x[299] = 100.0
    assert torch.equal(run(attention, x, 300)[:299], before[:299])


def test_sequences_of_one_step_do_not_see_each_other(generator):
    attention = make_attention(generator)
    x = torch.randn(20, 48, generator=generator)
    alone = [run(attention, x[:12], 12), run(attention, x[12:], 8)]
    positions = torch.cat((torch.arange(12), torch.arange(8)))
    cos, sin = RotaryEmbedding(8, 100.0)(positions)
    table = torch.tensor([1], dtype=torch.int32), torch.tensor([0], dtype=torch.int32)
    slots = torch.cat((torch.arange(16, 28), torch.arange(8)))
    spans = Span(0, 12, 0, 12, table[0]), Span(12, 8, 0, 8, table[1])
    cache = torch.full((32, WIDTH), float("nan"))
    together = attention(x, cos, sin, Batch(positions, positions, slots, spans, 16), cache)
    torch.testing.assert_close(together, torch.cat(alone), rtol=0, atol=1e-5)
    unused = [row for row in range(32) if row not in slots.tolist()]
    assert cache[unused].isnan().all()
    assert cache[slots].isfinite().all()


def test_attention_reads_what_the_cache_holds_in_the_step_that_writes_it(generator):
    attention = make_attention(generator)
    x = torch.randn(40, 48, generator=generator)
    rounded = torch.zeros(48, WIDTH, dtype=torch.bfloat16)
    whole = run(attention, x, 40, cache=rounded)
    pieces = run(attention, x, 40, cuts=(7, 30), cache=torch.zeros_like(rounded))
    torch.testing.assert_close(pieces, whole, rtol=0, atol=1e-5)
    assert (whole - run(attention, x, 40)).abs().max() > 1e-4


def test_the_latent_norms_have_their_own_epsilon():
    attention = make_attention(torch.Generator())
    assert attention.q_norm.eps == attention.kv_norm.eps == 1e-6
