"""The plain forward pass, against transformers on the same files."""

import pytest
import torch

from abyssal.cli.measure import plain_weights
from abyssal.models import load_model
from abyssal.reference.model import forward
from abyssal.testing.checkpoints import write_checkpoint
from abyssal.testing.families import FAMILIES

transformers = pytest.importorskip("transformers")


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_logits_are_those_of_transformers(family, tmp_path):
    write_checkpoint(tmp_path, family=family, num_hidden_layers=2)
    model, config = load_model(tmp_path, dtype="float32")
    ids = torch.randint(config.vocab_size, (70,), generator=torch.Generator().manual_seed(0))
    # transformers has no name of its own for Kimi K2, which is a V3 with other numbers.
    name = config.model_type if config.model_type != "kimi_k2" else "deepseek_v3"
    write_checkpoint(tmp_path, family=family, num_hidden_layers=2, model_type=name)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    with torch.inference_mode():
        expected = theirs(ids.unsqueeze(0)).logits[0]
        found = forward(plain_weights(model), config, ids)
    # Two f32 computations in different orders: the bound that the models themselves are held to.
    assert (found - expected).abs().max() <= 1e-4 * max(1.0, float(expected.abs().max()))


@pytest.mark.parametrize("packing", ["fp8", "ue8m0", "mxfp4"])
def test_packed_weights_are_compared_by_their_values(packing, tmp_path):
    write_checkpoint(tmp_path, packing=packing)
    model, _ = load_model(tmp_path, dtype="float32")
    weights = plain_weights(model)
    assert all(tensor.dtype == torch.float32 for tensor in weights.values())
    assert not [name for name in weights if name.endswith("scales")]
    layer = model.layers[0].attention.output
    assert torch.equal(
        weights["layers.0.attention.output.weight"], layer.dequantized(torch.float32)
    )


def test_an_earlier_token_does_not_see_a_later_one(tmp_path):
    write_checkpoint(tmp_path)
    model, config = load_model(tmp_path, dtype="float32")
    weights = plain_weights(model)
    ids = torch.arange(12)
    changed = ids.clone()
    changed[-1] = 99
    with torch.inference_mode():
        before, after = forward(weights, config, ids), forward(weights, config, changed)
    # Shapes are equal, so the arithmetic of the first eleven rows is, too; only sums over rows of
    # one matrix product could differ, by rounding.
    torch.testing.assert_close(before[:-1], after[:-1], rtol=0, atol=1e-5)
    assert (before[-1] - after[-1]).abs().max() > 1e-2


def test_no_tokens_are_refused(tmp_path):
    write_checkpoint(tmp_path)
    model, config = load_model(tmp_path, dtype="float32")
    with pytest.raises(ValueError, match="at least one"):
        forward(plain_weights(model), config, torch.empty(0, dtype=torch.int64))
