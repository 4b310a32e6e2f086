"""Every family, on vocabularies trained here: ids equal to Hugging Face's and the reference's."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from . import corpora, random_text
from .families import V2_ADDED_LETTERS
from .texts import assigned, texts

PIECES = (
    *V2_ADDED_LETTERS,
    "<\uff5cbegin\uff5c>",
    "<\uff5cUser\uff5c>",
    "<\uff5cbegin",
    "\uff5c>\uff5c",
)


@given(text=texts(*PIECES))
def test_ids_equal_hugging_face_on_random_unicode(family, text):
    assert family.ours.encode(text) == family.peer_ids(text)


# The reference has this interpreter's Unicode version, so only code points that have been assigned
# for long are put to it.
@given(text=st.text(st.characters(max_codepoint=0x24FF, categories=["L", "M", "N", "P", "S", "Z"])))
def test_ids_equal_the_reference(family, text):
    without_set_difference(family)
    assert family.ours.encode(text) == family.reference.encode(text)


@given(text=texts(*PIECES), parse=st.booleans())
def test_ids_equal_the_reference_on_the_edges(family, text, parse):
    without_set_difference(family)
    text = "".join(c for c in text if c in set(assigned_sample()))
    expected = family.reference.encode(text, parse_special=parse)
    assert family.ours.encode(text, parse_special=parse) == expected
    assert family.ours.decode_bytes(expected) == family.reference.decode_bytes(expected)


def without_set_difference(family):
    if family.name == "kimi":
        pytest.skip("the pattern's class intersections have no form in the standard library's re")


def assigned_sample():
    return [
        *PIECES,
        *(chr(p) for p in range(0x250)),
        *"\u4e00\u6df1\u5ea6\u3042\u3001\u3002\u0300\uac00",
    ]


def test_ids_equal_hugging_face_on_long_texts_of_all_classes(family, full_profile):
    # 100 million characters: `python -m tests.tokenizer.random_text`.
    source = random_text.Source()
    for seed in range(4 if full_profile else 1):
        texts = source.texts(seed, 1_000_000 if full_profile else 80_000)
        assert random_text.difference(family.ours, family.peer, texts) is None


def test_ids_equal_hugging_face_for_every_assigned_code_point_alone(family, full_profile):
    characters = assigned() if full_profile else assigned(thin=True)[::7]
    expected = family.peer.encode_batch(characters, add_special_tokens=False)
    ours = family.ours.encode_batch(characters)
    for character, ids, peer in zip(characters, ours, expected, strict=True):
        assert ids == peer.ids, ascii(character)


def test_ids_equal_hugging_face_for_every_assigned_code_point_between_others(family, full_profile):
    characters = assigned(thin=not full_profile)
    for start in range(0, len(characters), 256):
        row = "".join(f"a{c} {c}{c}b1{c}\n" for c in characters[start : start + 256])
        assert family.ours.encode(row) == family.peer_ids(row)


def test_ids_equal_hugging_face_on_real_text(family, full_profile):
    limit = 20_000_000 if full_profile else 60_000
    prose = ["".join(pages)[:limit] for pages in corpora.prose().values()]
    for text in [*corpora.standard_library(limit), *prose]:
        assert family.ours.encode(text) == family.peer_ids(text)


@pytest.mark.parametrize(
    "character", ["a", " ", "\u6df1", "!", "\u200b", "\n", "1", "\u0301", "\u3000"]
)
def test_a_very_long_piece_equals_hugging_face(family, character):
    # Beyond the length at which merging changes from a scan to a heap.
    for length in (95, 96, 97, 98, 1000, 20_000):
        text = character * length
        assert family.ours.encode(text) == family.peer_ids(text)


def test_random_letters_in_one_long_piece_equal_hugging_face(family, seed):
    draw = random.Random(seed)
    text = "".join(draw.choice("etaoinshrdlu") for _ in range(20_000))
    assert family.ours.encode(text) == family.peer_ids(text)


@given(data=st.binary(max_size=60))
def test_bytes_come_back(family, data):
    ids = family.ours.encode_bytes(data)
    assert family.ours.decode_bytes(ids) == data
    assert "".join(_streamed(family.ours, ids)) == family.ours.decode(ids)


def _streamed(tokenizer, ids):
    stream = tokenizer.stream()
    yield from (stream.push(i) for i in ids)
    yield stream.finish()


@given(text=texts(*PIECES), parse=st.booleans())
def test_text_comes_back_with_the_letters_that_v2_adds(family, text, parse):
    # Hugging Face decodes these letters to U+FFFD; here they come back.
    ids = family.ours.encode(text, parse_special=parse)
    expected = family.peer.normalizer.normalize_str(text) if family.peer.normalizer else text
    assert family.ours.decode(ids) == expected
    assert "".join(_streamed(family.ours, ids)) == expected


def test_letters_added_by_v2_stay_letters_without_parsing(family):
    if family.name == "v2":
        text = "h\u00f6chstens"
        ids = family.ours.encode(text, parse_special=False)
        assert family.ours.token_to_id("\u00f6") in ids
        assert ids == family.peer_ids(text)
    control = "<\uff5cUser\uff5c><\uff5cbegin\uff5c>"
    ids = family.ours.encode(control, parse_special=False)
    assert not {i for i in ids if len(family.ours.id_to_token(i)) > 1} & set(
        family.ours.added_tokens.values()
    )
    assert family.ours.decode(ids) == control
