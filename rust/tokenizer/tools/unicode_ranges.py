"""Write ``src/unicode_ranges.rs``: the character classes that the pre-tokenizers' patterns ask for.

The classes must be those of the regular-expression engine inside Hugging Face ``tokenizers``, whose Unicode version is
its own; so each code point is put to that engine, not to this interpreter's ``unicodedata``.

Usage: python rust/tokenizer/tools/unicode_ranges.py
"""

from pathlib import Path

from tokenizers import Regex, __version__, pre_tokenizers

PATTERNS = {
    "LETTER": r"\p{L}",
    "MARK": r"\p{M}",
    "NUMBER": r"\p{N}",
    "PUNCTUATION": r"\p{P}",
    "SYMBOL": r"\p{S}",
    "SPACE": r"\s",
    "NEWLINE": r"[\r\n]",
}
SURROGATES = range(0xD800, 0xE000)
TARGET = Path(__file__).parents[1] / "src" / "unicode_ranges.rs"


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
    classes = ["OTHER"] * 0x110000
    for name, pattern in PATTERNS.items():
        for point in members(pattern):
            classes[point] = name
    starts = [p for p in range(0x110000) if p == 0 or classes[p] != classes[p - 1]]
    # O, L, M, P and N are distinct initials but for NUMBER/NEWLINE and SYMBOL/SPACE.
    letters = {"NEWLINE": "R", "SPACE": "W"}
    entries = [f"({s:#x}, {letters.get(classes[s], classes[s][0])})" for s in starts]
    lines: list[str] = []
    line = "   "
    for entry in entries:
        if len(line) + len(entry) + 2 > 100:
            lines.append(line)
            line = "   "
        line += f" {entry},"
    lines.append(line)
    TARGET.write_text(
        "//! Character classes, as runs: each class holds from its code point to the next entry's.\n"
        f"//! Written by `tools/unicode_ranges.py` from `tokenizers` {__version__}; do not edit.\n\n"
        "use crate::unicode::{\n"
        "    LETTER as L, MARK as M, NEWLINE as R, NUMBER as N, OTHER as O, PUNCTUATION as P, SPACE as W,\n"
        "    SYMBOL as S,\n"
        "};\n\n"
        "/// `(first code point, class)`, ascending.\n"
        "#[rustfmt::skip]\n"
        f"pub(crate) static RUNS: [(u32, u8); {len(entries)}] = [\n" + "\n".join(lines) + "\n];\n",
        "utf-8",
    )


if __name__ == "__main__":
    main()
