"""The types of the cached rows: what they cost in memory and precision, and that batches share."""

import re

import pytest

from abyssal import SamplingParams
from abyssal.engine.engine import CACHE_TYPES
from abyssal.errors import RequestError

PROMPT = [(7 * place) % 300 + 4 for place in range(290)]


def test_rows_in_fp8_are_smaller_and_nearly_as_exact(open_llm, ids_only):
    logits, fitting = {}, {}
    for name in CACHE_TYPES:
        logits[name] = open_llm(ids_only, kv_cache_dtype=name).logits([5 + i for i in range(90)])
        with pytest.raises(RequestError, match="tokens would fit") as refused:
            open_llm(ids_only, kv_cache_dtype=name, kv_cache_tokens=10**15)
        fitting[name] = 10**15 / int(re.search(r"takes (\d+) bytes", str(refused.value))[1])
    # A latent of 32 and a key of 8: 160 bytes in float32, 80 in bfloat16, 32 + 4 + 16 in FP8.
    assert fitting["float32"] * 160 == pytest.approx(fitting["bfloat16"] * 80)
    assert fitting["float32"] * 160 == pytest.approx(fitting["fp8"] * 52)
    # In the mean: here and there an expert that was all but tied is exchanged for another.
    errors = {name: float((each - logits["float32"]).abs().mean()) for name, each in logits.items()}
    assert errors["float32"] == 0 < errors["bfloat16"] < errors["fp8"] < 0.1


def test_answers_over_rows_in_fp8_do_not_depend_on_batch_and_cuts(open_llm):
    sampling = SamplingParams(temperature=0, max_tokens=6, ignore_eos=True)
    prompts = [PROMPT, PROMPT[:17], PROMPT[100:]]
    whole = open_llm(kv_cache_dtype="fp8").generate(prompts, sampling)
    cut = open_llm(kv_cache_dtype="fp8", max_num_batched_tokens=64).generate(prompts, sampling)
    for prompt, one, other in zip(prompts, whole, cut, strict=True):
        alone = open_llm(kv_cache_dtype="fp8").generate(prompt, sampling)[0]
        assert alone.outputs[0].token_ids == one.outputs[0].token_ids == other.outputs[0].token_ids
