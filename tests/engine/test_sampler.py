"""Drawing tokens: the filters against their definitions, and what a draw depends on."""

from __future__ import annotations

import math
from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from abyssal import SamplingParams
from abyssal.engine.sampler import LOOKS, likeliest, logprobs, sample, uniform

ROWS = st.lists(
    st.one_of(st.integers(-4, 4).map(float), st.floats(-20, 20, width=32)), min_size=1, max_size=40
)


PINNED = [0.34907487805665127, 0.4984624735867965]


def kept_by_definition(row: list[float], params: SamplingParams) -> dict[int, float]:
    """Token ids that may be drawn, with their probabilities: temperature, min_p, top_k, top_p."""
    scores = [value / params.temperature for value in row]
    best = max(scores)
    weights = {token: math.exp(score - best) for token, score in enumerate(scores)}
    weights = {token: each for token, each in weights.items() if each >= params.min_p}
    order = sorted(weights, key=lambda token: (-scores[token], token))
    if params.top_k > 0:
        order = order[: params.top_k]
    total = math.fsum(weights[token] for token in order)
    kept, mass = [], 0.0
    for token in order:
        if kept and mass >= params.top_p * total:
            break
        kept.append(token)
        mass += weights[token]
    return {token: weights[token] / mass for token in kept}


@given(
    ROWS,
    st.floats(0.1, 3),
    st.one_of(st.just(1.0), st.floats(0.01, 1)),
    st.integers(-1, 45),
    st.one_of(st.just(0.0), st.floats(0, 1)),
    st.integers(0, 2**63 - 1),
)
def test_only_tokens_that_the_filters_keep_are_drawn(row, heat, top_p, top_k, min_p, seed) -> None:
    params = SamplingParams(temperature=heat, top_p=top_p, top_k=top_k, min_p=min_p)
    # Thresholds are compared with rounded sums: what a hair's breadth decides may fall either way.
    loose = SamplingParams(
        temperature=heat, top_p=min(top_p * (1 + 1e-9), 1), top_k=top_k, min_p=min_p * (1 - 1e-9)
    )
    allowed = kept_by_definition(row, loose)
    for position in range(5):
        token = sample(torch.tensor(row), params, seed=seed, position=position)
        assert token in allowed


@pytest.mark.parametrize(
    "parameters",
    [
        {},
        {"temperature": 0.5},
        {"top_k": 5},
        {"top_p": 0.6},
        {"min_p": 0.2},
        {"temperature": 1.3, "top_k": 12, "top_p": 0.8, "min_p": 0.01},
    ],
    ids=str,
)
def test_tokens_are_drawn_with_their_probabilities(parameters) -> None:
    params = SamplingParams(**parameters)
    row = torch.randn(20, generator=torch.Generator().manual_seed(4)) * 1.5
    expected = kept_by_definition(row.tolist(), params)
    draws = 1500
    drawn = Counter(sample(row, params, seed=11, position=place) for place in range(draws))
    assert set(drawn) <= set(expected)
    # Chi-square over the tokens expected at least 5 times; its mean is the degrees of freedom and
    # its variance twice that, so that 6 deviations are never reached by chance.
    groups = [(drawn[token], draws * share) for token, share in expected.items()]
    groups = [(seen, mean) for seen, mean in groups if mean >= 5]
    statistic = sum((seen - mean) ** 2 / mean for seen, mean in groups)
    assert statistic < len(groups) + 6 * math.sqrt(2 * len(groups)) + 6


@pytest.mark.parametrize("look", LOOKS)
def test_top_p_is_the_same_beyond_each_look(look, generator) -> None:
    # Nearly flat: far more tokens than the look are needed.
    row = torch.randn(4 * look, generator=generator) * 0.01
    params = SamplingParams(top_p=0.9)
    expected = kept_by_definition(row.tolist(), params)
    assert len(expected) > 3 * look
    drawn = {sample(row, params, seed=1, position=place) for place in range(1500)}
    assert drawn <= set(expected)
    # Ids far behind the look are drawn too.
    assert len(drawn) > min(2 * look, 1000)


