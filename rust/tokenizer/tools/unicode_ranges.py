"""Write ``src/unicode_ranges.rs``: the character classes that the pre-tokenizers' patterns need.

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
TARGET = Path(__file__).parents[1] / "src" / "unicode_ranges.rs"
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


def main() -> None:
    """Ask for every code point, merge equal neighbors, write the table."""
    classes = ["O"] * 0x110000
    for pattern, letter in PATTERNS.items():
        for point in members(pattern):
            classes[point] = letter
    starts = [p for p in range(0x110000) if p == 0 or classes[p] != classes[p - 1]]
    lines = ["   "]
    for start in starts:
        entry = f" ({start:#x}, {classes[start]}),"
        if len(lines[-1]) + len(entry) > 100:
            lines.append("   ")
        lines[-1] += entry
    text = HEADER.format(version=__version__, count=len(starts), lines="\n".join(lines))
    TARGET.write_text(text, "utf-8")


if __name__ == "__main__":
    main()
