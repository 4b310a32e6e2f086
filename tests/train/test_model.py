"""The training form of the model equals the loaded model and that of transformers."""

import pytest
import torch

from abyssal.models import load_model
from abyssal.train.export import write_model
from abyssal.train.model import TrainingModel


def random_model(generator, tiny, **changes) -> TrainingModel:
    model = TrainingModel({**tiny, **changes})
    with torch.no_grad():
        for name, value in model.named_parameters():
            noise = torch.randn(value.shape, generator=generator)
            value.copy_(1 + 0.2 * noise if value.ndim == 1 else noise * value.shape[-1] ** -0.5)
            if name == "embed":
                value.copy_(noise)
        for _, part in model.routed():
            part.correction_bias.copy_(0.1 * torch.randn(8, generator=generator))
    return model


SHAPES = [
    {},
    {"q_lora_rank": 24, "tie_word_embeddings": False},
    {"first_k_dense_replace": 0, "n_shared_experts": 2, "v_head_dim": 12, "rope_theta": 500.0},
    {"n_group": 1, "topk_group": 1, "norm_topk_prob": False, "routed_scaling_factor": 1.0},
    {"n_routed_experts": 0, "first_k_dense_replace": 2, "num_nextn_predict_layers": 0},
]


@pytest.mark.parametrize("changes", SHAPES)
def test_logits_equal_those_of_transformers_and_of_the_loaded_model(
    generator, tiny, tmp_path, changes
):
    from transformers import AutoModelForCausalLM

    model = random_model(generator, tiny, **changes)
    write_model(model, tmp_path, packing="float32")
    tokens = torch.randint(0, 300, (2, 40), generator=generator)
    with torch.no_grad():
        ours = model.logits(tokens)
        theirs = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)(tokens).logits
        loaded, _ = load_model(tmp_path, dtype="float32")
        served = loaded.logits(loaded.forward_sequence(tokens))
    # The bound that the package keeps against transformers everywhere.
    bound = 1e-4 * max(1.0, float(theirs.abs().max()))
    assert (ours - theirs).abs().max() < bound
    assert (ours - served).abs().max() < bound


def test_the_prediction_layer_equals_that_of_the_loaded_model(generator, tiny, tmp_path):
    model = random_model(generator, tiny)
    write_model(model, tmp_path, packing="float32")
    loaded, _ = load_model(tmp_path, dtype="float32", num_mtp_layers=1)
    tokens = torch.randint(0, 300, (2, 33), generator=generator)
    with torch.no_grad():
        run = model.begin(32)
        hidden = model.hidden(tokens[:, :-1], run)
        embedded = torch.nn.functional.embedding(tokens[:, 1:], model.embed)
        ours = model.prediction(embedded, hidden, run)
        served = loaded.predict_further(loaded.forward_sequence(tokens[:, :-1]), tokens[:, 1:])
    assert (ours - served).abs().max() < 1e-4 * max(1.0, float(served.abs().max()))


def test_an_fp8_checkpoint_holds_every_weight_within_the_rounding_of_its_block(
    generator, tiny, tmp_path
):
    model = random_model(generator, tiny)
    write_model(model, tmp_path)
    loaded, config = load_model(tmp_path, dtype="float32")
    assert config.quantization.method == "fp8"
    for mine, theirs in zip(model.layers, loaded.layers, strict=True):
        exact, packed = mine.attention.o.detach(), theirs.attention.output
        assert packed.packed
        # e4m3 keeps 4 significant bits, and 2^-9 of the scale below its smallest normal number.
        room = exact.abs() / 16 + exact.abs().max() / 448 * 2**-10
        assert ((packed.dequantized(torch.float32) - exact).abs() <= room).all()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"scoring_func": "softmax"}, "training needs 'scoring_func' to be 'sigmoid'"),
        ({"rope_scaling": {"type": "yarn"}}, "training needs 'rope_scaling' to be None"),
        ({"num_nextn_predict_layers": 2}, "num_nextn_predict_layers 2"),
        ({"n_group": 3}, "n_routed_experts 8 must split into n_group 3 groups"),
    ],
)
def test_what_the_trainer_does_not_know_is_refused_by_name(tiny, changes, message):
    with pytest.raises(ValueError, match=message):
        TrainingModel({**tiny, **changes})


def test_a_model_with_values_that_are_not_finite_is_not_written(generator, tiny, tmp_path):
    model = random_model(generator, tiny)
    with torch.no_grad():
        model.layers[1].attention.kv_b[3, 2] = float("inf")
    with pytest.raises(ValueError, match=r"layers\.1\.self_attn\.kv_b_proj\.weight holds values"):
        write_model(model, tmp_path / "out")
    assert not (tmp_path / "out").exists()
