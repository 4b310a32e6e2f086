"""Which chat format a checkpoint has, found out from its files; none of its code is run.

A template is one of the known formats when it renders a few short conversations exactly as that
format does. Known formats then serve all conversations, those with tools included, where older
templates of the same model family leave calls unclosed or know no tools at all.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from abyssal.chat.format import KINDS, ChatFormat
from abyssal.errors import RequestError
from abyssal.tokenizer import Tokenizer

if TYPE_CHECKING:
    from abyssal.chat.template import TemplateFormat

NO_TEMPLATE = (
    "this is a base model: use generate ({folder} has no chat_template); if it is a chat model, "
    "name its chat format: {names}"
)
#: Chat models that bring no template, by the type in their configuration.
TYPES = {"deepseek_v32": "v3.2", "deepseek_v4": "v4"}

_QUESTION = {"role": "user", "content": "One?"}
#: Conversations that the formats write differently, and whether to think.
_PROBES: tuple[tuple[list[dict[str, Any]], bool | None], ...] = (
    ([{"role": "system", "content": "Two."}, _QUESTION], None),
    ([_QUESTION, {"role": "assistant", "content": "Three</think>four"}, _QUESTION], None),
    ([{"role": "system", "content": "Two."}, _QUESTION], True),
    ([_QUESTION], False),
)


def recognize(
    folder: str | os.PathLike[str], tokenizer: Tokenizer | None = None
) -> ChatFormat | TemplateFormat:
    """Return the chat format of a checkpoint.

    Args:
        folder: The checkpoint.
        tokenizer: Its tokenizer, where it is already loaded.

    Returns:
        A known format, or the checkpoint's own template where it is none of them.

    Raises:
        TokenizerError: the tokenizer cannot be read.
        RequestError: a base model, or a template that does not parse.
    """
    path = Path(folder)
    tokenizer = tokenizer or Tokenizer.from_pretrained(path)
    source = tokenizer.chat_template
    if source is not None:
        name = name_of_template(tokenizer)
        if name is not None:
            return ChatFormat(name, tokenizer)
        from abyssal.chat.template import TemplateFormat

        return TemplateFormat(source, tokenizer, str(folder))
    name = TYPES.get(_model_type(path))
    if name is None:
        raise RequestError(NO_TEMPLATE.format(folder=folder, names=", ".join(KINDS)))
    return ChatFormat(name, tokenizer)


def name_of_template(tokenizer: Tokenizer) -> str | None:
    """Return the format that a tokenizer's chat template writes; None where it is none of ours."""
    if tokenizer.chat_template is None:
        return None
    from abyssal.chat.template import TemplateFormat

    try:
        template = TemplateFormat(tokenizer.chat_template, tokenizer)
        wanted = [template.render(messages, thinking=thinking) for messages, thinking in _PROBES]
    except RequestError:
        return None
    for name, kind in KINDS.items():
        # A format without a choice is asked without one; its template does not look either.
        choice = kind.thinks in ("off", "on")
        try:
            written = [
                ChatFormat(name, tokenizer).render(messages, thinking=thinking if choice else None)
                for messages, thinking in _PROBES
            ]
        except RequestError:
            continue
        if written == wanted:
            return name
    return None


def _model_type(folder: Path) -> str:
    try:
        config = json.loads((folder / "config.json").read_text("utf-8"))
    except (OSError, ValueError, RecursionError):
        return ""
    kind = config.get("model_type") if isinstance(config, dict) else None
    return kind if isinstance(kind, str) else ""
