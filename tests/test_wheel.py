"""The wheel that users install: its tag, its size, and that it works without torch or a compiler.

The wheel is built once for this file, from the sources as they are; building needs no network.
"""

import json
import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import venv
import zipfile
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parent.parent
LARGEST_WHEEL = 20_000_000


def run(*command, **options) -> str:
    done = subprocess.run(
        [str(word) for word in command], capture_output=True, text=True, timeout=900, **options
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def tool(name: str) -> Path:
    return Path(sys.executable).parent / name


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("dist")
    run(tool("maturin"), "build", "--release", "--locked", "--offline", "--out", out, cwd=ROOT)
    (found,) = out.glob("*.whl")
    return found


@pytest.fixture(scope="module")
def bare(wheel, tmp_path_factory) -> Path:
    """The Python of a clean environment: this wheel and numpy; no torch, no compiler."""
    folder = tmp_path_factory.mktemp("bare")
    venv.create(folder, with_pip=True, symlinks=True)
    python = folder / "bin" / "python"
    site = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip())
    # numpy as it is installed here: copying it needs no network.
    here = Path(np.__file__).parent.parent
    for name in ("numpy", "numpy.libs"):
        if (here / name).is_dir():
            shutil.copytree(here / name, site / name)
    empty = folder / "no-tools"
    empty.mkdir()
    run(
        *(python, "-m", "pip", "install", "--no-deps", "--no-index", "--quiet", wheel),
        env={"PATH": str(empty), "HOME": str(folder)},
    )
    return python


def test_the_wheel_has_the_model_and_is_at_most_twenty_megabytes(wheel):
    assert wheel.stat().st_size <= LARGEST_WHEEL
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    for needed in ("config.json", "model.safetensors", "tokenizer.json", "MODEL_CARD.md"):
        assert f"abyssal/assets/king_james/{needed}" in names
    assert "abyssal/py.typed" in names
    assert "abyssal/_core.pyi" in names
    assert not [name for name in names if "__pycache__" in name or name.startswith("tests/")]


def test_the_wheel_is_for_every_python_from_3_11_and_links_no_torch(wheel):
    assert "-cp311-abi3-" in wheel.name
    with zipfile.ZipFile(wheel) as archive:
        (extension,) = [name for name in archive.namelist() if name.endswith(".so")]
        content = archive.read(extension)
    assert b"libtorch" not in content
    assert b"libc10" not in content


@pytest.mark.skipif(sys.platform != "linux", reason="manylinux tags are for Linux")
def test_auditwheel_agrees_with_the_manylinux_tag(wheel):
    shown = run(tool("auditwheel"), "show", wheel)
    tags = re.findall(r'"(manylinux_2_\d+_\w+)"', shown)
    assert tags, shown
    assert tags[0] in wheel.name


def test_the_extension_uses_the_stable_interface_of_python_only(wheel):
    assert "0 ABI violations found" in " ".join(
        run(tool("abi3audit"), "--strict", "--summary", wheel).split()
    )


def test_the_source_distribution_is_complete_and_its_dependencies_are_the_locked_ones(tmp_path):
    run(tool("maturin"), "sdist", "--out", tmp_path, cwd=ROOT)
    (archive,) = tmp_path.glob("*.tar.gz")
    run("tar", "-xzf", archive, "-C", tmp_path)
    (folder,) = [path for path in tmp_path.iterdir() if path.is_dir()]
    for needed in ("Cargo.lock", "LICENSE", "README.md", "pyproject.toml", "rust/quant/Cargo.toml"):
        assert (folder / needed).is_file(), needed
    # Building from it resolves every crate, at the versions that were tested. (It leaves out the
    # benches, so the lock file has entries to spare; that must not be an error.)
    flags = ("--offline", "--format-version", "1", "--manifest-path", "rust/bindings/Cargo.toml")
    done = subprocess.run(
        ["cargo", "metadata", *flags], cwd=folder, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    locked = {
        (crate["name"], crate["version"])
        for crate in tomllib.loads((ROOT / "Cargo.lock").read_text("utf-8"))["package"]
    }
    used = {(crate["name"], crate["version"]) for crate in json.loads(done.stdout)["packages"]}
    assert used <= locked
    settings = tomllib.loads((folder / "pyproject.toml").read_text("utf-8"))["tool"]["maturin"]
    assert not settings.get("locked")


def test_the_page_cache_works_without_torch(bare):
    code = """
import sys
from abyssal.kvcache import PageCache
import numpy as np
cache = PageCache(4, 64)
handle, cached = cache.open([1, 2, 3])
table = np.full((1, 4), -1, np.int32)
assert cache.step([handle], [65], table) == []
cache.commit([handle], [65], True)
cache.close(handle)
cache.audit()
assert "torch" not in sys.modules
print(cached, table.tolist())
"""
    assert run(bare, "-I", "-c", code).split("\n")[0] == "0 [[0, 1, -1, -1]]"


def test_the_tokenizer_works_without_torch(bare):
    code = """
import pathlib, sys
import abyssal
folder = pathlib.Path(abyssal.__file__).parent / "assets" / "king_james"
tokenizer = abyssal.Tokenizer.from_file(folder / "tokenizer.json")
text = "In the beginning God created the heaven and the earth."
ids = tokenizer.encode(text)
assert tokenizer.decode(ids) == text
assert tokenizer.encode_to_numpy(text).tolist() == ids
assert tokenizer.count(text) == len(ids)
assert "torch" not in sys.modules
print("ok")
"""
    assert run(bare, "-I", "-c", code).strip() == "ok"


def test_a_name_that_needs_torch_says_so_where_torch_is_absent(bare):
    done = subprocess.run(
        [bare, "-I", "-c", "import abyssal; abyssal.LLM"],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode != 0
    assert "torch" in done.stderr.splitlines()[-1]


def test_the_bare_environment_really_has_no_torch(bare):
    done = subprocess.run(
        [bare, "-I", "-c", "import torch"], capture_output=True, text=True, timeout=60
    )
    assert "No module named 'torch'" in done.stderr
    assert sysconfig.get_path("purelib") not in run(bare, "-I", "-c", "import sys; print(sys.path)")
