"""The files of a tokenizer: ``tokenizer.json``, ``tokenizer_config.json``, the chat template."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from abyssal import _core
from abyssal.errors import TokenizerError

# A tokenizer.json has 2 to 20 MB.
MAX_FILE_BYTES = 256 * 2**20
# Where tokenizers of other kinds keep their vocabulary, to say what a folder has instead.
OTHER_FILES = ("tokenizer.model", "vocab.json", "spiece.model")
# What Moonlight and Kimi use, with no tokenizer.json beside it.
RANKS_FILE = "tiktoken.model"
# Their code numbers this many control tokens after the ranks, those without a name included.
RESERVED = 256 + 2


class UnsupportedTokenizerError(TokenizerError):
    """The file is in order and describes a tokenizer that this package does not have.

    The model beside it may still be used with token ids.
    """


def load_core(path: Path) -> _core.Tokenizer:
    """Read a ``tokenizer.json``, a ``tiktoken.model``, or the one that is in a folder.

    Raises:
        UnsupportedTokenizerError: it is a tokenizer of another kind; the message names the file,
            what was found and what is supported.
        TokenizerError: there is none, or it is damaged; the message names the file.
    """
    if path.is_dir():
        path = _file_of(path)
    try:
        size = path.stat().st_size
        if size > MAX_FILE_BYTES:
            raise TokenizerError(f"{path}: the file has {size} bytes, allowed are {MAX_FILE_BYTES}")
        data = path.read_bytes()
    except OSError as error:
        raise TokenizerError(f"{path}: {error.strerror or error}") from None
    if path.name == RANKS_FILE:
        controls = _controls(path.parent, data)
        with _named(path):
            return _core.Tokenizer.from_tiktoken(data, controls)
    with _named(path):
        return _core.Tokenizer.from_json(data)


def read_json(data: bytes) -> _core.Tokenizer:
    """Read the content of a ``tokenizer.json``; errors are those of `load_core`."""
    with _named("tokenizer.json"):
        return _core.Tokenizer.from_json(data)


@contextmanager
def _named(path: Path | str) -> Iterator[None]:
    """Turn what reading a file's content raises into the package's own, naming the file."""
    try:
        yield
    except ValueError as error:
        unsupported = str(error).startswith("unsupported tokenizer")
        kind = UnsupportedTokenizerError if unsupported else TokenizerError
        raise kind(f"{path}: {error}") from None


def _file_of(folder: Path) -> Path:
    for name in ("tokenizer.json", RANKS_FILE):
        if (folder / name).is_file():
            return folder / name
    for name in OTHER_FILES:
        if (folder / name).is_file():
            raise UnsupportedTokenizerError(
                f"{folder / name}: unsupported tokenizer: this kind of file, with no "
                f"tokenizer.json beside it; supported: {_core.Tokenizer.SUPPORTED}"
            )
    return folder / "tokenizer.json"


def _controls(folder: Path, ranks: bytes) -> list[tuple[int, str, bool]]:
    """Return the control tokens of a ``tiktoken.model``: id, content, special.

    The ids after the ranks belong to control tokens; ``tokenizer_config.json`` names some of them,
    and the others are called ``<|reserved_token_ID|>``, as the models' own code does.
    """
    first = sum(1 for line in ranks.splitlines() if line)
    named = read_config(folder).get("added_tokens_decoder")
    names: dict[int, tuple[str, bool]] = {}
    for key, value in named.items() if isinstance(named, dict) else ():
        content = value.get("content") if isinstance(value, dict) else None
        if not (key.isascii() and key.isdecimal() and isinstance(content, str)):
            raise TokenizerError(
                f"{folder / 'tokenizer_config.json'}: added_tokens_decoder[{key!r:.80}] has to be "
                "a token with its content, under its id"
            )
        names[int(key[:10])] = (content, value.get("special") is not False)
    ids = sorted({*range(first, first + RESERVED), *(i for i in names if i >= first)})
    return [(i, *names.get(i, (f"<|reserved_token_{i}|>", True))) for i in ids if i < 2**32]


def read_config(folder: Path) -> dict[str, Any]:
    """Return the content of ``tokenizer_config.json``, empty when there is none.

    Raises:
        TokenizerError: it is not a JSON object; the message names the file.
    """
    path = folder / "tokenizer_config.json"
    try:
        config = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise TokenizerError(f"{path}: {error.strerror or error}") from None
    except (ValueError, RecursionError) as error:
        raise TokenizerError(f"{path}: not valid JSON: {error}") from None
    if not isinstance(config, dict):
        raise TokenizerError(f"{path}: has to be a JSON object, is a {type(config).__name__}")
    return config


def read_chat_template(folder: Path, config: dict[str, Any]) -> str | None:
    """Return the checkpoint's chat template, or None.

    Newer checkpoints keep it in ``chat_template.jinja``; older ones in the configuration, as one
    text or as a list of named ones, of which the one named "default" counts.

    Raises:
        TokenizerError: the file cannot be read as UTF-8; the message names it.
    """
    path = folder / "chat_template.jinja"
    try:
        return path.read_text("utf-8")
    except FileNotFoundError:
        pass
    except (OSError, ValueError) as error:
        raise TokenizerError(f"{path}: {error}") from None
    template = config.get("chat_template")
    if isinstance(template, list):
        named = {t.get("name"): t.get("template") for t in template if isinstance(t, dict)}
        template = named.get("default")
    return template if isinstance(template, str) else None


def named_token(config: dict[str, Any], key: str) -> str | None:
    """Return the text of a special token that a configuration names, or None."""
    # A token is written as its text, or as an object that holds it.
    value = config.get(key)
    if isinstance(value, dict):
        value = value.get("content")
    return value if isinstance(value, str) else None


def id_of(core: _core.Tokenizer, key: str, token: str | None, *, needed: bool) -> int | None:
    """Return the id of a special token, or None.

    Raises:
        TokenizerError: it is needed and has none.
    """
    found = None if token is None else core.token_to_id(token)
    if needed and found is None:
        raise TokenizerError(f"add_{key} is true, but {key} is {token!r}, which has no id")
    return found
