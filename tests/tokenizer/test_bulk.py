"""Batches, long texts, files, texts in parts, places, threads and forks."""

import itertools
import os
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from abyssal.errors import TokenizerError
from abyssal.tokenizer import Tokenizer

from . import corpora, families
from .texts import texts

# Words and lines, so that there is somewhere to cut.
LINES = texts(
    "one two", " a b", "\nx", "\n\n", " \n", "don't stop", "\n\u6df1", "a\nb c\nd", "\u3002"
)


@given(parts=st.lists(LINES, max_size=8), parse=st.booleans())
def test_a_text_in_parts_has_the_ids_of_the_whole(family, parts, parse):
    whole = family.ours.encode("".join(parts), parse_special=parse)
    stream = family.ours.encode_stream(parse_special=parse)
    ids = [i for part in parts for i in stream.push(part)]
    assert ids + stream.finish() == whole
    assert stream.finish() == []


def test_a_stream_gives_ids_before_the_text_ends(published):
    stream = published.encode_stream()
    early = stream.push("It was a dark and stormy night; the rain fell in torrents ")
    whole = published.encode("It was a dark and stormy night; the rain fell in torrents ")
    assert len(early) > len(whole) // 2
    assert early + stream.finish() == whole


@pytest.mark.parametrize("threads", [1, 2, 3, 0])
def test_a_long_text_on_several_threads_has_the_same_ids(family, threads):
    text = "".join(corpora.standard_library(2_500_000))
    expected = family.ours.encode(text)
    [ids] = family.ours.encode_batch([text], threads=threads)
    assert ids == expected


def test_a_batch_keeps_its_order_and_says_where_each_text_begins(published):
    sources = [*corpora.standard_library(1_000_000), "", "a"]
    expected = [published.encode(text) for text in sources]
    assert published.encode_batch(sources, threads=2) == expected
    ids, offsets = published.encode_batch_to_numpy(sources, threads=2)
    assert ids.dtype == np.int32
    assert offsets.dtype == np.int64
    rows = [ids[a:b].tolist() for a, b in itertools.pairwise(offsets)]
    assert rows == expected
    assert published.encode_batch_to_numpy([])[1].tolist() == [0]


def test_an_error_in_a_batch_names_the_text(published):
    with pytest.raises(TokenizerError, match=r"text 1: .*lone surrogate, U\+D800, at position 2"):
        published.encode_batch(["a", "ab\ud800"])
    with pytest.raises(TypeError):
        published.encode_batch("a")


def test_a_file_has_the_ids_of_its_text(published, tmp_path):
    text = "".join(corpora.standard_library(1_000_000))
    path = tmp_path / "text.txt"
    path.write_text(text, "utf-8", newline="")
    for threads in (1, 2, 3):
        ids = published.encode_file(path, threads=threads)
        assert ids.dtype == np.int32
        assert ids.tolist() == published.encode(text)
    path.write_bytes(b"")
    assert published.encode_file(path).tolist() == []
    path.write_bytes(b"ab\xff")
    with pytest.raises(TokenizerError, match="byte 2 is not UTF-8"):
        published.encode_file(path)
    with pytest.raises(TokenizerError, match="absent"):
        published.encode_file(tmp_path / "absent")


@pytest.mark.parametrize("threads", [1, 2])
def test_the_first_byte_that_is_not_utf8_is_named_wherever_it_is(published, tmp_path, threads):
    data = bytearray("".join(corpora.standard_library(1_000_000)).encode())
    path = tmp_path / "text.txt"
    for least in (len(data) - 2, 700_000, 3):
        at = next(at for at in range(least, 0, -1) if max(data[at - 1 : at + 2]) < 128)
        # A part of a character, which the byte after it does not go on with.
        data[at] = 0xE4
        path.write_bytes(data)
        with pytest.raises(TokenizerError, match=rf"byte {at} is not UTF-8"):
            published.encode_file(path, threads=threads)


@given(text=texts("<\uff5cUser\uff5c>", "<\uff5cbegin", "\U0001f600"))
def test_places_equal_hugging_face(family, text):
    if family.peer.normalizer is not None and family.peer.normalizer.normalize_str(text) != text:
        with pytest.raises(TokenizerError, match="normalization form C"):
            family.ours.encode_with_offsets(text)
        return
    found = family.peer.encode(text, add_special_tokens=False)
    ids, places = family.ours.encode_with_offsets(text)
    assert ids == found.ids
    assert places == found.offsets


@given(text=texts())
def test_counting_is_the_number_of_ids(family, text):
    assert family.ours.count(text) == len(family.ours.encode(text))


def test_the_cache_stays_within_its_limit(published):
    fresh = Tokenizer.from_file(families.PUBLISHED)
    assert fresh.cache_bytes == 0
    sources = corpora.standard_library(3_000_000)
    threads = [threading.Thread(target=lambda: fresh.encode_batch(sources)) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert 0 < fresh.cache_bytes <= 64 * 2**20
    assert fresh.encode(sources[0]) == published.encode(sources[0])


def test_many_threads_get_the_same_ids(published):
    sources = corpora.standard_library(400_000)
    expected = [published.encode(text) for text in sources]
    wrong = []

    def work():
        wrong.extend(
            1 for t, ids in zip(sources, expected, strict=True) if published.encode(t) != ids
        )

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


COUNT = """
import sys
from abyssal import Tokenizer
text = open(sys.argv[2], encoding="utf-8", newline="").read()
print(Tokenizer.from_file(sys.argv[1]).count(text))
"""


@pytest.mark.parametrize("method", ["fork", "new"])
def test_another_process_can_go_on(published, method, tmp_path):
    text = "".join(corpora.standard_library(1_200_000))
    expected = published.count(text)
    stop = threading.Event()

    # A fork in the middle of other threads' work leaves their caches lent for ever.
    def work():
        while not stop.is_set():
            published.encode_batch([text], threads=2)

    worker = threading.Thread(target=work)
    worker.start()
    try:
        time.sleep(0.05)
        if method == "fork":
            reading, writing = os.pipe()
            child = os.fork()
            if child == 0:
                count = sum(len(ids) for ids in published.encode_batch([text], threads=2))
                os.write(writing, str(count).encode())
                os._exit(0)
            os.close(writing)
            with os.fdopen(reading) as pipe:
                assert int(pipe.read()) == expected
            assert os.waitpid(child, 0)[1] == 0
        else:
            path = tmp_path / "text.txt"
            path.write_text(text, "utf-8", newline="")
            command = [sys.executable, "-c", COUNT, families.PUBLISHED, path]
            done = subprocess.run(command, capture_output=True, text=True, timeout=120)
            assert done.stdout == f"{expected}\n", done.stderr
    finally:
        stop.set()
        worker.join()
