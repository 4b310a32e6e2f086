"""The forms in which a prompt may come."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from numbers import Integral
from typing import Any, cast

from abyssal.engine.text import Texts
from abyssal.errors import RequestError

#: A text, token ids, ``{"prompt_token_ids": ids}`` or ``{"prompt": text}``.
Prompt = str | Sequence[int] | Mapping[str, Any]


def several(prompts: Prompt | Sequence[Prompt]) -> list[Prompt]:
    """Return prompts as a list: a list or an array of integers is one prompt of token ids.

    Raises:
        RequestError: something that is neither a prompt nor a list of prompts.
    """
    if isinstance(prompts, str | Mapping) or hasattr(prompts, "tolist"):
        return [cast(Prompt, prompts)]
    if not isinstance(prompts, Sequence):
        raise RequestError(f"prompts must be a prompt or a list, got {type(prompts).__name__}")
    if prompts and isinstance(prompts[0], Integral):
        return [cast(Prompt, prompts)]
    return cast("list[Prompt]", list(prompts))


def read_prompt(prompt: Prompt, texts: Texts) -> tuple[str | None, Any]:
    """Return a prompt's text, where it has one, and its token ids, not judged yet.

    Raises:
        RequestError: an unknown form, or a text that cannot be encoded.
    """
    if isinstance(prompt, Mapping):
        if prompt.get("prompt_token_ids") is not None:
            return prompt.get("prompt"), prompt["prompt_token_ids"]
        if "prompt" not in prompt:
            raise RequestError(
                f"a prompt dictionary needs 'prompt_token_ids' or 'prompt', got {sorted(prompt)}"
            )
        prompt = prompt["prompt"]
    if isinstance(prompt, str):
        return prompt, texts.encode(prompt)
    return None, prompt
