"""Text to token ids and back, for the tokenizers of the DeepSeek family.

Works without torch. The ids are those of Hugging Face ``tokenizers`` on the same file; the work is
done in Rust, without the interpreter lock on long inputs, and Ctrl-C ends it.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from abyssal import _core
from abyssal.errors import TokenizerError
from abyssal.tokenizer_files import (
    UnsupportedTokenizerError,
    id_of,
    load_core,
    named_token,
    read_chat_template,
    read_config,
)
from abyssal.tokenizer_streams import (
    DecodeStream,
    EncodeStream,
    as_batch,
    as_list,
    clear,
    clear_batch,
    clear_errors,
)

_INT32 = np.dtype(np.int32)

__all__ = ["DecodeStream", "EncodeStream", "Tokenizer", "UnsupportedTokenizerError"]


class Tokenizer:
    """Byte-level BPE as a Hugging Face ``tokenizer.json`` or a ``tiktoken.model`` describes it.

    Supported are the pre-tokenizers of DeepSeek V3, R1, V3.1, V3.2 and V4; of DeepSeek LLM, V2 and
    V2-Lite; of DeepSeek Coder; of Qwen2, Llama 3 and GLM; and Moonlight's and Kimi's
    ``tiktoken.model``. Objects are immutable and may be shared between threads and over a fork;
    pieces of text that were met before are remembered, in at most 64 MB.

    Attributes:
        config: the content of ``tokenizer_config.json``, empty without one.
        chat_template: the checkpoint's own chat template, or None.
        add_bos_token: whether a text prompt begins with the beginning token.
        add_eos_token: whether a text prompt ends with the end token.
        bos_token: the beginning token's text, or None; `bos_token_id` likewise its id.
        eos_token: the end token's text, or None; `eos_token_id` likewise its id.
        pad_token: the padding token's text, or None; `pad_token_id` likewise its id.
    """

    def __init__(
        self,
        core: _core.Tokenizer,
        config: dict[str, Any] | None = None,
        chat_template: str | None = None,
    ) -> None:
        """Wrap a loaded tokenizer; `from_file` and `from_pretrained` make them."""
        self._core = core
        self.config: dict[str, Any] = config or {}
        self.chat_template = chat_template
        self.add_bos_token = self.config.get("add_bos_token") is True
        self.add_eos_token = self.config.get("add_eos_token") is True
        self.bos_token = named_token(self.config, "bos_token")
        self.eos_token = named_token(self.config, "eos_token")
        self.pad_token = named_token(self.config, "pad_token")
        self.bos_token_id = id_of(core, "bos_token", self.bos_token, needed=self.add_bos_token)
        self.eos_token_id = id_of(core, "eos_token", self.eos_token, needed=self.add_eos_token)
        self.pad_token_id = id_of(core, "pad_token", self.pad_token, needed=False)

    @classmethod
    def from_file(cls, path: str | os.PathLike[str]) -> Tokenizer:
        """Load a ``tokenizer.json`` or a ``tiktoken.model``; `config` is empty.

        Raises:
            UnsupportedTokenizerError: the file describes a tokenizer of another kind.
            TokenizerError: the file is missing, damaged or contradicts itself.
        """
        return cls(load_core(Path(path)))

    @classmethod
    def from_pretrained(cls, folder: str | os.PathLike[str]) -> Tokenizer:
        """Load the tokenizer in a checkpoint's folder, and its configuration if it is there.

        Raises:
            UnsupportedTokenizerError: the folder holds a tokenizer of another kind.
            TokenizerError: a file is missing, damaged or contradicts itself.
        """
        root = Path(folder)
        core = load_core(root)
        config = read_config(root)
        try:
            return cls(core, config, read_chat_template(root, config))
        except TokenizerError as error:
            raise TokenizerError(f"{root / 'tokenizer_config.json'}: {error}") from None

    def encode(self, text: str, *, parse_special: bool = True) -> list[int]:
        """Return the ids of a text.

        Args:
            text: any text; empty gives an empty list.
            parse_special: True: added tokens that occur in the text become their ids, and the
                result is that of Hugging Face with ``add_special_tokens=False``. False: no text
                becomes a control token; of the added tokens only single characters not marked
                special, letters in the files that have them, are still recognized.

        Raises:
            TokenizerError: the text holds a lone surrogate, or a byte that the vocabulary lacks.
        """
        try:
            return self._core.encode(text, parse_special)
        except ValueError as error:
            raise clear(error, text) from None

    def encode_to_numpy(self, text: str, *, parse_special: bool = True) -> npt.NDArray[np.int32]:
        """Return the ids of a text as a new, writable int32 array; else as `encode`."""
        try:
            ids = self._core.encode_to_buffer(text, parse_special)
            return np.frombuffer(ids, _INT32)  # type: ignore[call-overload, no-any-return]
        except ValueError as error:
            raise clear(error, text) from None

    def encode_batch(
        self, texts: Iterable[str], *, parse_special: bool = True, threads: int = 0
    ) -> list[list[int]]:
        """Return the ids of each text, in order; as `encode` for each.

        Args:
            texts: any number of texts; long ones are cut and shared between threads too.
            parse_special: as for `encode`.
            threads: most threads; 0 stands for one per processor. They end with the call.

        Raises:
            TypeError: ``texts`` is itself a string.
            TokenizerError: as `encode`, naming the text's place.
        """
        batch = as_batch(texts)
        try:
            return self._core.encode_batch(batch, parse_special, threads)
        except ValueError as error:
            raise clear_batch(error, batch) from None

    def encode_batch_to_numpy(
        self, texts: Iterable[str], *, parse_special: bool = True, threads: int = 0
    ) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int64]]:
        """Return the ids of all texts end to end, and where each text's begin.

        Arguments are those of `encode_batch`.

        Returns:
            int32 ids, and ``len(texts) + 1`` int64 offsets: text ``i`` has
            ``ids[offsets[i]:offsets[i + 1]]``.

        Raises:
            TypeError: ``texts`` is itself a string.
            TokenizerError: as `encode`, naming the text's place.
        """
        batch = as_batch(texts)
        try:
            data, counts = self._core.encode_batch_to_buffer(batch, parse_special, threads)
        except ValueError as error:
            raise clear_batch(error, batch) from None
        offsets = np.zeros(len(counts) + 1, np.int64)
        np.cumsum(counts, out=offsets[1:])
        ids = np.frombuffer(data, _INT32)  # type: ignore[call-overload]
        return ids, offsets

    def encode_file(
        self, path: str | os.PathLike[str], *, parse_special: bool = True, threads: int = 0
    ) -> npt.NDArray[np.int32]:
        """Return the ids of a UTF-8 file as an int32 array; the file is mapped, not read.

        Whoever cuts the file short meanwhile ends the process: the system's answer to reading
        past the end of a mapped file.

        Raises:
            TokenizerError: the file cannot be read, or is not UTF-8; the message names it.
        """
        try:
            data = self._core.encode_file_to_buffer(path, parse_special, threads)
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            raise TokenizerError(f"{os.fspath(path)}: {reason}") from None
        return np.frombuffer(data, _INT32)  # type: ignore[call-overload, no-any-return]

    def encode_bytes(self, data: bytes | bytearray | memoryview) -> list[int]:
        """Return ids that decode to exactly these bytes, UTF-8 or not.

        No added token is recognized: the bytes of a control token's name stay bytes. Each byte
        outside UTF-8 is a token of its own.

        Raises:
            TokenizerError: the vocabulary lacks a byte.
        """
        with clear_errors():
            return self._core.encode_bytes(bytes(memoryview(data)))

    def count(self, text: str, *, parse_special: bool = True) -> int:
        """Return ``len(encode(text))``; no ids are kept."""
        try:
            return self._core.count(text, parse_special)
        except ValueError as error:
            raise clear(error, text) from None

    def decode(self, ids: Sequence[int] | npt.NDArray[Any], *, skip_special: bool = False) -> str:
        """Return the text of ids; bytes that are not UTF-8 become U+FFFD.

        Equal to Hugging Face but for the letters that the DeepSeek LLM and V2 files add as tokens
        ("ö"): here they decode to themselves, there to U+FFFD.

        Args:
            ids: integers; a list, a numpy array or a tensor of one dimension.
            skip_special: leave out added tokens that the file marks as special.

        Raises:
            TokenizerError: an id is no token's.
        """
        with clear_errors():
            return self._core.decode(as_list(ids), skip_special)

    def decode_bytes(
        self, ids: Sequence[int] | npt.NDArray[Any], *, skip_special: bool = False
    ) -> bytes:
        """Return the bytes of ids, exactly; else as `decode`."""
        with clear_errors():
            return self._core.decode_bytes(as_list(ids), skip_special)

    def encode_stream(self, *, parse_special: bool = True) -> EncodeStream:
        """Return an encoder that takes a text in parts."""
        return EncodeStream(self._core.encode_stream(parse_special))

    def encode_with_offsets(
        self, text: str, *, parse_special: bool = True
    ) -> tuple[list[int], list[tuple[int, int]]]:
        """Return the ids of a text, and where each token's characters begin and end.

        A token that holds a part of a character stands where the whole character does.

        Raises:
            TokenizerError: as `encode`, and when bringing the text to form C changes it.
        """
        try:
            return self._core.encode_with_offsets(text, parse_special)
        except ValueError as error:
            raise clear(error, text) from None

    def stream(self, *, skip_special: bool = False) -> DecodeStream:
        """Return a decoder that takes one id at a time."""
        return DecodeStream(self._core.stream(skip_special))

    @property
    def cache_bytes(self) -> int:
        """Bytes of memory that the caches take now; never more than 64 MB."""
        return self._core.cache_bytes

    @property
    def vocab_size(self) -> int:
        """Number of tokens, added ones included."""
        return self._core.vocab_size

    @property
    def max_id(self) -> int:
        """The largest id; a model's embedding needs more rows than this."""
        return self._core.max_id

    @property
    def special_ids(self) -> frozenset[int]:
        """Ids of the added tokens that the file marks as special."""
        return frozenset(i for i, _, special in self._core.added_tokens() if special)

    @property
    def added_tokens(self) -> dict[str, int]:
        """Content and id of each added token, special or not, in the order of the file."""
        return {content: token_id for token_id, content, _ in self._core.added_tokens()}

    def token_to_id(self, token: str) -> int | None:
        """Return the id of a token as the file spells it ("Ġthe"), or None."""
        return self._core.token_to_id(token)

    def id_to_token(self, token_id: int) -> str | None:
        """Return the token of an id as the file spells it, or None."""
        return self._core.id_to_token(token_id)

    def __len__(self) -> int:
        """Return `vocab_size`."""
        return self.vocab_size

    def __repr__(self) -> str:
        """Return the size, for people."""
        return f"Tokenizer(vocab_size={self.vocab_size}, max_id={self.max_id})"
