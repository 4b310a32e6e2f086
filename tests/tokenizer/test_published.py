"""The published tokenizer: ids equal to Hugging Face's, for real and for random text."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from . import corpora
from .texts import assigned, texts

ADDED = ("<\uff5cUser\uff5c>", "<\uff5cbegin\u2581of\u2581sentence\uff5c>", "<think>", "</think>")
PARTIAL = (
    "<",
    "\uff5c",
    "<\uff5c",
    "<\uff5cUser",
    "\uff5c>",
    "\uff5cDSML\uff5c",
    "<\uff5c/table>\uff5c",
)


def peer_ids(peer, text):
    return peer.encode(text, add_special_tokens=False).ids


def test_ids_equal_hugging_face_on_source_code(published, published_peer, full_profile):
    sources = corpora.standard_library(20_000_000 if full_profile else 1_000_000)
    for text in sources:
        assert published.encode(text) == peer_ids(published_peer, text)


def test_ids_equal_hugging_face_on_prose(published, published_peer, full_profile):
    for pages in corpora.prose().values():
        text = "".join(pages)
        text = text if full_profile else text[:150_000]
        ids = published.encode_to_numpy(text)
        assert ids.tolist() == peer_ids(published_peer, text)
        assert published.decode(ids) == text


@pytest.mark.parametrize("frame", ["{}", "a{}b {} c{}", " {}1\n{}\u3042"])
def test_ids_equal_hugging_face_for_every_assigned_code_point(
    published, published_peer, full_profile, frame
):
    characters = assigned(thin=not full_profile)
    if frame == "{}":
        rows = characters
    else:
        # In rows, each with the same neighbors: far fewer calls.
        rows = [
            "".join(frame.replace("{}", character) for character in characters[start : start + 64])
            for start in range(0, len(characters), 64)
        ]
    expected = published_peer.encode_batch(rows, add_special_tokens=False)
    for row, ids, peer in zip(rows, published.encode_batch(rows), expected, strict=True):
        assert ids == peer.ids, ascii(row)


@given(text=texts())
def test_ids_equal_hugging_face_on_random_unicode(published, published_peer, text):
    assert published.encode(text) == peer_ids(published_peer, text)


@given(text=texts(*ADDED, *PARTIAL))
def test_added_tokens_of_both_kinds_match_as_in_hugging_face(published, published_peer, text):
    assert published.encode(text) == peer_ids(published_peer, text)


def test_every_added_token_is_one_id_between_any_neighbors(published, published_peer):
    for content, token_id in published.added_tokens.items():
        assert published.encode(content) == [token_id]
        text = f"x{content}{content} {content}\n"
        assert published.encode(text) == peer_ids(published_peer, text)


@given(text=texts(*ADDED, *PARTIAL))
def test_without_parsing_no_text_becomes_a_control_token(published, text):
    ids = published.encode(text, parse_special=False)
    assert not set(ids) & set(published.added_tokens.values())
    assert published.decode(ids) == text


@given(text=texts(*ADDED))
def test_all_ways_to_encode_agree(published, text):
    ids = published.encode(text)
    array = published.encode_to_numpy(text)
    assert array.dtype == np.int32
    assert array.flags.writeable
    assert array.tolist() == ids
    assert published.count(text) == len(ids)
    assert published.encode_batch([text, "", text]) == [ids, [], ids]
    assert published.encode_bytes(text.encode()) == published.encode(text, parse_special=False)


@given(data=st.binary(max_size=80) | texts().map(str.encode))
def test_bytes_come_back(published, data):
    assert published.decode_bytes(published.encode_bytes(data)) == data


@given(ids=st.lists(st.integers(0, 129_279), max_size=40), skip=st.booleans())
def test_text_of_ids_equals_hugging_face_at_once_and_one_by_one(
    published, published_peer, ids, skip
):
    expected = published_peer.decode(ids, skip_special_tokens=skip)
    assert published.decode(ids, skip_special=skip) == expected
    assert published.decode(np.array(ids, dtype=np.int64), skip_special=skip) == expected
    stream = published.stream(skip_special=skip)
    assert "".join([stream.push(i) for i in ids] + [stream.finish()]) == expected


@given(text=texts())
def test_a_stream_never_splits_a_character(published, text):
    ids = published.encode_bytes(text.encode())
    stream = published.stream()
    parts = [stream.push(i) for i in ids]
    assert "".join(parts) == text
    assert stream.finish() == ""


def test_names_and_sizes_are_those_of_hugging_face(published, published_peer):
    assert published.vocab_size == len(published) == published_peer.get_vocab_size() == 129_280
    assert published.max_id == 129_279
    vocabulary = published_peer.get_vocab()
    for token_id in range(0, 129_280, 37):
        name = published.id_to_token(token_id)
        assert name == published_peer.id_to_token(token_id)
        assert published.token_to_id(name) == vocabulary[name] == token_id
    assert published.id_to_token(129_280) is None
    assert published.id_to_token(-1) is None
    assert published.token_to_id("no such token") is None
    assert 0 in published.special_ids
    assert published.token_to_id("<\uff5cUser\uff5c>") not in published.special_ids
