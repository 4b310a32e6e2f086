"""``abyssal tokenize``: a text's tokens, each in a color of its own, with ids and bytes."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from abyssal.cli.console import notes, printable, results
from abyssal.cli.options import JsonOption
from abyssal.tokenizer import Tokenizer

#: Backgrounds that neighbors take in turn, and the color of control tokens.
COLORS = ("on #264653", "on #6d597a", "on #355070", "on #56642b", "on #7f4f24")
CONTROL = "bold white on #9b2226"


def tokenize(
    path: Annotated[Path, typer.Argument(help="A checkpoint's folder, or its tokenizer file.")],
    text: Annotated[str | None, typer.Argument(help="The text; default: standard input.")] = None,
    plain: Annotated[
        bool, typer.Option("--plain", help="Let no text become a control token.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Show a text's tokens with their ids and bytes.

    The text comes first, each token in a color of its own and control tokens in red; then a line
    for each token: its id, its bytes and its text. Bytes that are no text on their own stand as
    their numbers.
    """
    tokenizer = Tokenizer.from_pretrained(path) if path.is_dir() else Tokenizer.from_file(path)
    if text is None:
        text = sys.stdin.read()
    ids = tokenizer.encode(text, parse_special=not plain)
    controls = set(tokenizer.added_tokens.values())
    tokens = [(i, tokenizer.decode_bytes([i]), i in controls) for i in ids]
    if as_json:
        rows = [
            {"id": i, "bytes": b.hex(" "), "text": _shown(b), "control": c} for i, b, c in tokens
        ]
        print(json.dumps({"count": len(ids), "tokens": rows}, ensure_ascii=False, indent=2))
        return
    console = results()
    colored = Text()
    for place, (_, data, control) in enumerate(tokens):
        style = CONTROL if control else COLORS[place % len(COLORS)]
        colored.append(printable(_shown(data)), style)
    console.print(colored, soft_wrap=True)
    for place, (token_id, data, control) in enumerate(tokens):
        style = CONTROL if control else COLORS[place % len(COLORS)]
        line = Text(f"{token_id:>8}  {data.hex(' '):<24}  ")
        line.append(repr(_shown(data)), style)
        console.print(line, soft_wrap=True)
    size = len(text.encode())
    each = f", {size / len(ids):.2f} bytes each" if ids else ""
    notes().print(f"{len(ids)} tokens, {size} bytes{each}", markup=False)


def _shown(data: bytes) -> str:
    r"""The text of a token, with bytes that are none as ``\\xNN``."""
    return data.decode("utf-8", "backslashreplace")
