"""Write ``src/unicode_ranges.rs`` and ``src/unicode_cases.rs``: the classes that the patterns need.

The classes must be those of the pattern engine inside Hugging Face ``tokenizers``, whose Unicode
version is its own; so each code point is put to that engine, not to this interpreter.

Usage: python rust/tokenizer/tools/unicode_ranges.py
"""

from pathlib import Path

from tokenizers import Regex, __version__, pre_tokenizers

# Class pattern -> the letter that stands for it in the table; "O" is for none of them.
PATTERNS = {
    r"\p{L}": "L",
    r"\p{M}": "M",
    r"\p{N}": "N",
    r"\p{P}": "P",
    r"\p{S}": "S",
    r"\s": "W",
    r"[\r\n]": "R",
}
SURROGATES = range(0xD800, 0xE000)
SOURCES = Path(__file__).parents[1] / "src"
TARGET = SOURCES / "unicode_ranges.rs"
# The sets of Moonlight's and Kimi's pattern, as bits.
SETS = {
    r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]": 1,
    r"[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]": 2,
    r"\p{Han}": 4,
}
CASES_HEADER = """\
//! Sets of letters, as runs: each value holds from its code point to the next entry's. 1: upper
//! case, title case, modifiers, letters without case and marks; 2: lower case and the same others;
//! 4: Han, which is in neither.
//! Written by `tools/unicode_ranges.py` from `tokenizers` {version}; do not edit.

/// `(first code point, sets)`, ascending.
#[rustfmt::skip]
pub(crate) static CASES: [(u32, u8); {count}] = [
{lines}
];
"""
HEADER = """\
//! Character classes, as runs: each class holds from its code point to the next entry's.
//! Written by `tools/unicode_ranges.py` from `tokenizers` {version}; do not edit.

use crate::unicode::{{
    LETTER as L, MARK as M, NEWLINE as R, NUMBER as N, OTHER as O, PUNCTUATION as P, SPACE as W,
    SYMBOL as S,
}};

/// `(first code point, class)`, ascending.
#[rustfmt::skip]
pub(crate) static RUNS: [(u32, u8); {count}] = [
{lines}
];
"""


def members(pattern: str) -> set[int]:
    """Return the code points that ``pattern`` matches on their own."""
    split = pre_tokenizers.Split(Regex(pattern), "removed", invert=True)
    found: set[int] = set()
    for start in range(0, 0x110000, 0x4000):
        block = range(start, min(start + 0x4000, 0x110000))
        text = "".join(chr(point) for point in block if point not in SURROGATES)
        found.update(ord(piece) for piece, _ in split.pre_tokenize_str(text))
    return found


def runs(values: list[str]) -> tuple[int, str]:
    """Return how many runs of equal values there are, and the lines that list them."""
    starts = [p for p in range(0x110000) if p == 0 or values[p] != values[p - 1]]
    lines = ["   "]
    for start in starts:
        entry = f" ({start:#x}, {values[start]}),"
        if len(lines[-1]) + len(entry) > 100:
            lines.append("   ")
        lines[-1] += entry
    return len(starts), "\n".join(lines)


def main() -> None:
    """Ask for every code point, merge equal neighbors, write the tables."""
    classes = ["O"] * 0x110000
    for pattern, letter in PATTERNS.items():
        for point in members(pattern):
            classes[point] = letter
    count, lines = runs(classes)
    TARGET.write_text(HEADER.format(version=__version__, count=count, lines=lines), "utf-8")
    sets = [0] * 0x110000
    for pattern, bit in SETS.items():
        for point in members(pattern):
            sets[point] |= bit
    count, lines = runs([str(value) for value in sets])
    text = CASES_HEADER.format(version=__version__, count=count, lines=lines)
    (SOURCES / "unicode_cases.rs").write_text(text, "utf-8")


if __name__ == "__main__":
    main()
