"""Added tokens with every combination of flags, against Hugging Face, on a vocabulary of bytes."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer as HuggingFace

from abyssal.errors import TokenizerError
from abyssal.reference.tokenizer import ReferenceTokenizer
from abyssal.tokenizer import Tokenizer

from . import families

CONTENTS = ("<a>", "<a>b", "a>", "<", "b<a", " <s> ", "\u3000", "ab", "\u00f6", "\uff5cx", "\n")
FLAGS = ("special", "normalized", "lstrip", "rstrip")


def with_added(tokens: list[dict]) -> str:
    spec = families.spec("modern")
    first = len(spec["model"]["vocab"])
    spec["added_tokens"] = [
        {"id": first + place, "single_word": False, **token} for place, token in enumerate(tokens)
    ]
    return json.dumps(spec)


@st.composite
def added_tokens(draw):
    vocabulary = families.spec("modern")["model"]["vocab"]
    free = [content for content in CONTENTS if content not in vocabulary]
    contents = draw(st.lists(st.sampled_from(free), unique=True, max_size=6))
    tokens = [{"content": c} | {flag: draw(st.booleans()) for flag in FLAGS} for c in contents]
    if any(token["rstrip"] for token in tokens):
        # White space that one token has taken and another begins with: Hugging Face gives it to
        # both, or panics ("bad split").
        tokens = [token for token in tokens if not token["content"][0].isspace()]
    return tokens


@given(
    tokens=added_tokens(),
    text=st.lists(st.sampled_from([*CONTENTS, " ", "\t\n", "x", ">", "\u00e9"]), max_size=30),
)
def test_any_flags_match_as_in_hugging_face(tmp_path_factory, tokens, text):
    path = tmp_path_factory.mktemp("added") / "tokenizer.json"
    path.write_text(with_added(tokens), "utf-8")
    ours = Tokenizer.from_file(path)
    peer = HuggingFace.from_file(str(path))
    joined = "".join(text)
    assert ours.encode(joined) == peer.encode(joined, add_special_tokens=False).ids
    if not any(t["content"][0].isspace() or t["content"][-1].isspace() for t in tokens):
        reference = ReferenceTokenizer(json.loads(path.read_text("utf-8")))
        assert ours.encode(joined) == reference.encode(joined)


def test_tokens_not_normalized_are_found_before_the_others_everywhere(tmp_path):
    path = tmp_path / "tokenizer.json"
    flags = {"special": False, "lstrip": False, "rstrip": False}
    path.write_text(
        with_added(
            [
                {"content": "<a>b", "normalized": True, **flags},
                {"content": ">b", "normalized": False, **flags},
            ]
        ),
        "utf-8",
    )
    ours = Tokenizer.from_file(path)
    names = [ours.id_to_token(i) for i in ours.encode("<a>b")]
    assert names[-1] == ">b"
    assert "<a>b" not in names


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"single_word": True}, "unsupported tokenizer: added_tokens[0].single_word is "),
        ({"content": ""}, "added token 0 has 0 bytes, allowed are 1 to 1024"),
        ({"content": "x" * 1025}, "added token 0 has 1025 bytes, allowed are 1 to 1024"),
        ({"id": 9999}, 'added token "<t>" declares id 9999, but its place in the file gives it'),
        ({"id": -1}, "added_tokens[0].id has to be a whole number from 0 on"),
        ({"id": 2**40}, "token id 1099511627776 is above the largest id allowed, 4194303"),
        ({"content": 5}, "added_tokens[0].content has to be a string"),
        ({"normalized": "no"}, "added_tokens[0].normalized has to be true or false"),
    ],
)
def test_a_bad_added_token_is_an_error_that_names_it(tmp_path, change, message):
    path = tmp_path / "tokenizer.json"
    flags = dict.fromkeys(FLAGS, False)
    path.write_text(with_added([{"content": "<t>", **flags, **change}]), "utf-8")
    with pytest.raises(TokenizerError) as caught:
        Tokenizer.from_file(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert message in str(caught.value)
