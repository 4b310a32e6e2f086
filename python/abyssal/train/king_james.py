"""The text of the bundled model: the King James Bible, from Debian's ``bible-kjv``.

``bible -f "Gen1:1-Rev22:21"`` prints one verse a line behind its label, ``Ge1:1 In the beginning``.
The labels are removed and the verses of a chapter joined by newlines; a chapter is a document.
Every twentieth chapter from the eleventh on (11, 31, 51, ... of the 1,189 in printed order) is held
out, from the vocabulary too.
"""

from __future__ import annotations

import hashlib
import lzma
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

COMMAND = ("bible", "-f", "Gen1:1-Rev22:21")
INSTALL = "the text comes from Debian's bible-kjv: sudo apt-get install bible-kjv"
NUM_CHAPTERS, NUM_VERSES = 1189, 31102
#: Of the chapters joined by a blank line: a run that is to be repeated starts from this text.
SHA256 = "a0d90dc55b2503994f7725578fbeeeeac35e399dd9cb4963f9c31796cd247183"
_VERSE = re.compile(r"([1-3]?[A-Za-z]+)(\d+):(\d+) (.*)")


@dataclass(frozen=True)
class Chapter:
    """A chapter.

    Attributes:
        number: Its place in printed order, from 1.
        name: Book and chapter, as in ``Ge1``.
        text: Its verses, joined by newlines.
    """

    number: int
    name: str
    text: str

    @property
    def held_out(self) -> bool:
        """Whether no part of the training may see it."""
        return self.number % 20 == 11


def split_chapters(printed: str) -> list[Chapter]:
    """Take the printed verses apart.

    Raises:
        ValueError: a line that is no verse; fewer chapters or verses than the Bible has.
    """
    verses: dict[str, list[str]] = {}
    for line in printed.splitlines():
        if not line:
            continue
        match = _VERSE.fullmatch(line)
        if match is None:
            raise ValueError(f"not a labeled verse: {line[:60]!r}")
        verses.setdefault(match[1] + match[2], []).append(match[4])
    count = sum(len(each) for each in verses.values())
    if (len(verses), count) != (NUM_CHAPTERS, NUM_VERSES):
        raise ValueError(
            f"expected {NUM_CHAPTERS} chapters and {NUM_VERSES} verses, "
            f"got {len(verses)} and {count}"
        )
    return [
        Chapter(number, name, "\n".join(lines))
        for number, (name, lines) in enumerate(verses.items(), start=1)
    ]


def read_chapters(cache: Path) -> list[Chapter]:
    """Return the chapters, printed once and kept in the file ``cache``.

    Raises:
        ValueError: as ``split_chapters``, or the text is not the one the recipe was made with.
        FileNotFoundError: ``bible`` is not installed; the message says how to get it.
    """
    if not cache.exists():
        if shutil.which(COMMAND[0]) is None:
            raise FileNotFoundError(f"there is no command {COMMAND[0]!r}; {INSTALL}")
        done = subprocess.run(COMMAND, capture_output=True, text=True, check=False)
        if done.returncode:
            raise ValueError(f"{' '.join(COMMAND)} failed: {done.stderr.strip()[:200]}; {INSTALL}")
        cache.parent.mkdir(parents=True, exist_ok=True)
        cache.write_text(done.stdout, encoding="utf-8")
    chapters = split_chapters(cache.read_text(encoding="utf-8"))
    found = fingerprint(chapters)
    if found != SHA256:
        raise ValueError(f"the text in {cache} has SHA-256 {found}, the recipe's has {SHA256}")
    return chapters


def fingerprint(chapters: list[Chapter]) -> str:
    """Return the SHA-256 of the chapters joined by blank lines."""
    joined = "\n\n".join(each.text for each in chapters)
    return hashlib.sha256(joined.encode("utf-8")).hexdigest()


def write_held_out(chapters: list[Chapter], folder: Path) -> list[Path]:
    """Write each held-out chapter to a file, ready for ``abyssal evaluate``."""
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for chapter in chapters:
        if chapter.held_out:
            files.append(folder / f"{chapter.number:04}-{chapter.name}.txt")
            files[-1].write_text(chapter.text, encoding="utf-8")
    return files


def write_training_text(chapters: list[Chapter], file: Path) -> None:
    """Write the chapters that are not held out, a blank line between them, compressed."""
    text = "\n\n".join(each.text for each in chapters if not each.held_out)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(lzma.compress(text.encode("utf-8"), preset=9 | lzma.PRESET_EXTREME))
