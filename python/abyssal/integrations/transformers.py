"""``abyssal.Tokenizer`` where code expects a fast tokenizer of transformers.

`patch_tokenizer` lets a loaded transformers tokenizer encode through `abyssal.Tokenizer`: all else
about it stays. `FastTokenizer` has the calls that people use most, and needs no transformers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from abyssal.tokenizer import Tokenizer
from abyssal.tokenizer_files import read_json

__all__ = ["FastTokenizer", "patch_tokenizer"]

# What the fast way takes; any other argument that is set sends the call to transformers.
_TAKEN = frozenset(
    {
        "add_special_tokens",
        "padding_strategy",
        "truncation_strategy",
        "max_length",
        "stride",
        "pad_to_multiple_of",
        "padding_side",
        "return_tensors",
        "return_attention_mask",
        "verbose",
    }
)


def patch_tokenizer(tokenizer: Any) -> Any:  # noqa: ANN401  transformers' class, of any version
    """Let a fast tokenizer of transformers encode text through `abyssal.Tokenizer`.

    Calls on texts, alone or in a list, with truncation, padding and tensors go the fast way. Calls
    that ask for more (pairs, words, offsets, overflowing parts, special masks) go to transformers
    as before, and so does everything once tokens were added after patching.

    Args:
        tokenizer: an instance with a ``backend_tokenizer``; it is changed and returned.

    Returns:
        The same object.

    Raises:
        TypeError: it is no fast tokenizer.
        ValueError: its kind is not supported, as the message says; it is then as it was.

    Guarantees: the ids are those that transformers gives. What a call returns has no
    ``encodings``, so ``char_to_token`` and its like are not available on it.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None or not hasattr(backend, "to_str"):
        raise TypeError(f"a {type(tokenizer).__name__} is no fast tokenizer of transformers")
    if hasattr(type(tokenizer), "_abyssal_kind"):
        return tokenizer
    core = read_json(backend.to_str().encode())
    before, after = _frame(backend)
    kind = type(tokenizer)

    class Patched(kind):  # type: ignore[misc, valid-type]
        _abyssal_kind = kind
        _abyssal_core = core

        def _encode_plus(self, text: Any, *args: Any, **options: Any) -> Any:  # noqa: ANN401
            texts = [text] if isinstance(text, str) else text
            set_options = {name for name, value in options.items() if value not in (None, False)}
            plain = (
                not args
                and isinstance(texts, list)
                and bool(texts)
                and all(isinstance(one, str) for one in texts)
                and set_options - {"add_special_tokens"} <= _TAKEN
                and not options.get("stride")
                and not self.split_special_tokens
                and "token_type_ids" not in self.model_input_names
                and len(self) == core.vocab_size
            )
            if not plain:
                return super()._encode_plus(text, *args, **options)
            ids = core.encode_batch(texts)
            if options.get("add_special_tokens", True):
                ids = _framed(ids, before, after, _limit(options), self.truncation_side)
            else:
                ids = _framed(ids, [], [], _limit(options), self.truncation_side)
            single = isinstance(text, str) and not options.get("return_tensors")
            return self.pad(
                {"input_ids": ids[0] if single else ids},
                padding=options.get("padding_strategy", False),
                max_length=options.get("max_length"),
                pad_to_multiple_of=options.get("pad_to_multiple_of"),
                padding_side=options.get("padding_side"),
                return_attention_mask=options.get("return_attention_mask"),
                return_tensors=options.get("return_tensors"),
                verbose=False,
            )

    Patched.__name__ = Patched.__qualname__ = kind.__name__
    Patched.__module__ = kind.__module__
    tokenizer.__class__ = Patched
    return tokenizer


def _limit(options: dict[str, Any]) -> int | None:
    strategy = options.get("truncation_strategy")
    truncates = strategy is not None and getattr(strategy, "value", strategy) != "do_not_truncate"
    return options.get("max_length") if truncates else None


def _frame(backend: Any) -> tuple[list[int], list[int]]:  # noqa: ANN401
    """Return the ids that the post-processor sets before and after a text's own."""
    own = backend.encode("a", add_special_tokens=False).ids
    framed = backend.encode("a", add_special_tokens=True).ids
    for start in range(len(framed) - len(own) + 1):
        if framed[start : start + len(own)] == own:
            return framed[:start], framed[start + len(own) :]
    raise ValueError("unsupported tokenizer: its post-processor changes the ids of the text")


def _framed(
    lists: list[list[int]], before: list[int], after: list[int], limit: int | None, side: str
) -> list[list[int]]:
    room = None if limit is None else max(0, limit - len(before) - len(after))

    def kept(ids: list[int]) -> list[int]:
        if room is None or len(ids) <= room:
            return ids
        return ids[:room] if side == "right" else ids[len(ids) - room :]

    return [[*before, *kept(ids), *after] for ids in lists]


