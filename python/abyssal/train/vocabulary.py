"""Train a byte-level BPE vocabulary under the pre-tokenizer of DeepSeek-V3.

All 256 bytes are in the alphabet, so that every text can be encoded. The three control tokens have
the names and ids that DeepSeek-V3 gives them.

Source: the pre-tokenizer and decoder of DeepSeek-V3's ``tokenizer.json``.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tokenizers import Tokenizer

# U+FF5C and U+2581 stand where one would read a bar and an underscore.
BOS = "<\uff5cbegin\u2581of\u2581sentence\uff5c>"
EOS = "<\uff5cend\u2581of\u2581sentence\uff5c>"
PAD = "<\uff5c\u2581pad\u2581\uff5c>"
CONTROL = (BOS, EOS, PAD)
#: The smallest vocabulary: every byte and the control tokens.
SMALLEST = 256 + len(CONTROL)

_SPLITS = (
    r"\p{N}{1,3}",
    "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+",
    "[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+"
    "|[^\r\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+"
    "| ?[\\p{P}\\p{S}]+[\r\n]*|\\s*[\r\n]+|\\s+(?!\\S)|\\s+",
)


def _empty_tokenizer() -> dict[str, Any]:
    """Return the ``tokenizer.json`` of DeepSeek-V3 without its vocabulary."""
    splits = [
        {"type": "Split", "pattern": {"Regex": each}, "behavior": "Isolated", "invert": False}
        for each in _SPLITS
    ]
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [],
        "normalizer": {"type": "Sequence", "normalizers": []},
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [*splits, {**level, "use_regex": False}],
        },
        "post_processor": {
            "type": "ByteLevel",
            "add_prefix_space": True,
            "trim_offsets": False,
            "use_regex": True,
        },
        "decoder": {**level, "add_prefix_space": True, "use_regex": True},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "vocab": {},
            "merges": [],
        },
    }


def train_vocabulary(texts: Sequence[str], size: int) -> Tokenizer:
    """Train a vocabulary.

    Args:
        texts: What to train on.
        size: Entries, with the 256 bytes and the control tokens.

    Returns:
        A tokenizer with exactly ``size`` entries; ids 0, 1 and 2 are the control tokens.

    Raises:
        ValueError: ``size`` is too small, or the texts hold too few pairs to reach it.

    Guarantees: the same texts give the same vocabulary.
    """
    from tokenizers import Tokenizer, pre_tokenizers, trainers

    if size < SMALLEST:
        raise ValueError(f"a byte-level vocabulary needs at least {SMALLEST} entries, got {size}")
    tokenizer = Tokenizer.from_str(json.dumps(_empty_tokenizer()))
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        min_frequency=2,
        special_tokens=list(CONTROL),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    reached = tokenizer.get_vocab_size()
    if reached != size:
        raise ValueError(
            f"the texts hold pairs for a vocabulary of {reached} entries, {size} were asked for: "
            "ask for fewer, or train on more text"
        )
    return tokenizer


def write_vocabulary(tokenizer: Tokenizer, folder: Path, *, positions: int) -> None:
    """Write ``tokenizer.json`` and ``tokenizer_config.json``."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "add_bos_token": True,
        "add_eos_token": False,
        "bos_token": BOS,
        "clean_up_tokenization_spaces": False,
        "eos_token": EOS,
        "model_max_length": positions,
        "pad_token": PAD,
        "tokenizer_class": "PreTrainedTokenizerFast",
        "unk_token": None,
    }
    text = json.dumps(settings, indent=2, ensure_ascii=False)
    (folder / "tokenizer_config.json").write_text(text + "\n", encoding="utf-8")
