"""What a checkpoint recommends for its answers: ``generation_config.json``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from abyssal.engine.sampling_params import SamplingParams

#: Recommendations that are sampling parameters.
KNOWN = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")


class GenerationConfig:
    """A checkpoint's recommendations.

    Args:
        folder: The checkpoint; a missing or unreadable file recommends nothing.
        eos_ids: End tokens of ``config.json``, for a file that names none.

    Attributes:
        eos_ids: Tokens that end an answer.
    """

    def __init__(self, folder: Path, eos_ids: tuple[int, ...]) -> None:
        self._values = _read(folder / "generation_config.json")
        named = self._values.get("eos_token_id")
        listed = named if isinstance(named, list) else [named]
        found = tuple(each for each in listed if type(each) is int)
        self.eos_ids = found or eos_ids

    def sampling_params(self) -> SamplingParams:
        """Return the recommended parameters; those of ``SamplingParams()`` for all else."""
        found = {name: self._values[name] for name in KNOWN if self._values.get(name) is not None}
        if self._values.get("do_sample") is False:
            found["temperature"] = 0.0
        return SamplingParams(**found)


def _read(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
