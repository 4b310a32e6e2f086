"""Wrong arguments, threads, interruption, and life without torch."""

import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from abyssal.errors import TokenizerError

from . import families


def test_a_lone_surrogate_is_an_error_that_names_its_position(published):
    for call in (published.encode, published.encode_to_numpy, published.count):
        with pytest.raises(TokenizerError, match=r"lone surrogate, U\+D800, at position 3;"):
            call("a\u00e9b\ud800c")
    with pytest.raises(TokenizerError, match=r"text 1: .*U\+DFFF, at position 0;"):
        published.encode_batch(["fine", "\udfff"])


@pytest.mark.parametrize("bad", [-1, 129_280, 2**40, -(2**63)])
def test_an_id_out_of_range_is_an_error_with_the_number_and_the_largest(published, bad):
    message = f"token id {bad} is not in this tokenizer, whose largest id is 129279"
    for call in (published.decode, published.decode_bytes):
        with pytest.raises(TokenizerError, match=message):
            call([5, bad])
    stream = published.stream()
    stream.push(published.encode_bytes(b"\xe4")[0])
    with pytest.raises(TokenizerError, match=message):
        stream.push(bad)
    # The stream is as it was: the rest of the character still completes it.
    rest = [
        stream.push(i) for i in published.encode_bytes(b"\xb8") + published.encode_bytes(b"\xad")
    ]
    assert "".join(rest) == "\u4e2d"


def test_an_id_beyond_64_bits_is_an_error(published):
    with pytest.raises(TokenizerError, match="does not fit in 64 bits"):
        published.decode([2**70])


def test_wrong_types_are_type_errors(published):
    for call, value in [
        (published.encode, b"bytes"),
        (published.encode, None),
        (published.encode_batch, "one text"),
        (published.encode_batch, ["a", 1]),
        (published.encode_bytes, "text"),
        (published.decode, [1.5]),
        (published.decode, ["1"]),
        (published.decode, 5),
    ]:
        with pytest.raises(TypeError):
            call(value)


def test_empty_input_gives_empty_output(published):
    assert published.encode("") == published.encode_bytes(b"") == published.encode_batch([]) == []
    assert published.encode_to_numpy("").shape == (0,)
    assert published.count("") == 0
    assert published.decode([]) == ""
    assert published.decode_bytes([]) == b""
    assert published.stream().finish() == ""


def test_bytes_like_objects_encode_as_bytes(published):
    ids = published.encode_bytes(b"a\xff b")
    assert published.encode_bytes(bytearray(b"a\xff b")) == ids
    assert published.encode_bytes(memoryview(b"a\xff b")) == ids


def test_threads_share_a_tokenizer_and_get_the_same_ids(published):
    texts = [f"{number} \u6df1\u5ea6\u6c42\u7d22 engine\n" * 200 for number in range(32)]
    expected = [published.encode(text) for text in texts]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(published.encode, texts)) == expected


def test_other_threads_run_while_a_long_text_is_encoded(published):
    text = "the quick brown fox " * 400_000
    worker = threading.Thread(target=published.encode_to_numpy, args=(text,))
    ticks = 0
    worker.start()
    while worker.is_alive():
        time.sleep(0.001)
        ticks += 1
    # With the lock held throughout, this thread would wake up once, at the end.
    assert ticks >= 3


@pytest.mark.parametrize(
    ("unit", "count"), [("the quick brown fox ", 10_000_000), ("etaoin", 4_000_000)]
)
def test_interruption_ends_a_long_encoding_and_the_tokenizer_stays_usable(published, unit, count):
    # The second unit makes one piece of the whole text, which only merging can interrupt. A signal
    # is looked for every tenth of a second; the first text takes twice that at 1 GB a second.
    text = unit * count
    timer = threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    try:
        with pytest.raises(KeyboardInterrupt):
            published.encode_to_numpy(text)
    finally:
        timer.cancel()
    assert published.decode(published.encode("as before")) == "as before"


def test_a_long_piece_takes_time_in_proportion_to_its_length(published):
    # Merging by repeated search would take 100 times as long for 10 times the text; the heap takes
    # about 12. A factor of 40 tells the two apart on a busy machine.
    def seconds(length):
        text = "etaoinshrdlu" * (length // 12)
        start = time.process_time()
        published.encode_to_numpy(text)
        return time.process_time() - start

    seconds(50_000)
    assert seconds(500_000) < 40 * max(seconds(50_000), 0.001)


def test_the_tokenizer_works_where_torch_cannot_be_imported():
    script = (
        "import sys\n"
        "sys.modules['torch'] = None\n"
        "import abyssal\n"
        f"tokenizer = abyssal.Tokenizer.from_file({str(families.PUBLISHED)!r})\n"
        "assert tokenizer.decode(tokenizer.encode('text')) == 'text'\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=120)
