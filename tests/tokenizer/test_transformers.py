"""The adapters beside transformers' own fast tokenizer, on the same file."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from abyssal import Tokenizer
from abyssal.integrations.transformers import FastTokenizer, patch_tokenizer

from . import families
from .texts import texts

BEGIN = "<\uff5cbegin\uff5c>"
END = "<\uff5cend\uff5c>"


def spec() -> dict:
    """A small file of V3's kind that sets the beginning token before a text."""
    found = families.spec("modern")
    begin = next(t["id"] for t in found["added_tokens"] if t["content"] == BEGIN)
    found["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [
            {"SpecialToken": {"id": BEGIN, "type_id": 0}},
            {"Sequence": {"id": "A", "type_id": 0}},
        ],
        "pair": [
            {"SpecialToken": {"id": BEGIN, "type_id": 0}},
            {"Sequence": {"id": "A", "type_id": 0}},
            {"Sequence": {"id": "B", "type_id": 1}},
        ],
        "special_tokens": {BEGIN: {"id": BEGIN, "ids": [begin], "tokens": [BEGIN]}},
    }
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fast")
    (folder / "tokenizer.json").write_text(json.dumps(spec()), "utf-8")
    config = {"add_bos_token": True, "bos_token": BEGIN, "eos_token": END, "pad_token": END}
    (folder / "tokenizer_config.json").write_text(json.dumps(config), "utf-8")
    return folder


def upstream(folder) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(
        tokenizer_file=str(folder / "tokenizer.json"),
        bos_token=BEGIN,
        eos_token=END,
        pad_token=END,
        model_input_names=["input_ids", "attention_mask"],
    )


@pytest.fixture(scope="module")
def plain(folder):
    return upstream(folder)


@pytest.fixture(scope="module")
def patched(folder):
    return patch_tokenizer(upstream(folder))


@pytest.fixture(scope="module")
def ours(folder):
    return FastTokenizer(Tokenizer.from_pretrained(folder))


@given(text=texts(BEGIN, END), add=st.booleans())
def test_a_patched_tokenizer_gives_the_same_ids(plain, patched, text, add):
    assert patched.encode(text, add_special_tokens=add) == plain.encode(
        text, add_special_tokens=add
    )
    assert dict(patched(text)) == dict(plain(text))
    ids = plain.encode(text)
    assert patched.decode(ids, skip_special_tokens=add) == plain.decode(
        ids, skip_special_tokens=add
    )


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"padding": True},
        {"padding": "max_length", "max_length": 12, "truncation": True},
        {"truncation": True, "max_length": 3},
        {"padding": True, "return_tensors": "pt"},
        {"padding": True, "return_tensors": "np", "add_special_tokens": False},
        {"padding": True, "pad_to_multiple_of": 8, "padding_side": "left"},
        {"return_offsets_mapping": True},
        {"return_special_tokens_mask": True},
        {"return_attention_mask": False},
        {"text_pair": ["x", "y", "z"]},
    ],
)
def test_a_patched_tokenizer_takes_the_options_of_the_call(plain, patched, options):
    batch = ["In the beginning", "\u6df1\u5ea6", "was the word; 12,345 of them, in 1999"]
    expected, found = plain(batch, **options), patched(batch, **options)
    assert set(found) == set(expected)
    for key, value in expected.items():
        assert np.array_equal(np.asarray(value, dtype=object), np.asarray(found[key], dtype=object))
        assert type(found[key]) is type(value)


def test_tokens_added_later_are_still_found(folder):
    tokenizer = patch_tokenizer(upstream(folder))
    tokenizer.add_tokens(["<new>"])
    expected = upstream(folder)
    expected.add_tokens(["<new>"])
    assert tokenizer.encode("a<new>b") == expected.encode("a<new>b")


def test_patching_twice_changes_nothing_and_another_object_is_refused(patched):
    assert patch_tokenizer(patched) is patched
    assert isinstance(patched, PreTrainedTokenizerFast)
    with pytest.raises(TypeError, match="no fast tokenizer"):
        patch_tokenizer("text")


def test_an_unsupported_tokenizer_stays_as_it_was():
    from tokenizers import Tokenizer as HuggingFace
    from tokenizers.models import WordLevel

    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=HuggingFace(WordLevel({"a": 0, "<unk>": 1}, unk_token="<unk>"))
    )
    kind = type(tokenizer)
    with pytest.raises(ValueError, match="unsupported tokenizer"):
        patch_tokenizer(tokenizer)
    assert type(tokenizer) is kind


@given(text=texts(BEGIN, END), add=st.booleans())
def test_the_adapter_gives_the_ids_of_transformers(plain, ours, text, add):
    expected = plain.encode(text, add_special_tokens=add)
    assert ours.encode(text, add_special_tokens=add) == expected
    assert ours.encode_batch([text, ""], add_special_tokens=add)[0] == expected
    assert ours.decode(expected, skip_special_tokens=add) == plain.decode(
        expected, skip_special_tokens=add
    )
    assert ours(text, add_special_tokens=add) == dict(plain(text, add_special_tokens=add))


def test_the_adapter_pads_and_cuts_as_transformers_does(plain, ours):
    batch = ["In the beginning", "", "was the word; 12,345 of them"]
    for options in (
        {"padding": True},
        {"truncation": True, "max_length": 4},
        {"padding": "max_length", "max_length": 40},
    ):
        assert ours(batch, **options) == dict(plain(batch, **options))
    for kind in ("np", "pt"):
        expected = plain(batch, padding=True, return_tensors=kind)
        found = ours(batch, padding=True, return_tensors=kind)
        for key, value in expected.items():
            assert torch.equal(torch.as_tensor(found[key]), torch.as_tensor(value))
    with pytest.raises(ValueError, match="differ in length"):
        ours(batch, return_tensors="np")
    with pytest.raises(ValueError, match="return_tensors is 'tf'"):
        ours("a", return_tensors="tf")
