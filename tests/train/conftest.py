"""A model small enough to train in a second, and texts to train it on."""

import json
from pathlib import Path

import pytest

from abyssal.train.settings import ARCHITECTURE, Phase, Settings

TINY = {
    **ARCHITECTURE,
    "vocab_size": 300,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 8,
    "v_head_dim": 16,
    "intermediate_size": 48,
    "moe_intermediate_size": 16,
    "n_routed_experts": 8,
    "n_group": 4,
    "topk_group": 2,
    "num_experts_per_tok": 2,
    "max_position_embeddings": 64,
}


def tiny_settings(**changes) -> Settings:
    values = {
        "architecture": TINY,
        "steps": 12,
        "seed": 7,
        "batch_tokens": 256,
        "microbatch_tokens": 64,
        "phases": (Phase(0.5, 16), Phase(1.0, 32)),
        "warmup": 3,
        "learning_rate": 2e-2,
        "embedding_rate": 1e-2,
        "router_rate": 2e-3,
        "dropout": 0.1,
        "embedding_dropout": 0.1,
    }
    return Settings(**{**values, **changes})


@pytest.fixture
def tiny() -> dict:
    """The architecture of a model with 34,112 parameters."""
    return dict(TINY)


@pytest.fixture
def make_settings():
    """Return settings of a run of a second, changed as asked."""
    return tiny_settings


@pytest.fixture
def documents(generator) -> list[list[int]]:
    """Token ids in which each token follows from the one before, so that there is much to learn."""
    import torch

    starts = torch.randint(3, 300, (12,), generator=generator).tolist()
    return [[3 + (start + 7 * step) % 97 for step in range(40)] for start in starts]


@pytest.fixture
def verses(tmp_path) -> list[Path]:
    """Three text files with enough repetition for a vocabulary of 300 entries."""
    files = []
    for number, beast in enumerate(("lamb", "lion", "ox")):
        lines = [
            f"And the {beast} said unto the {other}, Go up before morning, and divide the waters."
            for other in ("ram", "ass", "eagle")
        ] * 8
        files.append(tmp_path / f"{number}.txt")
        files[-1].write_text("\n".join(lines), encoding="utf-8")
    return files


@pytest.fixture
def settings_file(tmp_path) -> Path:
    file = tmp_path / "settings.json"
    file.write_text(tiny_settings().to_json(), encoding="utf-8")
    assert json.loads(file.read_text())["steps"] == 12
    return file
