import lzma
import os
import pty
import re
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ElementTree

import pytest
from rich.console import Console

from abyssal import LLM, SamplingParams
from abyssal.cli import demo
from abyssal.cli.catalog import CATALOG
from abyssal.cli.shading import ShadedText, stream_shaded


@pytest.fixture(scope="module")
def shown_model(base_model, tmp_path_factory):
    """The tiny model with a training text beside it, as the bundled one has."""
    folder = tmp_path_factory.mktemp("shown") / "king_james"
    shutil.copytree(base_model, folder)
    (folder / "training_text.txt.xz").write_bytes(lzma.compress(b"In the beginning"))
    return folder


def test_it_says_what_it_is_writes_measures_and_tells_what_to_type(run, shown_model):
    done = run("demo", "-m", shown_model, "-n", 12)
    assert done.code == 0, done.err
    lines = done.out.splitlines()
    assert re.match(
        r"abyssal [\d.]+: a base model of \d+ kB in DeepSeek-V3's architecture", lines[0]
    )
    assert "it continues text, it does not answer" in lines[0]
    assert demo.OPENING in done.out
    for name in ("parameters", "weights", "cache", "speed", "processor", "exactness", "copied"):
        assert re.search(f"^{name}: ", done.out, re.MULTILINE), name
    assert all(model.name in done.out for model in CATALOG)
    assert "abyssal chat --model deepseek-ai/" in done.out
    assert "\x1b" not in done.out


def test_at_a_terminal_it_shades_and_continues_the_users_own_line(base_model):
    ours, theirs = pty.openpty()
    environment = {"TERM": "xterm-256color", "COLORTERM": "truecolor", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "abyssal", "demo", "-m", str(base_model), "-n", "8"]
    running = subprocess.Popen(
        command, stdin=theirs, stdout=theirs, stderr=theirs, env={**os.environ, **environment}
    )
    os.close(theirs)
    screen, typed = b"", 0
    while True:
        try:
            screen += os.read(ours, 4096)
        except OSError:  # the other end is closed
            break
        if screen.count(b"> ") > typed:
            os.write(ours, (b"My own line", b"")[typed] + b"\n")
            typed += 1
    os.close(ours)
    assert running.wait(timeout=60) == 0
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", screen.decode(errors="replace"))
    assert re.search(r"\x1b\[[0-9;]*48;2;\d+;\d+;\d+m", screen.decode(errors="replace"))
    assert "shaded by the expert that weighed most in layer 2" in text
    assert text.count("My own line") == 2  # echoed by the terminal, and continued
    assert text.count("tokens/s; answer 8 tokens") == 1
    assert text.index("Your own line") < text.index("Real checkpoints")


def test_the_same_seed_writes_the_same_text(run, shown_model):
    def text(seed):
        out = run("demo", "-m", shown_model, "-n", 12, "--seed", seed).out
        return out[out.index(demo.OPENING) : out.index("\nparameters: ")]

    assert text(1) == text(1)
    assert text(1) != text(2)


def test_the_figures_are_those_of_the_model(run, base_model):
    out = run("demo", "-m", base_model, "-n", 12).out
    found = re.search(r"largest difference to plain PyTorch (\S+) over (\d+) tokens", out)
    # Two f32 computations of one function: the bound that the models are held to.
    assert 0 < float(found[1]) <= 1e-4 * 10
    assert int(found[2]) > 12
    # Three layers of 32 + 8 numbers, and of 4 heads with 16 + 8 + 16, in two bytes.
    assert "cache: 240 bytes a token; expanded keys and values: 960 (4.0 times)" in out


def test_a_recording_is_a_picture_that_needs_no_network(run, shown_model, tmp_path):
    picture = tmp_path / "demo.svg"
    done = run("demo", "-m", shown_model, "-n", 12, "--record", picture)
    assert done.code == 0, done.err
    text = picture.read_text(encoding="utf-8")
    ElementTree.fromstring(text)
    addresses = set(re.findall(r"https?://[^\"'\s)<]+", text))
    assert addresses <= {"http://www.w3.org/2000/svg", "https://www.textualize.io"}
    assert "parameters" in text
    assert "shaded" in text


def test_a_recording_into_no_folder_is_refused_before_the_model_is_loaded(
    run, tmp_path, base_model
):
    done = run("demo", "-m", base_model, "--record", tmp_path / "absent" / "demo.svg")
    assert done.code == 1
    assert "no folder" in done.err
    assert "loading" not in done.err


def test_shading_leaves_the_text_as_it_is_but_for_line_ends_at_the_border():
    console = Console(width=30, record=True, file=open("/dev/null", "w"))
    shaded = ShadedText(console, 4)
    pieces = [
        "In",
        " the",
        " beginning",
        " God",
        " created",
        " the",
        " hea",
        "ven\nand",
        " the",
        " earth",
    ]
    for number, piece in enumerate(pieces):
        shaded.write(piece, shaded.style(number % 4))
    console.print()
    console.file.close()
    text = console.export_text()
    assert text.split() == "".join(pieces).split()
    assert all(len(line) <= 30 for line in text.splitlines())


def test_a_word_longer_than_the_screen_is_broken_not_cut():
    console = Console(width=20, record=True, file=open("/dev/null", "w"))
    ShadedText(console, 1).write("x" * 50)
    console.file.close()
    assert console.export_text().split("\n") == ["x" * 20, "x" * 20, "x" * 10]


def test_experts_have_colors_of_their_own():
    shaded = ShadedText(Console(), 64)
    assert len({shaded.style(expert) for expert in range(64)}) == 64


def test_every_token_is_shaded_by_the_expert_that_led_the_last_layer_when_it_was_drawn(base_model):
    llm = LLM(base_model, dtype="float32")
    console = Console(width=80, record=True, file=open("/dev/null", "w"))
    params = SamplingParams(max_tokens=10, temperature=0.0, ignore_eos=True)
    choices = {}
    router = llm.model.layers[2].moe.router
    handle = router.register_forward_hook(
        lambda *call: choices.setdefault("all", []).append(call[2][1])
    )
    text, ids, speed = stream_shaded(llm, console, "And God said", params)
    handle.remove()
    console.file.close()
    assert speed.answer_tokens == 10
    assert text == llm.generate("And God said", params)[0].outputs[0].text
    leaders = [int(step[-1, 0]) for step in choices["all"][:10]]
    shares = {expert: leaders.count(expert) for expert in leaders}
    legend = " ".join(console.export_text().partition("shaded by")[2].split())
    best = max(shares, key=shares.get)
    assert f"in layer 2: {best} {10 * shares[best]}%" in legend
    assert len(ids) == len(speed.prompt_token_ids) + 10
