"""The instructions of products and attention: named, chosen, and close to one another."""

import pytest
import torch

import abyssal
from abyssal import reference
from abyssal.models import load_model
from abyssal.testing.checkpoints import write_checkpoint
from abyssal.testing.steps import Sequence

TIERS = abyssal.kernel_tiers()


@pytest.fixture(autouse=True)
def restored():
    """Put back the tier of the process."""
    before = abyssal.kernel_tier()
    yield
    abyssal.set_kernel_tier(before)


def test_the_fastest_tier_is_taken_unless_one_is_named():
    assert TIERS[0] == "scalar"
    assert abyssal.kernel_tier() == TIERS[-1]
    for name in TIERS:
        abyssal.set_kernel_tier(name)
        assert abyssal.kernel_tier() == name


def test_a_tier_that_the_machine_lacks_is_refused_and_changes_nothing():
    for name in ("AVX2", "", "avx10"):
        with pytest.raises(ValueError, match=f'the tier is "{name}"; this machine has scalar'):
            abyssal.set_kernel_tier(name)
    assert abyssal.kernel_tier() == TIERS[-1]


@pytest.mark.parametrize("packing", ["none", "fp8", "mxfp4"])
def test_every_tier_computes_the_same_model(packing, tmp_path):
    write_checkpoint(tmp_path, packing=packing, torch_dtype="float32", num_hidden_layers=2)
    model, _ = load_model(tmp_path)
    ids = [(7 * place) % 128 for place in range(270)]
    logits = {}
    for name in TIERS:
        abyssal.set_kernel_tier(name)
        sequence = Sequence(model, 265, 270)
        logits[name] = torch.cat((sequence.step(ids[:265]), sequence.step(ids[265:])))
    for found in logits.values():
        # Sums in another order: some units in the last place of logits up to 8.
        torch.testing.assert_close(found, logits["scalar"], rtol=0, atol=2e-5)
    # Lanes of another width add up in another order, so the choice had an effect.
    if "avx512" in TIERS:
        assert not torch.equal(logits["avx512"], logits["scalar"])
    if "avx512-bf16" in TIERS:
        assert torch.equal(logits["avx512-bf16"], logits["avx512"])


def test_a_product_follows_the_tier(generator):
    x = torch.randn(3, 256, generator=generator).to(torch.bfloat16)
    codes, scales = abyssal.ops.quantize_fp8(torch.randn(64, 256, generator=generator), (128, 128))
    expected = reference.fp8_linear(x, codes, scales)
    for name in TIERS:
        abyssal.set_kernel_tier(name)
        found = abyssal.ops.fp8_linear(x, codes, scales)
        # Weights of pairs are rounded to bfloat16 (2^-9), results everywhere.
        torch.testing.assert_close(found, expected, rtol=2.0**-7, atol=0.2)
