"""The runs that ``abyssal train`` knows: on any text, and the recipe of the bundled model.

A run's folder holds ``tokenizer.json``, the state while it trains, and at the end the model in the
published layout, the loss curve, and for the recipe the held-out chapters to evaluate it on.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from abyssal.errors import CheckpointError
from abyssal.train import king_james
from abyssal.train.model import TrainingModel
from abyssal.train.settings import ARCHITECTURE, Phase, Settings
from abyssal.train.vocabulary import train_vocabulary, write_vocabulary

#: The recipe of the bundled model: 9.4 passes over 958,055 tokens.
KING_JAMES = Settings(
    steps=2200,
    seed=1611,
    batch_tokens=4096,
    microbatch_tokens=2048,
    phases=(Phase(0.4, 256), Phase(0.65, 512), Phase(0.9, 1024), Phase(1.0, 2048)),
    learning_rate=5e-3,
    embedding_rate=5e-3,
    router_rate=1.25e-3,
    warmup=40,
    weight_decay=0.3,
    dropout=0.15,
    embedding_dropout=0.1,
    balance_rate=5e-3,
    balance_loss=1e-3,
)


def dense_twin(settings: Settings) -> Settings:
    """Return the settings of a dense model with as many active parameters.

    Every routed layer's chosen and shared experts and its router become one feed-forward part of
    the same size, and so does the dense layer; the prediction layer is left out.
    """
    config = settings.architecture
    dense, layers = config["first_k_dense_replace"], config["num_hidden_layers"]
    chosen = config["num_experts_per_tok"] + config["n_shared_experts"]
    # A feed-forward part of inner size i has 3 i rows as long as the hidden size, a router one for
    # each expert.
    routed = chosen * config["moe_intermediate_size"] + config["n_routed_experts"] / 3
    inner = round((dense * config["intermediate_size"] + (layers - dense) * routed) / layers)
    changed = {
        "first_k_dense_replace": layers,
        "intermediate_size": inner,
        "n_routed_experts": 0,
        "num_nextn_predict_layers": 0,
    }
    return replace(settings, architecture={**config, **changed})


@dataclass(frozen=True)
class Prepared:
    """What a run needs before its first step.

    Attributes:
        settings: With the architecture that fits the vocabulary.
        documents: Token ids of each.
        num_bytes: UTF-8 bytes of all documents.
    """

    settings: Settings
    documents: list[list[int]]
    num_bytes: int


def prepare(texts: Sequence[str], settings: Settings, folder: Path, *, resume: bool) -> Prepared:
    """Train the vocabulary, or read it where the run is resumed, and encode the texts.

    Args:
        texts: One for each document.
        settings: Of the run; ``vocab_size`` of its architecture is the vocabulary's size.
        folder: Of the run.
        resume: Use ``folder``'s vocabulary.

    Raises:
        CheckpointError: ``resume`` and the folder holds no vocabulary.
        ValueError: as ``train_vocabulary``.
    """
    from tokenizers import Tokenizer

    file = folder / "tokenizer.json"
    if resume:
        if not file.exists():
            raise CheckpointError(f"{folder} holds no run to resume: there is no {file.name}")
        tokenizer = Tokenizer.from_file(str(file))
    else:
        tokenizer = train_vocabulary(texts, settings.architecture["vocab_size"])
        positions = settings.architecture["max_position_embeddings"]
        write_vocabulary(tokenizer, folder, positions=positions)
    encoded = tokenizer.encode_batch(list(texts), add_special_tokens=False)
    return Prepared(
        settings,
        [each.ids for each in encoded],
        sum(len(text.encode("utf-8")) for text in texts),
    )


def count_parameters(model: TrainingModel) -> tuple[int, int]:
    """Return the main model's parameters, in all and active for a token.

    The embedding and the head count once each, the prediction layer not at all; what a token leaves
    out are the experts that it does not choose.
    """
    total = idle = 0
    for name, value in model.named_parameters():
        if not name.startswith("prediction."):
            total += value.numel()
    for index, part in model.routed():
        if index < len(model.layers):
            size = part.gate_up[0].numel() + part.down[0].numel()
            idle += (part.experts - part.top_k) * size
    return total, total - idle


def king_james_texts(cache: Path) -> tuple[list[king_james.Chapter], list[str]]:
    """Return all chapters, and the texts of those that may be trained on."""
    chapters = king_james.read_chapters(cache)
    return chapters, [each.text for each in chapters if not each.held_out]


def read_settings(file: Path | None, **changes: Any) -> Settings:  # noqa: ANN401 - settings' fields
    """Read a JSON file of settings, or of an architecture alone, and change what is not None.

    Raises:
        ValueError: not JSON, or as ``Settings.from_dict``.
    """
    values: dict[str, Any] = {}
    if file is not None:
        try:
            values = json.loads(file.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"{file} cannot be read as JSON: {error}") from None
        if not isinstance(values, dict):
            raise ValueError(f"{file} must hold an object, found {type(values).__name__}")
        if "model_type" in values:
            values = {"architecture": values}
    vocab = changes.pop("vocab_size", None)
    if vocab is not None:
        values["architecture"] = {**values.get("architecture", {}), "vocab_size": vocab}
    values.update({key: value for key, value in changes.items() if value is not None})
    settings = Settings.from_dict(values)
    unknown = sorted(set(settings.architecture) - set(ARCHITECTURE))
    if unknown:
        raise ValueError(f"unknown keys in the architecture: {', '.join(unknown)}")
    return settings
