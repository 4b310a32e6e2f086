"""Texts in and out of the engine: the checkpoint's tokenizer, or a clear word why there is none."""

from __future__ import annotations

from pathlib import Path

from abyssal.engine.detokenizer import AnswerText
from abyssal.engine.outputs import Logprob
from abyssal.engine.sampling_params import SamplingParams
from abyssal.errors import CheckpointError, RequestError, TokenizerError
from abyssal.tokenizer import Tokenizer, UnsupportedTokenizerError


class Texts:
    """A checkpoint's tokenizer.

    Args:
        folder: The checkpoint.
        vocab_size: Rows of the embedding.

    Raises:
        CheckpointError: the tokenizer has ids beyond the embedding.
        TokenizerError: the tokenizer's file is damaged.

    Guarantees: a folder without a tokenizer, or with one of an unsupported kind, is no error: it
    serves token ids, and ``require`` says why it serves nothing else.
    """

    def __init__(self, folder: Path, vocab_size: int) -> None:
        self.tokenizer: Tokenizer | None = None
        self.reason = ""
        try:
            self.tokenizer = Tokenizer.from_pretrained(folder)
        except UnsupportedTokenizerError as error:
            self.reason = str(error)
            return
        except TokenizerError as error:
            if (folder / "tokenizer.json").exists():
                raise
            self.reason = str(error)
            return
        if self.tokenizer.max_id >= vocab_size:
            raise CheckpointError(
                f"{folder / 'tokenizer.json'} has token ids up to {self.tokenizer.max_id}, but the "
                f"embedding has {vocab_size} rows: allowed are 0 to {vocab_size - 1}"
            )

    def require(self) -> Tokenizer:
        """Return the tokenizer.

        Raises:
            RequestError: there is none; the message names the file and the reason.
        """
        if self.tokenizer is None:
            raise RequestError(f"texts need a tokenizer; give token ids instead: {self.reason}")
        return self.tokenizer

    def encode(self, text: str) -> list[int]:
        """Encode a prompt, with the beginning token where the checkpoint asks for it.

        Raises:
            RequestError: an empty text, a text that is no Unicode, or no tokenizer.
        """
        tokenizer = self.require()
        if not text:
            raise RequestError("the prompt is empty: at least one character is needed")
        try:
            ids = tokenizer.encode(text)
        except TokenizerError as error:
            raise RequestError(f"the prompt cannot be encoded: {error}") from error
        begin = tokenizer.bos_token_id if tokenizer.add_bos_token else None
        return ids if begin is None else [begin, *ids]

    def answer(self, params: SamplingParams | None) -> AnswerText | None:
        """Make the text of a new answer; None without a tokenizer."""
        if self.tokenizer is None or params is None:
            return None
        stream = self.tokenizer.stream(skip_special=params.skip_special_tokens)
        return AnswerText(stream, params)

    def with_tokens(self, report: dict[int, Logprob]) -> dict[int, Logprob]:
        """Add each token's text to a report of log probabilities."""
        if self.tokenizer is None:
            return report
        return {
            token: Logprob(entry.logprob, entry.rank, self.token_text(token))
            for token, entry in report.items()
        }

    def token_text(self, token: int) -> str:
        """Return a token alone as text; ids that the tokenizer does not name have none."""
        if self.tokenizer is None or self.tokenizer.id_to_token(token) is None:
            return ""
        return self.tokenizer.decode([token])
