"""``LLM``: a checkpoint that answers, in vLLM's offline interface."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import torch

from abyssal.engine.chat import Chats, Format
from abyssal.engine.core import EngineCore
from abyssal.engine.generation import GenerationConfig
from abyssal.engine.memory import free_memory, pool_tokens
from abyssal.engine.outputs import RequestOutput
from abyssal.engine.prompts import Prompt, read_prompt, several
from abyssal.engine.runner import Runner
from abyssal.engine.sampling_params import SamplingParams
from abyssal.engine.shared import Judged, SharedCore, helpful_threads, progress_bar
from abyssal.engine.text import Texts
from abyssal.engine.validate import Limits, check_prompt, check_request
from abyssal.errors import RequestError
from abyssal.kvcache import PageCache
from abyssal.models.hub import resolve
from abyssal.models.loader import load_model
from abyssal.tokenizer import Tokenizer

#: Types of the cached rows; those in FP8 are bytes.
CACHE_TYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32, "fp8": torch.uint8}


class LLM:
    """A model with its tokenizer and its latent cache.

    Args:
        path: A checkpoint folder, or ``owner/name`` in the local hub cache or on the hub.
        num_threads: Threads for torch's operations while this object computes; None leaves torch's
            own number, or takes one where the weights are under 64 MB.
        dtype: Type of the activations, ``"bfloat16"`` or ``"float32"``; None takes the
            checkpoint's. Packed weights stay packed.
        kv_cache_tokens: Tokens that the latent cache holds, over all sequences; None takes the
            model's maximum or a quarter of free memory, the smaller. Memory is touched when used.
        kv_cache_dtype: Type of the cached rows: ``"auto"`` (the activations'), ``"bfloat16"``,
            ``"float32"`` or ``"fp8"`` (latents in e4m3 with a scale for each 128 numbers, keys in
            bfloat16: 656 bytes instead of 1152 for V3).
        page_size: Tokens in a page of the cache.
        max_num_seqs: Sequences computed at once.
        max_num_batched_tokens: Tokens computed at once, 1024 beside answers; prompts are cut.
        max_logprobs: Most log probabilities that a request may ask for.
        chat_format: Name of the chat format; None recognizes it by the checkpoint's files.
        progress: Called while loading, as ``progress(stage, done_bytes, total_bytes)``.

    Raises:
        CheckpointError: the checkpoint cannot be found or is damaged.
        RequestError: a parameter out of range.

    Guarantees: a request's tokens do not depend on the requests beside it, rounding apart: products
    with packed weights have the same bits in every batch, those with plain weights are torch's,
    whose last bits may follow the batch's shape. A bad request raises ``RequestError`` before
    anything is computed; one that goes wrong on the way ends with ``finish_reason="error"``;
    neither touches any other. Ctrl-C leaves the object usable. Several threads may call it; their
    requests share the steps.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        num_threads: int | None = None,
        dtype: str | torch.dtype | None = None,
        kv_cache_tokens: int | None = None,
        kv_cache_dtype: str = "auto",
        page_size: int = 64,
        max_num_seqs: int = 64,
        max_num_batched_tokens: int = 2048,
        max_logprobs: int = 20,
        chat_format: str | None = None,
        progress: Callable[[str, int, int], None] | None = None,
    ) -> None:
        for name, value, least in (
            ("num_threads", num_threads, 1),
            ("page_size", page_size, 1),
            ("max_num_seqs", max_num_seqs, 1),
            ("max_num_batched_tokens", max_num_batched_tokens, max_num_seqs),
            ("max_logprobs", max_logprobs, 0),
        ):
            if value is not None and (not isinstance(value, int) or value < least):
                raise RequestError(f"{name} is {value!r}, allowed are whole numbers from {least}")
        if kv_cache_dtype not in ("auto", *CACHE_TYPES):
            raise RequestError(
                f"kv_cache_dtype is {kv_cache_dtype!r}, allowed are auto, {', '.join(CACHE_TYPES)}"
            )
        self.path = resolve(path)
        self.model, self.config = load_model(self.path, dtype=dtype, progress=progress)
        self.num_threads = num_threads or helpful_threads(self.model)
        self._texts = Texts(self.path, self.config.vocab_size)
        self._generation = GenerationConfig(self.path, self.config.eos_ids)
        self.eos_ids = self._generation.eos_ids
        row_type = CACHE_TYPES.get(kv_cache_dtype, self.model.dtype)
        token_bytes = self.model.row_bytes(row_type) * self.config.num_layers
        tokens = pool_tokens(
            kv_cache_tokens, self.config.max_position, token_bytes, page_size, free_memory()
        )
        self.limits = Limits(
            vocab_size=self.config.vocab_size,
            model_tokens=self.config.max_position,
            cache_tokens=tokens,
            max_num_seqs=max_num_seqs,
            max_logprobs=max_logprobs,
            has_tokenizer=self._texts.tokenizer is not None,
        )
        pages = -(-tokens // page_size)
        core = EngineCore(
            Runner(self.model, pages, page_size, row_type),
            self._texts,
            PageCache(pages, page_size, reuse=False),
            eos_ids=self.eos_ids,
            max_length=self.limits.max_tokens,
            max_num_seqs=max_num_seqs,
            max_tokens=max_num_batched_tokens,
        )
        self._core = SharedCore(core, self.num_threads)
        self._chats = Chats(self.path, self._texts, chat_format)

    @property
    def tokenizer(self) -> Tokenizer | None:
        """The checkpoint's tokenizer; None where it has none that is supported."""
        return self._texts.tokenizer

    def require_tokenizer(self) -> Tokenizer:
        """Return the tokenizer, or raise ``RequestError`` with the reason why there is none."""
        return self._texts.require()

    @property
    def max_model_tokens(self) -> int:
        """Tokens of prompt and answer together at most."""
        return self.limits.max_tokens

    def get_default_sampling_params(self) -> SamplingParams:
        """Return what the checkpoint's ``generation_config.json`` recommends."""
        return self._generation.sampling_params()

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        use_tqdm: bool = False,
    ) -> list[RequestOutput]:
        """Answer prompts.

        Args:
            prompts: One or a list of: a text, a list of token ids, ``{"prompt_token_ids": ids}``
                or ``{"prompt": text}``. A list of integers is one prompt.
            sampling_params: How to answer: one for all, or one for each prompt; None takes
                ``get_default_sampling_params()``.
            use_tqdm: Whether to show a progress bar.

        Returns:
            One output for each prompt, in their order.

        Raises:
            RequestError: a prompt or a parameter that cannot be served; nothing was computed.
        """
        listed = several(prompts)
        if sampling_params is None or isinstance(sampling_params, SamplingParams):
            params = [sampling_params or self.get_default_sampling_params()] * len(listed)
        else:
            params = list(sampling_params)
        if len(params) != len(listed):
            raise RequestError(f"got {len(listed)} prompts but {len(params)} sampling parameters")
        pairs = list(zip(listed, params, strict=True))
        judged = [self._judge(prompt, each, place) for place, (prompt, each) in enumerate(pairs)]
        with self._core.working(judged) as requests, progress_bar(len(requests), use_tqdm) as show:
            while not all(request.finished for request in requests):
                self._core.step()
                show(sum(request.finished for request in requests))
            return [request.output() for request in requests]

    def stream(
        self, prompt: Prompt, sampling_params: SamplingParams | None = None
    ) -> Iterator[RequestOutput]:
        """Answer one prompt as it is computed.

        Args:
            prompt: As one prompt of ``generate``.
            sampling_params: As for ``generate``.

        Yields:
            The answer so far: one output for each new token (of all ``n`` answers together). The
            last one equals what ``generate`` returns.

        Raises:
            RequestError: as ``generate``, at the call.

        Guarantees: closing the iterator early gives the pages back.
        """
        judged = self._judge(prompt, sampling_params or self.get_default_sampling_params(), 0)
        return self._stream(judged)

    def _stream(self, judged: Judged) -> Iterator[RequestOutput]:
        with self._core.working([judged], streamed=True) as (request,):
            while not (request.finished and not request.news):
                if not request.news:
                    self._core.step()
                while request.news:
                    yield request.news.popleft()

    @property
    def chat_format(self) -> Format:
        """The checkpoint's chat format, which also parses answers; see `abyssal.chat`."""
        return self._chats.format

    def chat(
        self,
        messages: Sequence[Mapping[str, Any]] | Sequence[Sequence[Mapping[str, Any]]],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        use_tqdm: bool = False,
    ) -> list[RequestOutput]:
        """Answer conversations in the checkpoint's own chat format.

        Args:
            messages: A conversation, or a list of them: dictionaries with ``role`` and ``content``.
            sampling_params: As for ``generate``.
            tools: Tools in OpenAI's form.
            add_generation_prompt: Whether to open the assistant's turn.
            chat_template_kwargs: Further options of the format, ``{"thinking": True}`` for one.
            use_tqdm: Whether to show a progress bar.

        Returns:
            One output for each conversation.

        Raises:
            RequestError: as ``generate``; no chat format; messages that it refuses.

        Guarantees: texts never become control tokens; see `abyssal.chat`.
        """
        options = {"tools": tools, "add_generation_prompt": add_generation_prompt}
        prompts = self._chats.encode_all(messages, options | dict(chat_template_kwargs or {}))
        return self.generate(prompts, sampling_params, use_tqdm=use_tqdm)

    def chat_prompt(
        self,
        messages: Sequence[Mapping[str, Any]],
        **options: Any,  # noqa: ANN401 - whatever the format knows
    ) -> list[int]:
        """Return the token ids of one conversation, for ``stream``; options as for ``chat``."""
        return self._chats.format.encode(messages, **options)

    def logits(self, token_ids: Sequence[int]) -> torch.Tensor:
        """Compute the logits after every position of one prompt.

        Args:
            token_ids: The prompt, 1 to ``max_model_tokens`` ids.

        Returns:
            f32 ``[tokens, vocab]``, new memory.

        Raises:
            RequestError: ids that cannot be served, or logits that are not finite.
        """
        ids = check_prompt(token_ids, self.limits, answer=False)
        wanted = torch.empty(len(ids), self.config.vocab_size, dtype=torch.float32)
        with self._core.working([(None, ids, None)], logits=wanted) as (request,):
            while not request.finished:
                self._core.step()
        if request.sequences[0].error is not None:
            raise RequestError(request.sequences[0].error)
        return wanted

    def stats(self) -> dict[str, int]:
        """Count requests, pages and tokens, as ``PageCache.stats`` does."""
        return self._core.stats()

    def close(self) -> None:
        """Give up the model and its memory; requests after this are refused."""
        self._core.close()
        self.__dict__.pop("model", None)

    def __enter__(self) -> Self:
        """Return the object itself; leaving the block closes it."""
        return self

    def __exit__(self, *error: object) -> None:
        """Close."""
        self.close()

    def _judge(self, prompt: Prompt, params: SamplingParams, place: int) -> Judged:
        """Judge a request; the message says which prompt it was."""
        try:
            text, ids = read_prompt(prompt, self._texts)
            ids = check_prompt(ids, self.limits)
            check_request(params, self.limits)
        except RequestError as error:
            raise RequestError(f"prompt {place}: {error}") from error
        return text, ids, params
