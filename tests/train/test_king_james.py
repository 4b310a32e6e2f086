"""The recipe's text: labels off, chapters apart, every twentieth from the eleventh held out."""

import lzma
import shutil
import subprocess

import pytest

from abyssal.train import king_james
from abyssal.train.king_james import Chapter, read_chapters, split_chapters


def printed(chapters: int = king_james.NUM_CHAPTERS, verses: int = king_james.NUM_VERSES) -> str:
    """A book of the right size: one verse a chapter, the rest in the last."""
    lines = [f"1Ki{number}:1 Verse: one." for number in range(1, chapters + 1)]
    lines += [f"1Ki{chapters}:{verse} And  more." for verse in range(2, verses - chapters + 2)]
    return "\n".join(lines) + "\n"


def test_labels_are_removed_and_the_verses_of_a_chapter_joined():
    chapters = split_chapters(printed())
    assert chapters[0] == Chapter(1, "1Ki1", "Verse: one.")
    assert chapters[-1].text.startswith("Verse: one.\nAnd  more.\nAnd  more.")


def test_every_twentieth_chapter_from_the_eleventh_is_held_out():
    held = [each.number for each in split_chapters(printed()) if each.held_out]
    assert held[:3] == [11, 31, 51]
    assert len(held) == 59


def test_a_text_of_another_size_or_another_text_is_refused(tmp_path):
    with pytest.raises(ValueError, match="expected 1189 chapters and 31102 verses, got 1188"):
        split_chapters(printed(chapters=1188))
    with pytest.raises(ValueError, match="not a labeled verse: 'In the beginning'"):
        split_chapters("In the beginning\n")
    (tmp_path / "text").write_text(printed())
    with pytest.raises(ValueError, match=r"has SHA-256 [0-9a-f]{64}, the recipe's has a0d90dc5"):
        read_chapters(tmp_path / "text")


def test_without_the_command_the_message_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(FileNotFoundError, match=r"'bible'; .*apt-get install bible-kjv"):
        read_chapters(tmp_path / "none")


def test_a_command_that_fails_is_an_error_with_its_words(tmp_path, monkeypatch):
    def failing(*_, **__):
        return subprocess.CompletedProcess(king_james.COMMAND, 2, "", "no such data file")

    monkeypatch.setattr(shutil, "which", lambda name: "/usr/bin/bible")
    monkeypatch.setattr(subprocess, "run", failing)
    with pytest.raises(ValueError, match="no such data file"):
        read_chapters(tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_the_written_texts_are_the_two_parts_of_the_whole(tmp_path):
    chapters = split_chapters(printed())
    files = king_james.write_held_out(chapters, tmp_path / "held_out")
    assert [file.name for file in files[:2]] == ["0011-1Ki11.txt", "0031-1Ki31.txt"]
    king_james.write_training_text(chapters, tmp_path / "text.xz")
    text = lzma.decompress((tmp_path / "text.xz").read_bytes()).decode()
    assert len(text.split("\n\n")) + len(files) == king_james.NUM_CHAPTERS
