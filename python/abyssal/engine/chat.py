"""The engine's side of chat: a checkpoint's format, found when a conversation first needs it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from abyssal.chat import ChatFormat, recognize
from abyssal.engine.prompts import Prompt
from abyssal.engine.text import Texts

if TYPE_CHECKING:
    from abyssal.chat.template import TemplateFormat

Format: TypeAlias = "ChatFormat | TemplateFormat"


class Chats:
    """Conversations in a checkpoint's format.

    Args:
        folder: The checkpoint.
        texts: Its tokenizer, or the reason why there is none.
        name: The format; None recognizes it by the checkpoint's files.
    """

    def __init__(self, folder: Path, texts: Texts, name: str | None) -> None:
        self._folder, self._texts, self._name = folder, texts, name
        self._format: Format | None = None

    @property
    def format(self) -> Format:
        """The format.

        Raises:
            RequestError: no tokenizer, an unknown name, or a base model.
        """
        if self._format is None:
            tokenizer = self._texts.require()
            if self._name is None:
                self._format = recognize(self._folder, tokenizer)
            else:
                self._format = ChatFormat(self._name, tokenizer)
        return self._format

    def encode_all(
        self,
        messages: Any,  # noqa: ANN401 - a conversation or several
        options: dict[str, Any],
    ) -> list[Prompt]:
        """Return the token ids of a conversation, or of each of several."""
        listed = isinstance(messages, list | tuple) and bool(messages)
        talks = messages if listed and isinstance(messages[0], list | tuple) else [messages]
        return [self.format.encode(talk, **options) for talk in talks]
