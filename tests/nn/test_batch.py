"""Which form of attention a token uses."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from abyssal.nn import SEGMENT, Span

TABLE = torch.zeros(1, dtype=torch.int32)


@given(st.integers(1, 2000), st.lists(st.integers(1, 700), min_size=1, max_size=8))
def test_the_form_belongs_to_the_token_however_the_prompt_is_cut(prompt, lengths):
    position, forms = 0, []
    for length in lengths:
        span = Span(0, length, position, prompt, TABLE)
        count = span.expanded_tokens
        assert 0 <= count <= length
        forms += [True] * count + [False] * (length - count)
        position += length
    boundary = prompt // SEGMENT * SEGMENT
    assert forms == [each < boundary for each in range(position)]


def test_short_prompts_and_generated_tokens_use_the_absorbed_form():
    assert Span(0, SEGMENT - 1, 0, SEGMENT - 1, TABLE).expanded_tokens == 0
    assert Span(0, SEGMENT, 0, SEGMENT, TABLE).expanded_tokens == SEGMENT
    assert Span(0, 1, 3 * SEGMENT, 3 * SEGMENT, TABLE).expanded_tokens == 0
