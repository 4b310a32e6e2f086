"""Tiny checkpoints with a tokenizer, and the command line run in this process."""

import io
import sys
from types import SimpleNamespace

import pytest
from tiny_texts import CHAT_TEMPLATE, write_tokenizer

from abyssal.cli import app
from abyssal.testing.checkpoints import write_checkpoint


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    """Tiny models are fastest on one thread, above all on a busy machine."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


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
        stream = io.TextIOWrapper(io.BytesIO(stdin), encoding="utf-8")
        monkeypatch.setattr(sys, "stdin", stream)
        with pytest.raises(SystemExit) as caught:
            app.main([str(each) for each in arguments])
        printed = capfd.readouterr()
        return SimpleNamespace(code=caught.value.code, out=printed.out, err=printed.err)

    return call
