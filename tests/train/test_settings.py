"""Settings: read back as written, and refused by name where they make no sense."""

import json

import pytest

from abyssal.train.model import TrainingModel
from abyssal.train.recipe import KING_JAMES, count_parameters, dense_twin, read_settings
from abyssal.train.settings import ARCHITECTURE, Phase, Settings


def test_settings_are_read_back_as_they_were_written(make_settings):
    settings = make_settings()
    assert Settings.from_dict(json.loads(settings.to_json())) == settings


def test_a_sequence_length_belongs_to_its_phase(make_settings):
    settings = make_settings(steps=10, phases=(Phase(0.3, 16), Phase(1.0, 32)))
    assert [settings.length(step) for step in range(10)] == [16] * 3 + [32] * 7


def test_the_rates_rise_and_then_fall_to_zero(make_settings):
    settings = make_settings(steps=100, warmup=10)
    rates = [settings.rate(step) for step in range(100)]
    assert max(rates) == rates[9]
    assert rates[:10] == sorted(rates[:10])
    assert rates[9:] == sorted(rates[9:], reverse=True)
    assert 0 < rates[-1] <= 0.011
    assert settings.dropped(0) == 0
    assert settings.dropped(50) == settings.dropped(99) == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": 0}, "steps must be at least 1, got 0"),
        ({"batch_tokens": 100}, "batch_tokens 100 must be a multiple of microbatch_tokens 64"),
        ({"phases": (Phase(0.5, 16),)}, "last phase must last until 1.0"),
        ({"phases": (Phase(1.0, 48),)}, "must divide microbatch_tokens 64.*got 48"),
        ({"phases": (Phase(1.0, 128),), "microbatch_tokens": 128}, "128 is beyond the model's 64"),
        ({"dropout": 1.0}, r"dropout must be in \[0, 1\), got 1.0"),
        ({"prediction_share": 1.5}, r"prediction_share must be in \[0, 1\], got 1.5"),
    ],
)
def test_numbers_that_no_run_can_have_are_refused(make_settings, changes, message):
    with pytest.raises(ValueError, match=message):
        make_settings(**changes)


def test_a_file_may_hold_settings_or_an_architecture_and_options_go_above_it(tmp_path):
    file = tmp_path / "config.json"
    file.write_text(json.dumps({**ARCHITECTURE, "num_hidden_layers": 3}))
    settings = read_settings(file, vocab_size=1000, steps=7, seed=None)
    assert settings.architecture["num_hidden_layers"] == 3
    assert (settings.architecture["vocab_size"], settings.steps) == (1000, 7)
    file.write_text(json.dumps({"steps": 9, "architecture": {"hidden_size": 64}}))
    settings = read_settings(file)
    assert (settings.steps, settings.architecture["hidden_size"]) == (9, 64)
    assert settings.architecture["num_hidden_layers"] == ARCHITECTURE["num_hidden_layers"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "cannot be read as JSON"),
        ("[]", "must hold an object, found list"),
        ('{"step": 3}', r"unknown settings \['step'\]"),
        ('{"architecture": {"hiden_size": 3}}', "unknown keys in the architecture: hiden_size"),
    ],
)
def test_a_file_that_cannot_be_meant_is_refused(tmp_path, text, message):
    file = tmp_path / "config.json"
    file.write_text(text)
    with pytest.raises(ValueError, match=message):
        read_settings(file)


def test_the_dense_twin_has_as_many_active_parameters():
    total, active = count_parameters(TrainingModel(KING_JAMES.architecture))
    dense, same = count_parameters(TrainingModel(dense_twin(KING_JAMES).architecture))
    assert active * 3 <= total
    assert dense == same
    # The inner size of the dense parts is a whole number.
    assert abs(dense - active) <= 6 * 3 * 256
    assert dense_twin(KING_JAMES).steps == KING_JAMES.steps
