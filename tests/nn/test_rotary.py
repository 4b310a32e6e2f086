"""Rotary frequencies and rotation."""

import math

import pytest
import torch
from transformers import DeepseekV3Config
from transformers.models.deepseek_v3.modeling_deepseek_v3 import (
    DeepseekV3RotaryEmbedding,
    apply_rotary_pos_emb_interleave,
)

from abyssal.nn import (
    RotaryEmbedding,
    YarnScaling,
    apply_rotary,
    inverse_frequencies,
    yarn_mscale,
)


@pytest.mark.parametrize("dim, theta", [(2, 100.0), (8, 50000.0), (64, 10000.0), (66, 1e6)])
@pytest.mark.parametrize(
    "betas, truncate", [(None, True), ((32, 1), True), ((32, 1), False), ((1, 1), True)]
)
def test_frequencies_are_bit_equal_to_transformers(dim, theta, betas, truncate):
    settings = {"rope_theta": theta, "rope_type": "default"}
    yarn = None
    if betas:
        settings = {
            "rope_theta": theta,
            "rope_type": "yarn",
            "factor": 40.0,
            "original_max_position_embeddings": 4096,
            "beta_fast": betas[0],
            "beta_slow": betas[1],
            "truncate": truncate,
        }
        yarn = YarnScaling(40.0, 4096, *betas, yarn_mscale(40.0), truncate)
    config = DeepseekV3Config(
        qk_rope_head_dim=dim, rope_parameters=settings, max_position_embeddings=163840
    )
    peer = DeepseekV3RotaryEmbedding(config)
    assert torch.equal(inverse_frequencies(dim, theta, yarn), peer.inv_freq)
    positions = torch.tensor([0, 1, 17, 4095, 163839])
    cos, sin = RotaryEmbedding(dim, theta, yarn)(positions)
    peer_cos, peer_sin = peer(torch.zeros(1), positions[None])
    assert torch.equal(cos, peer_cos[0, :, : dim // 2])
    assert torch.equal(sin, peer_sin[0, :, : dim // 2])


def test_rotation_turns_interleaved_pairs_and_keeps_their_order(generator):
    x = torch.randn(5, 3, 8, generator=generator)
    cos, sin = RotaryEmbedding(8, 100.0)(torch.arange(5))
    turned = apply_rotary(x, cos[:, None], sin[:, None])
    pairs = torch.view_as_complex(x.unflatten(-1, (4, 2)))
    want = torch.view_as_real(pairs * torch.complex(cos, sin)[:, None]).flatten(-2)
    # One product and one sum of f32 on each side.
    torch.testing.assert_close(turned, want, rtol=0, atol=1e-6)
    both = torch.cat((cos, cos), -1)[:, None], torch.cat((sin, sin), -1)[:, None]
    halves, _ = apply_rotary_pos_emb_interleave(x[None], x[None], *both, unsqueeze_dim=0)
    reordered = torch.cat((turned[..., 0::2], turned[..., 1::2]), -1)
    torch.testing.assert_close(reordered, halves[0], rtol=0, atol=1e-6)


def test_rotation_depends_on_the_distance_alone(generator):
    query, key = torch.randn(2, 16, generator=generator)
    tables = RotaryEmbedding(16, 10000.0)

    def product(first, second):
        cos, sin = tables(torch.tensor([first, second]))
        return apply_rotary(query, cos[0], sin[0]) @ apply_rotary(key, cos[1], sin[1])

    # Angles up to 1,000 radians in f32 carry errors of about 6e-5 radians.
    torch.testing.assert_close(product(7, 3), product(1004, 1000), rtol=0, atol=1e-3)


def test_rotation_leaves_its_input_alone_and_keeps_its_type(generator):
    x = torch.randn(4, 8, generator=generator).bfloat16()
    before = x.clone()
    cos, sin = RotaryEmbedding(8, 100.0)(torch.arange(4))
    assert apply_rotary(x, cos, sin).dtype == torch.bfloat16
    assert torch.equal(x, before)


def test_the_magnitude_correction_is_one_up_to_a_factor_of_one():
    assert yarn_mscale(1.0) == yarn_mscale(0.5) == 1.0
    assert yarn_mscale(40.0, 0.707) == 0.1 * 0.707 * math.log(40.0) + 1.0
