r"""Byte-level BPE in plain Python: what `abyssal.Tokenizer` does, said as directly as it can be.

The splits are run as the patterns that the file spells, by the standard library's ``re``, with
``\p{...}`` written out from ``unicodedata``; so the classes have this interpreter's Unicode
version. Merging looks at all pairs, merges the best, and starts over. For texts of a few hundred
characters.
"""

from __future__ import annotations

import re
import sys
import unicodedata
from collections.abc import Iterator
from functools import cache
from typing import Any

__all__ = ["ReferenceTokenizer"]

# White_Space of the Unicode standard; `\s` of `re` has four control characters more.
SPACE = r"\t-\r \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"
PRINTABLE = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]


def _alphabet() -> dict[int, str]:
    """Return the character that stands for each byte: itself, or U+0100 and on, in order."""
    unprintable = [byte for byte in range(256) if byte not in PRINTABLE]
    return {byte: chr(byte) for byte in PRINTABLE} | {
        byte: chr(0x100 + place) for place, byte in enumerate(unprintable)
    }


@cache
def _category(initial: str) -> str:
    """Return the inside of a set: every code point whose general category starts so."""
    points = [p for p in range(sys.maxunicode + 1) if unicodedata.category(chr(p))[0] == initial]
    ranges: list[list[int]] = []
    for point in points:
        if ranges and ranges[-1][1] == point - 1:
            ranges[-1][1] = point
        else:
            ranges.append([point, point])
    return "".join(f"\\U{first:08x}-\\U{last:08x}" for first, last in ranges)


@cache
def _compile(pattern: str) -> re.Pattern[str]:
    """Compile a pattern of a tokenizer file, with its classes written out for ``re``."""
    written = []
    inside = False
    for token in re.findall(r"\\p\{\w\}|\\.|.", pattern, re.DOTALL):
        members = _category(token[3]) if token.startswith("\\p") else None
        if token == "\\s":
            members = SPACE
        if token == "\\S":
            written.append(f"[^{SPACE}]")
        elif members is not None:
            written.append(members if inside else f"[{members}]")
        elif inside and token == "[":
            written.append("\\[")
        else:
            inside = token == "[" or (inside and token != "]")
            written.append(token)
    return re.compile("".join(written))


def _isolate(pattern: re.Pattern[str], pieces: list[str]) -> Iterator[str]:
    """Split each piece so that every match, and every text between two, stands alone."""
    for piece in pieces:
        done = 0
        for match in pattern.finditer(piece):
            yield from (part for part in (piece[done : match.start()], match.group()) if part)
            done = match.end()
        if piece[done:]:
            yield piece[done:]


class ReferenceTokenizer:
    """A tokenizer from the parsed content of a ``tokenizer.json``.

    Args:
        spec: the file's JSON object, of one of the supported kinds; it is not checked.
    """

    def __init__(self, spec: dict[str, Any]) -> None:
        """Read the parts of the file that matter."""
        model = spec["model"]
        self.vocabulary: dict[str, int] = model["vocab"]
        self.ignore_merges = model.get("ignore_merges") is True
        self.composes = (spec.get("normalizer") or {}).get("type") == "NFC"
        pairs = [tuple(m.split(" ")) if isinstance(m, str) else tuple(m) for m in model["merges"]]
        self.ranks = {pair: rank for rank, pair in enumerate(pairs)}
        self.added: list[dict[str, Any]] = spec["added_tokens"]
        self.patterns: list[str] = [
            r"\p{N}" if step["type"] == "Digits" else step["pattern"]["Regex"]
            for step in spec["pre_tokenizer"]["pretokenizers"]
            if step["type"] != "ByteLevel"
        ]
        self.characters = _alphabet()
        self.bytes = {character: byte for byte, character in self.characters.items()}
        self.names = {i: name for name, i in self.vocabulary.items()}
        self.names.update((token["id"], token["content"]) for token in self.added)

    def pieces(self, text: str) -> list[str]:
        """Return the pieces that merging never crosses: one split after the other.

        Args:
            text: without added tokens.

        Returns:
            Pieces that are ``text``, end to end.
        """
        parts = [text] if text else []
        for pattern in self.patterns:
            parts = list(_isolate(_compile(pattern), parts))
        return parts

    def merge(self, piece: str) -> list[int]:
        """Return the ids of one piece: lowest rank first, the leftmost of equals.

        Args:
            piece: one of `pieces`.

        Returns:
            Token ids.

        Raises:
            KeyError: the vocabulary lacks a byte of the piece.
        """
        symbols = [self.characters[byte] for byte in piece.encode()]
        if self.ignore_merges and (whole := self.vocabulary.get("".join(symbols))) is not None:
            return [whole]
        while len(symbols) > 1:
            best = min(
                range(len(symbols) - 1),
                key=lambda i: self.ranks.get((symbols[i], symbols[i + 1]), len(self.ranks)),
            )
            pair = (symbols[best], symbols[best + 1])
            if pair not in self.ranks:
                break
            symbols[best : best + 2] = ["".join(pair)]
        return [self.vocabulary[symbol] for symbol in symbols]

    def encode(self, text: str, *, parse_special: bool = True) -> list[int]:
        """Return the ids of a text.

        Args:
            text: any text without lone surrogates.
            parse_special: whether added tokens in the text become their ids; without it only
                single characters not marked special do.

        Returns:
            Token ids.

        Guarantees: added tokens that are not normalized are found first, in all of the text;
        the others in what is left, brought to form C where the file says so; each time the
        leftmost, and the longest of those.
        """
        kept = [
            token
            for token in self.added
            if parse_special or (not token["special"] and len(token["content"]) == 1)
        ]
        parts: list[str | int] = [text]
        for normalized in (False, True):
            tokens = [token for token in kept if token["normalized"] == normalized]
            if normalized and self.composes:
                parts = [
                    part if isinstance(part, int) else unicodedata.normalize("NFC", part)
                    for part in parts
                ]
            parts = [
                found
                for part in parts
                for found in ([part] if isinstance(part, int) else _find(tokens, part))
            ]
        ids: list[int] = []
        for part in parts:
            if isinstance(part, int):
                ids.append(part)
            else:
                ids.extend(i for piece in self.pieces(part) for i in self.merge(piece))
        return ids

    def decode_bytes(self, ids: list[int]) -> bytes:
        """Return the bytes of ids.

        Args:
            ids: ids of this tokenizer.

        Returns:
            For each token the bytes that its name spells, or the name's own UTF-8 where a
            character is not of the byte-level alphabet.
        """
        out = b""
        for name in (self.names[i] for i in ids):
            spelled = all(character in self.bytes for character in name)
            out += bytes(self.bytes[c] for c in name) if spelled else name.encode()
        return out


def _find(tokens: list[dict[str, Any]], text: str) -> Iterator[str | int]:
    """Divide a text into added tokens' ids and what lies between."""
    ordered = sorted(tokens, key=lambda token: -len(token["content"]))
    alternatives = []
    for place, token in enumerate(ordered):
        before = f"[{SPACE}]*" if token["lstrip"] else ""
        after = f"[{SPACE}]*" if token["rstrip"] else ""
        alternatives.append(f"{before}(?P<t{place}>{re.escape(token['content'])}){after}")
    done = 0
    for match in re.finditer("|".join(alternatives) or r"(?!)", text):
        if match.start() > done:
            yield text[done : match.start()]
        yield int(ordered[int(str(match.lastgroup)[1:])]["id"])
        done = match.end()
    if done < len(text):
        yield text[done:]
