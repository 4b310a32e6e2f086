"""Loaded tokenizers, ours and Hugging Face's, shared by the tests of this folder."""

from pathlib import Path

import pytest
from tokenizers import Tokenizer as HuggingFace

from abyssal.reference.tokenizer import ReferenceTokenizer
from abyssal.tokenizer import Tokenizer

from . import families


@pytest.fixture(scope="session")
def published() -> Tokenizer:
    return Tokenizer.from_file(families.PUBLISHED)


@pytest.fixture(scope="session")
def published_peer() -> HuggingFace:
    return HuggingFace.from_file(str(families.PUBLISHED))


class Family:
    """One family's small tokenizer: ours, Hugging Face's and the reference, of the same file."""

    def __init__(self, name: str, folder: Path) -> None:
        self.name = name
        text = families.trained(name)
        self.path = folder / f"{name}.json"
        self.path.write_text(text, "utf-8")
        self.ours = Tokenizer.from_file(self.path)
        self.peer = HuggingFace.from_str(text)
        self.reference = ReferenceTokenizer(families.spec(name))

    def peer_ids(self, text: str) -> list[int]:
        return self.peer.encode(text, add_special_tokens=False).ids


@pytest.fixture(scope="session", params=sorted(families.SPLITS))
def family(request, tmp_path_factory) -> Family:
    return Family(request.param, tmp_path_factory.mktemp("family"))
