"""``abyssal train``: from text files to a model that the other commands take."""

import json
import subprocess
import sys

import pytest

from abyssal import LLM, SamplingParams
from abyssal.cli.app import main


def run(*words) -> int:
    with pytest.raises(SystemExit) as caught:
        main(["train", *map(str, words)])
    return caught.value.code or 0


def test_a_run_ends_with_a_model_that_generates(verses, settings_file, tmp_path, capsys):
    out = tmp_path / "run"
    assert run(*verses, "--out", out, "--config", settings_file) == 0
    written = {file.name for file in out.iterdir()}
    assert {"model.safetensors", "config.json", "tokenizer.json", "curve.png"} <= written
    assert (out / "curve.png").read_bytes().startswith(b"\x89PNG")
    assert json.loads((out / "config.json").read_text())["quantization_config"]["fmt"] == "e4m3"
    shown = capsys.readouterr()
    assert "parameters: " in shown.out
    assert "3 documents" in shown.err
    answer = LLM(str(out)).generate("And the", SamplingParams(max_tokens=4, temperature=0.0))
    assert len(answer[0].outputs[0].token_ids) <= 4


def test_a_killed_command_resumes_to_the_same_model(verses, settings_file, tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert run(*verses, "--out", whole, "--config", settings_file, "--packing", "float32") == 0
    script = (
        "import os, signal, sys\n"
        "from abyssal.train import run\n"
        "real = run.save_state\n"
        "def save(trainer, history, folder):\n"
        "    real(trainer, history, folder)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
        "run.save_state, run.SAVE_SECONDS = save, 0.0\n"
        "run.train.__kwdefaults__['save_seconds'] = 0.0\n"
        "from abyssal.cli.app import main\n"
        "main(sys.argv[1:])\n"
    )
    words = [*map(str, verses), "--out", str(parts), "--config", str(settings_file)]
    done = subprocess.run([sys.executable, "-c", script, "train", *words], check=False)
    assert done.returncode == -9
    assert run(*words, "--packing", "float32", "--resume") == 0
    for name in ("model.safetensors", "tokenizer.json"):
        assert (parts / name).read_bytes() == (whole / name).read_bytes()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "name text files to train on, or a --recipe, and not both"),
        (["--recipe", "vulgate"], "--recipe must be one of king-james, king-james-dense, got"),
        (["--recipe", "king-james", "--steps", "3"], "a recipe has its own"),
        (["FILE", "--packing", "int4"], "--packing must be one of fp8, bfloat16, float32"),
        (["FILE", "--resume"], "holds no run to resume"),
        (["FILE", "--steps", "0"], "steps must be at least 1, got 0"),
        (["EMPTY"], "is empty"),
    ],
)
def test_what_cannot_be_done_is_said_in_one_line(words, message, verses, tmp_path, capsys):
    empty = tmp_path / "empty.txt"
    empty.touch()
    named = {"FILE": verses[0], "EMPTY": empty}
    assert run(*[named.get(word, word) for word in words], "--out", tmp_path / "out") == 1
    shown = capsys.readouterr().err
    assert message in shown
    assert shown.count("\n") == 1