class FastTokenizer:
    """`abyssal.Tokenizer` with the calls of a fast tokenizer of transformers.

    The beginning and end tokens are added where ``tokenizer_config.json`` says so. For padding
    the padding token is used, and the end token where there is none.

    Args:
        tokenizer: the tokenizer to use.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        """Wrap a loaded tokenizer."""
        self.tokenizer = tokenizer
        self.padding_side = "right"

    @classmethod
    def from_pretrained(cls, folder: str) -> FastTokenizer:
        """Load the tokenizer of a checkpoint's folder."""
        return cls(Tokenizer.from_pretrained(folder))

    def _frame(self, add: bool) -> tuple[list[int], list[int]]:
        own = self.tokenizer
        before = own.bos_token_id if add and own.add_bos_token else None
        after = own.eos_token_id if add and own.add_eos_token else None
        return [i for i in [before] if i is not None], [i for i in [after] if i is not None]

    def encode_batch(
        self, texts: Sequence[str], add_special_tokens: bool = True
    ) -> list[list[int]]:
        """Return the ids of each text, in order."""
        before, after = self._frame(add_special_tokens)
        return _framed(self.tokenizer.encode_batch(texts), before, after, None, "right")

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Return the ids of a text."""
        return self.encode_batch([text], add_special_tokens)[0]

    def decode(self, token_ids: Any, skip_special_tokens: bool = False) -> str:  # noqa: ANN401
        """Return the text of ids: a list, an array or a tensor of one dimension, or one id."""
        ids = [token_ids] if isinstance(token_ids, int) else token_ids
        return self.tokenizer.decode(ids, skip_special=skip_special_tokens)

    def batch_decode(self, sequences: Any, skip_special_tokens: bool = False) -> list[str]:  # noqa: ANN401
        """Return the text of each row."""
        return [self.decode(row, skip_special_tokens) for row in sequences]

    def __call__(
        self,
        text: str | Sequence[str],
        add_special_tokens: bool = True,
        padding: bool | str = False,
        truncation: bool = False,
        max_length: int | None = None,
        return_tensors: str | None = None,
    ) -> dict[str, Any]:
        """Return ``input_ids`` and ``attention_mask`` of a text or of several.

        Args:
            text: one text, or a list of them.
            add_special_tokens: whether to add what the configuration asks for.
            padding: True or "longest" pads to the longest, "max_length" to ``max_length``.
            truncation: whether to cut rows to ``max_length``.
            max_length: most ids of a row.
            return_tensors: None for lists, "np" for int64 arrays, "pt" for torch tensors.

        Raises:
            ValueError: rows of different lengths are to become one array, a padding token is
                needed and there is none, or an argument has a value that is not named here.
        """
        if padding not in (False, True, "longest", "max_length", "do_not_pad"):
            raise ValueError(
                f"padding is {padding!r}; it must be a bool, 'longest' or 'max_length'"
            )
        if return_tensors not in (None, "np", "pt"):
            raise ValueError(f"return_tensors is {return_tensors!r}; it must be None, 'np' or 'pt'")
        before, after = self._frame(add_special_tokens)
        texts = [text] if isinstance(text, str) else list(text)
        limit = max_length if truncation else None
        rows = _framed(self.tokenizer.encode_batch(texts), before, after, limit, "right")
        width = max((len(row) for row in rows), default=0)
        if padding == "max_length":
            if max_length is None:
                raise ValueError("padding is 'max_length', and there is no max_length")
            width = max(width, max_length)
        masks = [[1] * len(row) for row in rows]
        if padding not in (False, "do_not_pad"):
            rows, masks = self._padded(rows, 0, width), self._padded(masks, None, width)
        if return_tensors is None:
            one = isinstance(text, str)
            return {
                "input_ids": rows[0] if one else rows,
                "attention_mask": masks[0] if one else masks,
            }
        if any(len(row) != len(rows[0]) for row in rows):
            raise ValueError("the rows differ in length; padding=True makes one array of them")
        arrays = {"input_ids": np.array(rows, np.int64), "attention_mask": np.array(masks)}
        if return_tensors == "np":
            return arrays
        import torch

        return {name: torch.from_numpy(array) for name, array in arrays.items()}

    def _padded(self, rows: list[list[int]], token: int | None, width: int) -> list[list[int]]:
        fill = 0
        if token is not None and any(len(row) < width for row in rows):
            own = self.tokenizer
            found = own.pad_token_id if own.pad_token_id is not None else own.eos_token_id
            if found is None:
                raise ValueError("padding needs a padding token or an end token; there is neither")
            fill = found
        pads = [[fill] * (width - len(row)) for row in rows]
        if self.padding_side == "left":
            return [[*pad, *row] for pad, row in zip(pads, rows, strict=True)]
        return [[*row, *pad] for pad, row in zip(pads, rows, strict=True)]
