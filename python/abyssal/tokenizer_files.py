"""The files of a tokenizer: ``tokenizer.json``, ``tokenizer_config.json``, the chat template."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from abyssal import _core
from abyssal.errors import TokenizerError

# A tokenizer.json of the family has 2 to 8 MB.
MAX_FILE_BYTES = 256 * 2**20
# Where tokenizers of other kinds keep their vocabulary, to say what a folder has instead.
OTHER_FILES = ("tiktoken.model", "tokenizer.model", "vocab.json", "spiece.model")


class UnsupportedTokenizerError(TokenizerError):
    """The file is in order and describes a tokenizer that this package does not have.

    The model beside it may still be used with token ids.
    """


def load_core(path: Path) -> _core.Tokenizer:
    """Read a ``tokenizer.json``, or the one in a folder.

    Raises:
        UnsupportedTokenizerError: it is a tokenizer of another kind; the message names the file,
            what was found and what is supported.
        TokenizerError: there is none, or it is damaged; the message names the file.
    """
    if path.is_dir():
        others = [name for name in OTHER_FILES if (path / name).is_file()]
        if not (path / "tokenizer.json").is_file() and others:
            raise UnsupportedTokenizerError(
                f"{path / others[0]}: unsupported tokenizer: this kind of file, with no "
                "tokenizer.json beside it; supported: a tokenizer.json with "
                f"{_core.Tokenizer.SUPPORTED}"
            )
        path /= "tokenizer.json"
    try:
        size = path.stat().st_size
        if size > MAX_FILE_BYTES:
            raise TokenizerError(f"{path}: the file has {size} bytes, allowed are {MAX_FILE_BYTES}")
        data = path.read_bytes()
    except OSError as error:
        raise TokenizerError(f"{path}: {error.strerror or error}") from None
    try:
        return _core.Tokenizer.from_json(data)
    except ValueError as error:
        unsupported = str(error).startswith("unsupported tokenizer")
        kind = UnsupportedTokenizerError if unsupported else TokenizerError
        raise kind(f"{path}: {error}") from None


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
