import json
import os
import shutil
import socket
import subprocess
import sys
from collections import namedtuple
from pathlib import Path

import pytest
from hub_server import COMMIT, HubServer

from abyssal import LLM, SamplingParams
from abyssal.errors import CheckpointError
from abyssal.models import hub
from abyssal.testing.checkpoints import write_checkpoint

Usage = namedtuple("Usage", "total used free")

FILES = {
    "config.json": b'{"model_type": "deepseek_v3"}',
    "tokenizer.json": b"{}",
    "tokenizer.model": b"model",
    "chat_template.jinja": b"{{ messages }}",
    "model.safetensors": bytes(range(256)) * 1000,
    "README.md": b"# read me",
    "modeling_deepseek.py": b"raise SystemExit",
    "pytorch_model.bin": b"pickle",
    "figures/benchmark.png": b"png",
}
WANTED = {
    "config.json",
    "tokenizer.json",
    "tokenizer.model",
    "chat_template.jinja",
    "model.safetensors",
}


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty hub cache, no proxy and no offline switch."""
    from huggingface_hub import constants

    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    return tmp_path / "cache"


@pytest.fixture
def server(monkeypatch):
    with HubServer({"owner/name": dict(FILES)}) as running:
        monkeypatch.setenv("HF_ENDPOINT", running.url)
        yield running


def closed_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def test_a_folder_that_exists_is_returned_as_it_is(tmp_path):
    assert hub.resolve(tmp_path) == tmp_path
    assert hub.resolve(str(tmp_path)) == tmp_path


def test_a_name_is_fetched_whole_and_byte_for_byte(cache, server):
    folder = hub.resolve("owner/name")
    assert {path.name for path in folder.iterdir()} == WANTED
    for name in WANTED:
        assert (folder / name).read_bytes() == FILES[name]
    assert folder == cache / "models--owner--name" / "snapshots" / COMMIT


def test_nothing_but_weights_settings_and_tokenizer_files_is_asked_for(cache, server):
    hub.resolve("owner/name")
    assert set(server.fetched("GET")) <= WANTED
    assert set(server.fetched("HEAD")) <= WANTED


def test_a_complete_copy_in_the_cache_needs_no_request(cache, server):
    first = hub.resolve("owner/name")
    server.requests.clear()
    assert hub.resolve("owner/name") == first
    assert server.requests == []


def test_an_incomplete_copy_is_completed_with_the_missing_file_alone(cache, server):
    folder = hub.resolve("owner/name")
    (folder / "model.safetensors").unlink()
    for blob in (cache / "models--owner--name" / "blobs").iterdir():
        if blob.stat().st_size == len(FILES["model.safetensors"]):
            blob.unlink()
    server.requests.clear()
    again = hub.resolve("owner/name")
    assert (again / "model.safetensors").read_bytes() == FILES["model.safetensors"]
    assert set(server.fetched("GET")) <= {"model.safetensors"}


def test_size_and_free_disk_are_told_before_the_first_file(cache, server):
    lines = []
    hub.resolve("owner/name", say=lambda line: lines.append((line, list(server.fetched("GET")))))
    first, fetched_before = lines[0]
    assert fetched_before == []
    total = sum(len(FILES[name]) for name in WANTED)
    assert hub.human_bytes(total) in first
    assert "free" in first
    assert [line.split(": ")[0] for line, _ in lines[1:]] == [
        f"fetching {n} of 5" for n in range(1, 6)
    ]


def test_the_command_line_runs_a_model_by_its_name(cache, server, tmp_path):
    folder = tmp_path / "tiny"
    write_checkpoint(folder, num_shards=2)
    server.repositories["owner/tiny"] = {file.name: file.read_bytes() for file in folder.iterdir()}
    command = [sys.executable, "-m", "abyssal", "generate", "--token-ids", "1,2", "-n", "3"]
    done = subprocess.run(
        [*command, "-t", "0", "--model", "owner/tiny"],
        env={**os.environ, "HF_ENDPOINT": server.url, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    params = SamplingParams(max_tokens=3, temperature=0)
    expected = LLM(folder).generate([1, 2], params)[0].outputs[0].token_ids
    assert [int(word) for word in done.stdout.split()] == expected
    assert "owner/tiny: 4 of 4 files to fetch" in done.stderr
    assert "fetching 4 of 4: model-00002-of-00002.safetensors" in done.stderr


def test_settings_are_fetched_before_weights(cache, server):
    lines = []
    hub.resolve("owner/name", say=lines.append)
    assert "model.safetensors" in lines[-1]


def test_too_little_disk_is_refused_before_anything_is_fetched(cache, server, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(10**6, 10**6 - 1000, 1000))
    with pytest.raises(CheckpointError, match=r"needs 256 kB of disk, but .* has 1\.0 kB free"):
        hub.resolve("owner/name", say=lambda _: None)
    assert server.fetched("GET") == []


def test_a_transfer_that_breaks_off_leaves_no_checkpoint_and_goes_on_later(cache, server):
    # huggingface_hub writes in pieces of 10 MB and resumes at a whole piece.
    weights = bytes(range(256)) * 90_000
    server.repositories["owner/name"]["model.safetensors"] = weights
    server.cut_after = 21_000_000
    try:
        folder = hub.resolve("owner/name", say=lambda _: None)
    except CheckpointError as error:
        assert "model.safetensors could not be fetched" in str(error)
        assert not (cache / "models--owner--name" / "refs" / "main").exists()
        folder = hub.resolve("owner/name", say=lambda _: None)
    assert (folder / "model.safetensors").read_bytes() == weights
    ranges = [
        asked
        for verb, path, asked in server.requests
        if verb == "GET" and path.startswith("/store/")
    ]
    assert len(ranges) == 2
    assert ranges[1] == "bytes=20971520-"


def test_a_file_of_another_size_than_listed_is_refused(cache, server):
    server.listed_sizes["tokenizer.model"] = 6
    with pytest.raises(CheckpointError, match=r"tokenizer\.model has 5 bytes, the hub lists 6"):
        hub.resolve("owner/name", say=lambda _: None)


def test_a_repository_of_pickled_weights_is_refused_by_name(cache, server):
    server.repositories["owner/pickled"] = {"config.json": b"{}", "pytorch_model.bin": b"x"}
    with pytest.raises(
        CheckpointError, match=r"holds only pytorch_model\.bin; .* \.safetensors files only"
    ):
        hub.resolve("owner/pickled")
    assert server.fetched("GET") == []


def test_a_repository_without_configuration_is_refused(cache, server):
    server.repositories["owner/data"] = {"data.json": b"{}"}
    with pytest.raises(CheckpointError, match=r"no config\.json"):
        hub.resolve("owner/data")


def test_an_index_that_names_absent_shards_is_refused_with_their_names(cache, server):
    index = json.dumps(
        {"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}
    ).encode()
    server.repositories["owner/holes"] = {
        "config.json": b"{}",
        "model.safetensors.index.json": index,
        "model-1.safetensors": b"one",
    }
    with pytest.raises(
        CheckpointError, match=r"names files it does not hold: model-2\.safetensors"
    ):
        hub.resolve("owner/holes", say=lambda _: None)


def test_an_unknown_name_says_where_it_looked(cache, server):
    with pytest.raises(CheckpointError) as caught:
        hub.resolve("owner/unknown")
    message = str(caught.value)
    assert str(cache / "models--owner--unknown") in message
    assert str(Path("owner/unknown").absolute()) in message
    assert f"{server.url} knows no such model" in message


def test_offline_says_where_it_looked_and_asks_nobody(cache, server, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(CheckpointError) as caught:
        hub.resolve("owner/name")
    assert str(cache / "models--owner--name") in str(caught.value)
    assert "HF_HUB_OFFLINE" in str(caught.value)
    assert server.requests == []


def test_offline_uses_a_complete_copy_in_the_cache(cache, server, monkeypatch):
    folder = hub.resolve("owner/name", say=lambda _: None)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert hub.resolve("owner/name") == folder


def test_a_hub_that_does_not_answer_is_named_with_the_places_looked_at(cache, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{closed_port()}")
    with pytest.raises(CheckpointError) as caught:
        hub.resolve("owner/name")
    assert str(cache / "models--owner--name") in str(caught.value)
    assert os.environ["HF_ENDPOINT"] in str(caught.value)
    assert "could not be asked" in str(caught.value)


@pytest.mark.parametrize(
    "name", ["", "no-such-folder", "/no/such/folder", "../up", "a/b/c", "a/..", "a/b--c", "a b/c"]
)
def test_what_is_neither_folder_nor_name_is_refused_without_a_request(cache, server, name):
    with pytest.raises(CheckpointError):
        hub.resolve(name)
    assert server.requests == []


def test_a_file_in_place_of_a_folder_is_refused(tmp_path):
    file = tmp_path / "model.safetensors"
    file.write_bytes(b"")
    with pytest.raises(CheckpointError, match="is a file: give the folder"):
        hub.resolve(file)


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"HF_HUB_CACHE": "/a", "HF_HOME": "/b"}, "/a"),
        ({"HF_HOME": "/b", "XDG_CACHE_HOME": "/c"}, "/b/hub"),
        ({"XDG_CACHE_HOME": "/c"}, "/c/huggingface/hub"),
    ],
)
def test_the_cache_folder_is_where_huggingface_hub_keeps_it(monkeypatch, variables, expected):
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert hub.cache_folder() == Path(expected)


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 bytes"),
        (999, "999 bytes"),
        (1000, "1.0 kB"),
        (4_650_000, "4.7 MB"),
        (671_000_000_000, "671 GB"),
        (10**13, "10.0 TB"),
    ],
)
def test_byte_counts_are_written_in_decimal_units(count, text):
    assert hub.human_bytes(count) == text
