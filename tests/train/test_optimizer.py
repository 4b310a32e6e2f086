"""Muon and Adam: what a step does, and that lanes share nothing."""

import pytest
import torch

from abyssal.train.model import TrainingModel
from abyssal.train.optimizer import Optimizer, orthogonalize


@pytest.mark.parametrize("shape", [(3, 16, 40), (2, 40, 16), (1, 24, 24)])
def test_orthogonalizing_keeps_the_directions_and_evens_the_singular_values(generator, shape):
    matrices = torch.randn(shape, generator=generator)
    left, _, right = torch.linalg.svd(matrices, full_matrices=False)
    result = orthogonalize(matrices)
    inner = left.mT @ result @ right.mT
    values = inner.diagonal(dim1=-2, dim2=-1)
    # The quintic step holds singular values in about [0.68, 1.14]; small ones may come from below.
    assert values.max() < 1.25
    assert values.min() > 0.3
    off = inner - torch.diag_embed(values)
    assert off.abs().max() < 1e-3


def test_each_expert_and_each_half_of_gate_up_is_orthogonalized_alone(
    generator, tiny, make_settings
):
    model = TrainingModel(tiny)
    optimizer = Optimizer(model, make_settings(weight_decay=0.0, momentum=0.0), lanes=1)
    part = model.layers[1].feed_forward
    before = part.gate_up.detach().clone()
    gradients = {
        name: torch.randn(value.shape, generator=generator)
        for name, value in model.named_parameters()
    }
    optimizer.step_matrices(0, gradients, 1.0)
    gradient = gradients["layers.1.feed_forward.gate_up"][5, 16:]
    # 0.2 sqrt(32) of the longer side, at the settings' rate of 0.02.
    wanted = before[5, 16:] - 0.02 * 0.2 * 32**0.5 * orthogonalize(gradient[None])[0]
    torch.testing.assert_close(part.gate_up.detach()[5, 16:], wanted, rtol=1e-4, atol=1e-6)


def test_every_parameter_belongs_to_one_lane_or_to_adam(tiny, make_settings):
    model = TrainingModel(tiny)
    optimizer = Optimizer(model, make_settings(), lanes=2)
    names = [*optimizer.matrices[0], *optimizer.matrices[1], *optimizer.others]
    assert sorted(names) == sorted(name for name, _ in model.named_parameters())
    assert all(optimizer.matrices)
    assert "embed" in optimizer.others
    assert "layers.1.feed_forward.router" in optimizer.others


def test_adam_steps_by_its_rate_whatever_the_size_of_the_gradient(tiny, make_settings):
    model = TrainingModel(tiny)
    optimizer = Optimizer(model, make_settings(weight_decay=0.0), lanes=2)
    before = model.embed.detach().clone()
    gradients = {name: torch.full_like(each, 1e-3) for name, each in model.named_parameters()}
    optimizer.step_others(gradients, 0.5, 1)
    torch.testing.assert_close(model.embed.detach(), before - 0.5e-2, rtol=0, atol=1e-6)
