"""``tiktoken.model`` as Moonlight and Kimi have it: merging by the ranks of what pairs become."""

import base64
import itertools
import json

import pytest
from hypothesis import given
from tokenizers import Regex, pre_tokenizers

from abyssal.errors import TokenizerError
from abyssal.reference.tokenizer import ReferenceTokenizer
from abyssal.tokenizer import Tokenizer

from . import families
from .texts import texts

SPLIT = pre_tokenizers.Split(Regex(families.KIMI_SPLITS[0]), "isolated")


def token_bytes() -> list[bytes]:
    """The trained vocabulary's tokens, single bytes first, by rank."""
    spec = families.spec("kimi")
    reference = ReferenceTokenizer({**spec, "pre_tokenizer": {"pretokenizers": []}})
    ids = sorted(spec["model"]["vocab"].values())
    tokens = [reference.decode_bytes([i]) for i in ids]
    # Tokens that no merge reaches: alone they are one id all the same, as in tiktoken.
    return [*sorted(t for t in tokens if len(t) == 1), *(t for t in tokens if len(t) > 1), b"qxjz"]


def naive(ranks: dict[bytes, int], piece: bytes) -> list[int]:
    """tiktoken's rule, as its educational module says it."""
    if piece in ranks:
        return [ranks[piece]]
    parts = [bytes([byte]) for byte in piece]
    while len(parts) > 1:
        joined = [ranks.get(a + b, len(ranks)) for a, b in itertools.pairwise(parts)]
        best = min(joined)
        if best == len(ranks):
            break
        place = joined.index(best)
        parts[place : place + 2] = [parts[place] + parts[place + 1]]
    return [ranks[part] for part in parts]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("kimi")
    lines = [b"%s %d" % (base64.b64encode(t), i) for i, t in enumerate(token_bytes())]
    (folder / "tiktoken.model").write_bytes(b"\n".join(lines) + b"\n")
    first = len(lines)
    added = {
        str(first): {"content": "[BOS]", "special": True},
        str(first + 1): {"content": "[EOS]", "special": True},
        str(first + 4): {"content": "<|im_end|>", "special": True},
        str(first + 9): {"content": "<think>", "special": False},
    }
    config = {"added_tokens_decoder": added, "bos_token": "[BOS]", "eos_token": "[EOS]"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config), "utf-8")
    return folder


@pytest.fixture(scope="module")
def ours(folder):
    return Tokenizer.from_pretrained(folder)


@given(text=texts("don't", "THEY'LL", "camelCase", "qxjz", "\u6df1\u5ea6"))
def test_ids_are_those_of_the_rule_by_ranks(ours, text):
    ranks = {token: rank for rank, token in enumerate(token_bytes())}
    pieces = [piece.encode() for piece, _ in SPLIT.pre_tokenize_str(text)]
    expected = [i for piece in pieces for i in naive(ranks, piece)]
    assert ours.encode(text) == expected
    assert ours.decode(expected) == text


def test_control_tokens_follow_the_ranks_and_the_unnamed_have_their_number(ours):
    first = len(token_bytes())
    assert ours.encode("a[BOS]<|im_end|>") == [*ours.encode("a"), first, first + 4]
    assert ours.id_to_token(first + 2) == f"<|reserved_token_{first + 2}|>"
    assert ours.vocab_size == first + 258
    assert (ours.bos_token_id, ours.eos_token_id) == (first, first + 1)
    assert first + 9 not in ours.special_ids
    assert first + 2 in ours.special_ids
    assert first not in ours.encode("[BOS]", parse_special=False)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "the file has to be at least one token"),
        (b"IQ== 1\n", "line 1 has to hold the next rank"),
        (b"IQ== 0\nIQ== 1\n", '"!" is listed twice, with the ids 0 and 1'),
        (b"IQ== 0\nnothing\n", "line 2 has to hold a token, a space and a rank"),
        (b"I*== 0\n", "line 1 has to hold a token in base 64"),
    ],
)
def test_a_damaged_file_is_an_error_that_names_the_line(tmp_path, data, message):
    (tmp_path / "tiktoken.model").write_bytes(data)
    with pytest.raises(TokenizerError) as caught:
        Tokenizer.from_pretrained(tmp_path)
    assert str(caught.value).startswith(f"{tmp_path / 'tiktoken.model'}: ")
    assert message in str(caught.value)


def test_a_control_token_without_content_is_an_error(tmp_path):
    (tmp_path / "tiktoken.model").write_bytes(b"IQ== 0\n")
    config = {"added_tokens_decoder": {"1": {"special": True}}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config), "utf-8")
    with pytest.raises(TokenizerError, match="added_tokens_decoder"):
        Tokenizer.from_pretrained(tmp_path)