def test_greedy_takes_the_lowest_of_equal_ids() -> None:
    row = torch.tensor([0.0, 3.0, -1.0, 3.0, 3.0])
    for heat in (0.0, 1e-6):
        assert sample(row, SamplingParams(temperature=heat), seed=5, position=1) == 1
    assert sample(row, SamplingParams(top_k=1), seed=5, position=1) == 1
    zeros = torch.tensor([-0.0, 0.0])
    assert sample(zeros, SamplingParams(temperature=0.0), seed=5, position=1) == 0


@given(ROWS, st.integers(1, 40))
def test_likeliest_is_a_stable_descending_sort(row, count) -> None:
    count = min(count, len(row))
    expected = sorted(range(len(row)), key=lambda token: (-row[token], token))[:count]
    assert likeliest(torch.tensor(row), count).tolist() == expected


def test_a_draw_depends_on_seed_and_position_alone() -> None:
    # Pinned: answers must stay reproducible between releases and machines.
    assert [uniform(0, 0), uniform(7, 3)] == PINNED
    assert uniform(-1, 3) == uniform(2**64 - 1, 3)
    values = [uniform(seed, position) for seed in range(100) for position in range(100)]
    assert len(set(values)) == 10_000
    assert all(0 <= value < 1 for value in values)
    # The mean of 10,000 uniform numbers has a deviation of 0.0029.
    assert abs(sum(values) / 10_000 - 0.5) < 6 * 0.0029
    pairs = [
        (uniform(seed, position) - 0.5) * (uniform(seed + 1, position) - 0.5)
        for seed in range(100)
        for position in range(100)
    ]
    # Products of independent pairs have a mean of 0 and a deviation of 1/12 each.
    assert abs(sum(pairs)) / 10_000 < 6 / 12 / 100


def test_penalties_are_those_of_vllm() -> None:
    row = torch.tensor([2.0, -2.0, 1.0, 0.5, 1.9])
    before = row.clone()
    greedy = {"temperature": 0.0}
    draw = {"seed": 0, "position": 3}
    # 2 / 1.2 = 1.67 falls below 1.9.
    params = SamplingParams(**greedy, repetition_penalty=1.2)
    assert sample(row, params, prompt=[0, 1], answer=[], **draw) == 4
    # 2 - 0.2 falls below 1.9; the prompt does not count.
    params = SamplingParams(**greedy, presence_penalty=0.2)
    assert sample(row, params, prompt=[4], answer=[0, 0], **draw) == 4
    assert sample(row, params, prompt=[0], answer=[], **draw) == 0
    # Twice 0.06.
    params = SamplingParams(**greedy, frequency_penalty=0.06)
    assert sample(row, params, answer=[0], **draw) == 0
    assert sample(row, params, answer=[0, 0], **draw) == 4
    # A negative logit is multiplied.
    params = SamplingParams(**greedy, repetition_penalty=0.01)
    assert sample(torch.tensor([-1.0, -0.5]), params, prompt=[0], **draw) == 0
    assert torch.equal(row, before)


def test_banned_tokens_are_never_drawn() -> None:
    row = torch.tensor([9.0, 8.0, 0.0])
    for heat in (0.0, 1.0):
        params = SamplingParams(temperature=heat)
        drawn = {sample(row, params, seed=1, position=p, banned=[0, 1]) for p in range(50)}
        assert drawn == {2}


@given(ROWS, st.data())
def test_reported_probabilities_and_ranks_fit_the_row(row, data) -> None:
    token = data.draw(st.integers(0, len(row) - 1))
    count = data.draw(st.integers(0, 45))
    report = logprobs(torch.tensor(row), token, count)
    assert next(iter(report)) == token
    assert len(report) in {min(count, len(row)), min(count + 1, len(row))}
    exact = torch.tensor(row, dtype=torch.float64).log_softmax(-1)
    values = torch.tensor(row).log_softmax(-1)
    for each, entry in report.items():
        # f32 rounding of values up to about 44.
        assert entry.logprob == pytest.approx(float(exact[each]), abs=2e-5)
        assert entry.rank == 1 + int((values > values[each]).sum())
