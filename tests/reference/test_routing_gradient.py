"""The analytic gradients of the router scores are the derivatives of the scores."""

import pytest
import torch

from abyssal import reference
from abyssal.testing.generators import plain_logits

EXACT = {
    "softmax": lambda x: x.softmax(dim=1),
    "sigmoid": torch.sigmoid,
    "sqrtsoftplus": lambda x: torch.nn.functional.softplus(x, threshold=1e9).sqrt(),
}


@pytest.mark.parametrize("scoring", EXACT)
def test_gradients_equal_those_of_float64(scoring, generator):
    logits = plain_logits(32, 24, generator)
    direction = torch.randn(32, 24, generator=generator)
    exact = logits.double().requires_grad_()
    (EXACT[scoring](exact) * direction.double()).sum().backward()
    given = logits.requires_grad_()
    (reference.router_scores(given, scoring) * direction).sum().backward()
    # A gradient is a short sum of products of numbers at most 8 in size, each within a few units
    # in the last place: 2e-6 leaves a factor of two.
    assert (given.grad - exact.grad).abs().max() <= 2e-6


@pytest.mark.parametrize("scoring", EXACT)
def test_scores_are_within_a_few_units_in_the_last_place_of_float64(scoring):
    # One logit per row for softmax would always score 1; pairs (x, 0) cover its range.
    x = torch.linspace(-60, 60, 200_001)
    logits = torch.stack([x, torch.zeros_like(x)], dim=1)
    exact = EXACT[scoring](logits.double())
    scores = reference.router_scores(logits, scoring).double()
    exponent = torch.frexp(exact).exponent
    error = ((scores - exact).abs() * torch.exp2(24.0 - exponent.double())).max().item()
    print(f"{scoring}: {error:.2f} units in the last place")
    # exp within 1, its sum and quotient half a unit each; log1p within 2, halved by the root.
    assert error <= 3.0
