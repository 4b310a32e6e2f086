"""The examples in the documents run, and the documents name only what exists."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = ["README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md"]
LONGEST = {"README.md": 150, "ARCHITECTURE.md": 200, "CONTRIBUTING.md": 80}


def blocks(language: str) -> list[str]:
    text = (ROOT / "README.md").read_text("utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```", text, flags=re.M | re.S)


@pytest.mark.parametrize("number", range(len(blocks("python"))))
def test_the_examples_in_the_readme_run(number, capsys):
    code = blocks("python")[number]
    exec(compile(code, f"README.md, example {number + 1}", "exec"), {"__name__": "example"})


def test_the_readme_has_examples_and_some_of_them_assert():
    assert any("assert" in code for code in blocks("python"))


@pytest.mark.parametrize("name", LONGEST)
def test_documents_are_short_enough_to_be_read(name):
    assert len((ROOT / name).read_text("utf-8").splitlines()) <= LONGEST[name]


@pytest.mark.parametrize("name", DOCUMENTS)
def test_make_targets_named_in_documents_exist(name):
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text("utf-8"), flags=re.M))
    named = re.findall(r"(?:^|`)make ([a-z-]+)", (ROOT / name).read_text("utf-8"), flags=re.M)
    assert set(named) <= targets


@pytest.mark.parametrize("name", DOCUMENTS)
def test_links_to_files_lead_to_files(name):
    text = (ROOT / name).read_text("utf-8")
    for target in re.findall(r"\]\(([^)#]+)\)", text):
        if "://" not in target:
            assert (ROOT / target).exists(), target


def test_the_architecture_names_every_package_folder_and_crate():
    text = (ROOT / "ARCHITECTURE.md").read_text("utf-8")
    for folder in [*(ROOT / "python" / "abyssal").iterdir(), *(ROOT / "rust").iterdir()]:
        if folder.is_dir() and folder.name != "__pycache__":
            assert f"{folder.parent.name}/{folder.name}" in text, folder


def test_files_named_in_the_architecture_exist():
    text = (ROOT / "ARCHITECTURE.md").read_text("utf-8")
    for name in re.findall(r"`((?:[a-z_]+/)+[a-z_]+\.(?:py|rs))`", text):
        places = [ROOT / name, ROOT / "python" / "abyssal" / name]
        assert any(place.is_file() for place in places), name
