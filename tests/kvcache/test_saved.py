"""Prefixes in files: what comes back, what is refused, and how they enter a cache."""

from __future__ import annotations

import gc
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from abyssal.errors import AbyssalError, SavedPrefixError
from abyssal.kvcache import PageCache, SavedPrefix, page_identities, save_prefix
from abyssal.reference.identity import page_identities as plain_identities

MODEL = {"fingerprint": "model 1", "dtype": "bf16 [27, 576]"}
IDS = list(range(8))
PAGES = np.arange(2 * 48, dtype=np.uint8)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "prefix"
    save_prefix(path, IDS, PAGES, page_size=4, **MODEL)
    return path


@pytest.mark.parametrize("mapped", [True, False])
def test_a_prefix_comes_back_as_it_was_saved(path, mapped):
    saved = SavedPrefix.open(path, mapped=mapped, **MODEL)
    assert saved.token_ids.tolist() == IDS
    assert (saved.num_pages, saved.page_size) == (2, 4)
    assert (saved.fingerprint, saved.dtype) == ("model 1", "bf16 [27, 576]")
    pages = np.asarray(saved.pages)
    assert pages.shape == (2, 48)
    assert pages.tobytes() == PAGES.tobytes()
    assert not pages.flags.writeable
    assert saved.pages.readonly


def test_views_of_the_pages_keep_the_file_mapped(path):
    pages = np.asarray(SavedPrefix.open(path, **MODEL).pages)
    path.unlink()
    gc.collect()
    assert pages.tobytes() == PAGES.tobytes()


@pytest.mark.filterwarnings("ignore:The given buffer is not writable")
def test_torch_reads_the_pages_where_they_lie(path):
    torch = pytest.importorskip("torch")
    saved = SavedPrefix.open(path, **MODEL)
    tensor = torch.frombuffer(saved.pages, dtype=torch.bfloat16).view(2, 24)
    assert tensor.view(torch.uint8).flatten().tolist() == PAGES.tolist()
    # Pages begin at a multiple of 4096, so every element type is aligned.
    assert tensor.data_ptr() % 4096 == 0
    save_prefix(path, torch.tensor(IDS), tensor.view(torch.uint8), page_size=4, **MODEL)
    assert SavedPrefix.open(path, **MODEL).pages.tobytes() == PAGES.tobytes()


def test_a_saved_prefix_enters_a_cache_and_is_matched(path):
    saved = SavedPrefix.open(path, **MODEL)
    cache, memory = PageCache(8, 4), np.zeros((8, 48), np.uint8)
    table = np.zeros((1, 8), np.int32)
    for times in range(2):
        handle, cached = cache.open(saved.token_ids, b"tenant")
        assert cached == times * 8
        cache.step([handle], [8 - cached], table)
        for place in range(cached // 4, saved.num_pages):
            memory[table[0, place]] = np.asarray(saved.pages)[place]
        cache.commit([handle], [8], True)
        cache.close(handle)
    handle, cached = cache.open([*IDS, 99], b"tenant")
    assert cached == 8
    cache.step([handle], [1], table)
    assert memory[table[0, :2]].tobytes() == PAGES.tobytes()


def refused(path: Path, message: str, **model: str) -> None:
    for mapped in (True, False):
        with pytest.raises(SavedPrefixError, match=message) as caught:
            SavedPrefix.open(path, mapped=mapped, **{**MODEL, **model})
        assert isinstance(caught.value, ValueError)
        assert isinstance(caught.value, AbyssalError)


def test_a_prefix_of_another_model_is_refused(path):
    refused(path, '"model 1", expected "model 2"', fingerprint="model 2")
    refused(path, 'dtype "bf16 .27, 576.", expected "fp8"', dtype="fp8")


@pytest.mark.parametrize(
    "place", [0, 8, 12, 16, 24, 40, 48, 56, 80, 100, 4095, 4096, 4150, -33, -1]
)
def test_a_file_with_a_byte_changed_is_refused(path, place):
    # Every single byte is changed in rust/kvcache/tests/saved.rs; here some, through the binding.
    data = bytearray(path.read_bytes())
    data[place] ^= 0x10
    path.write_bytes(data)
    refused(path, "saved prefix")


def test_a_cut_extended_empty_or_foreign_file_is_refused(path):
    data = path.read_bytes()
    for length in (0, 5, 60, 4096, len(data) - 1):
        path.write_bytes(data[:length])
        refused(path, "not a saved prefix" if length < 8 else f"has {length} bytes")
    path.write_bytes(data + b"\0")
    refused(path, "extended")
    path.write_bytes(b"GGUF" + bytes(9000))
    refused(path, "not a saved prefix")


def test_a_file_that_cannot_be_read_or_written_is_an_os_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        SavedPrefix.open(tmp_path / "none", **MODEL)
    with pytest.raises(OSError, match="no regular file"):
        SavedPrefix.open(tmp_path, **MODEL)
    with pytest.raises(FileNotFoundError, match="create"):
        save_prefix(tmp_path / "none" / "prefix", [], b"", **MODEL)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("ids", "pages", "page_size", "error", "message"),
    [
        ([1, 2, 3], b"ab", 2, ValueError, "3 entries"),
        ([1, 2, 3, 4], b"abc", 2, ValueError, "3 bytes"),
        ([1, 2], b"ab", 0, ValueError, "page_size is 0"),
        ([-1, 2], b"ab", 2, ValueError, "-1 is out of range"),
        ([1, 2], np.zeros(2, np.float32), 2, TypeError, "float32"),
        ([1, 2], np.zeros((4, 4), np.uint8)[:, ::2], 2, ValueError, "contiguous"),
        ([1, 2], "ab", 2, TypeError, "str"),
    ],
)
def test_what_cannot_be_saved_leaves_the_earlier_file(path, ids, pages, page_size, error, message):
    before = path.read_bytes()
    with pytest.raises(error, match=message):
        save_prefix(path, ids, pages, page_size=page_size, **MODEL)
    assert path.read_bytes() == before
    assert [each.name for each in path.parent.iterdir()] == ["prefix"]


@given(st.lists(st.integers(0, 2**32 - 1), max_size=20), st.integers(1, 9), st.binary(max_size=9))
def test_identities_are_those_of_plain_python(ids, page_size, salt):
    names = page_identities(ids, page_size, salt)
    assert names == plain_identities(ids, page_size, salt)
    assert len(names) == len(ids) // page_size


def test_identities_are_the_same_in_another_process():
    code = "from abyssal.kvcache import page_identities as p; print(p(range_, 4, b'x')[-1].hex())"
    code = code.replace("range_", "list(range(1000))")
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == page_identities(np.arange(1000), 4, b"x")[-1].hex()
    assert page_identities(np.arange(2000, dtype=np.uint32), 4, b"y")[:1] != page_identities(
        [0, 1, 2, 3], 4, b"x"
    )


def test_identities_refuse_a_page_size_out_of_range():
    with pytest.raises(ValueError, match="page_size is 0"):
        page_identities([1], 0)
