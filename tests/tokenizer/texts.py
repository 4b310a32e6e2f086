"""Random texts that reach every branch of the pre-tokenizers."""

import sys
import unicodedata

from hypothesis import strategies as st

# Where classes meet: spaces of every kind, digits of several scripts, marks, kana's punctuation and
# symbols, unassigned code points inside ranges, controls, and the ends of the sets' ranges.
EDGES = (
    "\t\n\x0b\x0c\r\x1c\x1f \x7f\x85\xa0\u1680\u2000\u200a\u200b\u200d\u2028\u2029\u202f\u3000"
    "019\u00b2\u0660\u0969\u2160\u3007\U0001d7ce\U00011de0\U00016ff4"
    "azAZ\u00b5\u00e9\u01bb\u0294\u03c9\u0436\u05d0\u0627\u0939\u0e01\u1f7d\u212a\ua78f\uac00\ud7ff"
    "\u0300\u064b\u093f\u20dd\u3099\ufe0f"
    "!'()_-#@[]{}\u00a1\u2018\u201f\u3001\u3002\u30fb\uff01\uff5e\u00ab"
    "$+<=>^`|~\u00a2\u00d7\u20ac\u309b\u2603\U0001f600"
    "\u3040\u3041\u3097\u309f\u30a0\u30ff\u3100\u4dff\u4e00\u9fa5\u9fa6\u07ff\u0800\u3400"
    "\x00\x08\x0e\u00ad\u0378\ue000\ufffe\ufffd\U0010ffff"
)
WORDS = (
    "abc",
    "Hello",
    " the",
    "\r\n",
    "  ",
    "1234567",
    "'ll",
    "...",
    "\u6df1\u5ea6",
    " = ",
    "()\n",
)


def texts(*more: str) -> st.SearchStrategy[str]:
    """Texts of edge characters, words, any characters, and the pieces given."""
    pieces = [st.sampled_from(EDGES), st.sampled_from(WORDS), st.characters(codec="utf-8")]
    if more:
        pieces.insert(0, st.sampled_from(more))
    return st.lists(st.one_of(pieces), max_size=60).map("".join)


# Blocks of many thousand letters that no pattern tells apart.
UNIFORM = (
    (0x3400, 0x4DC0),
    (0x4E00, 0x9FA0),
    (0xAC00, 0xD7A4),
    (0x17000, 0x18D00),
    (0x20000, 0x33480),
)


def assigned(*, thin: bool = False) -> list[str]:
    """Every code point that this interpreter's Unicode version assigns, private use left out.

    With ``thin`` only each 61st of those inside the large uniform blocks.
    """

    def kept(point: int) -> bool:
        inside = any(first < point < last - 1 for first, last in UNIFORM)
        return not (thin and inside and point % 61)

    points = (p for p in range(sys.maxunicode + 1) if kept(p))
    return [c for c in map(chr, points) if unicodedata.category(c) not in ("Cn", "Co", "Cs")]
