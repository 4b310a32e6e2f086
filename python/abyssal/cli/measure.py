"""What ``abyssal demo`` measures about a loaded model and about the text it wrote."""

from __future__ import annotations

import lzma
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from abyssal import LLM
    from abyssal.models import DeepseekModel

TRAINING_TEXT = "training_text.txt.xz"


def plain_weights(model: DeepseekModel) -> dict[str, torch.Tensor]:
    """Return every parameter in f32 by name, packed ones dequantized in plain PyTorch."""
    import torch

    from abyssal import reference
    from abyssal.nn import Linear

    weights = {name: tensor.detach() for name, tensor in model.named_parameters()}
    weights.update(model.named_buffers())
    for name, module in model.named_modules():
        if isinstance(module, Linear):
            weight = module.weight.detach()
            if module.scales is not None and weight.dtype == torch.uint8:
                weight = reference.dequantize_mxfp4(weight, module.scales, dtype=torch.float32)
            elif module.scales is not None:
                weight = reference.dequantize_fp8(
                    weight, module.scales, (128, 128), dtype=torch.float32
                )
            weights[f"{name}.weight"] = weight
    return {
        name: tensor.float() for name, tensor in weights.items() if not name.endswith(".scales")
    }


def reference_difference(llm: LLM, token_ids: Sequence[int]) -> tuple[float, float]:
    """Compare the engine's logits with the plain PyTorch forward pass on one sequence.

    Returns:
        The largest absolute difference, and the largest absolute logit beside it.
    """
    import torch

    from abyssal.reference.model import forward

    with torch.inference_mode():
        ours = llm.logits(list(token_ids))
        plain = forward(plain_weights(llm.model), llm.config, torch.tensor(token_ids))
    return float((ours - plain).abs().max()), float(plain.abs().max())


def words(text: str) -> list[str]:
    """Split a text into its words in lower case; punctuation and line ends do not count."""
    return re.findall(r"[^\W\d_]+(?:['\u2019][^\W\d_]+)*", text.lower())


def longest_shared_run(text: str, training_text: str) -> list[str]:
    """Return the longest run of words of ``text`` that ``training_text`` holds; the first one."""
    ours = words(text)
    theirs = f" {' '.join(words(training_text))} "
    best: list[str] = []
    for start in range(len(ours)):
        # Only a run longer than the best one matters, so that each start costs one search unless it
        # wins.
        while start + len(best) < len(ours):
            longer = ours[start : start + len(best) + 1]
            if f" {' '.join(longer)} " not in theirs:
                break
            best = longer
    return best


def training_text(folder: Path) -> str | None:
    """Return the text that came with the model that was trained on it, or None."""
    file = folder / TRAINING_TEXT
    return lzma.decompress(file.read_bytes()).decode("utf-8") if file.is_file() else None
