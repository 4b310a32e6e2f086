"""Bad requests: each gets a clear error before anything runs, and touches nobody else."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest

from abyssal import LLM, SamplingParams
from abyssal.errors import CheckpointError, RequestError, TokenizerError
from abyssal.testing.checkpoints import write_checkpoint

from .conftest import write_tokenizer

GREEDY = SamplingParams(temperature=0.0, max_tokens=3, ignore_eos=True)


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ("", "the prompt is empty"),
        ([[]], "the prompt is empty"),
        ({"prompt_token_ids": []}, "the prompt is empty"),
        ({"prompt": ""}, "the prompt is empty"),
        (np.zeros(0, np.int64), "the prompt is empty"),
        ([320], r"token id 320 at position 0 is out of range: allowed are 0 to 319"),
        ([5, -1], r"token id -1 at position 1 is out of range"),
        ([2**70], "out of range"),
        ([5, 1.5], "position 1 must be an integer, got float"),
        ([5, "a"], "position 1 must be an integer, got str"),
        ([5, None], "position 1 must be an integer"),
        ([True], "must be an integer, got True"),
        ({"text": "a"}, "'prompt_token_ids' or 'prompt'"),
        ({"prompt_token_ids": "abc"}, "must be a list of integers, got str"),
        ({"prompt_token_ids": 7}, "must be a list of integers, got int"),
        ([None], "must be a list of integers, got NoneType"),
        (7, "must be a prompt or a list, got int"),
        ([[[1, 2]]], "position 0 must be an integer, got list"),
        ("a\ud800b", r"cannot be encoded.*lone surrogate.*position 1"),
        ([5] * 2049, "the prompt has 2049 tokens"),
        ([5] * 2048, "the prompt has 2048 tokens, but the model takes at most 2047"),
    ],
)
def test_a_bad_prompt_is_refused(llm, prompt, message) -> None:
    with pytest.raises(RequestError, match=message):
        llm.generate(prompt, GREEDY)
    assert llm.stats()["requests"] == 0
    assert len(llm.generate([5, 6], GREEDY)[0].outputs[0].token_ids) == 3


def test_one_bad_prompt_among_good_ones_is_named_and_nothing_runs(llm, monkeypatch) -> None:
    monkeypatch.setattr(llm._core, "step", lambda: pytest.fail("a step ran"))
    with pytest.raises(RequestError, match="prompt 1: token id 999 at position 2"):
        llm.generate([[5, 6], [5, 6, 999], [7]], GREEDY)


def test_stream_refuses_at_the_call(llm) -> None:
    with pytest.raises(RequestError, match="the prompt is empty"):
        llm.stream([], GREEDY)


def test_a_prompt_longer_than_the_page_pool_is_told_how_much_fits(open_llm) -> None:
    narrow = open_llm(kv_cache_tokens=100)
    message = (
        "the prompt has 100 tokens, but the page pool is too small: at most 99 tokens would fit "
        r"beside one generated token; raise kv_cache_tokens \(now 100\)"
    )
    with pytest.raises(RequestError, match=message):
        narrow.generate([5] * 100, GREEDY)
    with pytest.raises(RequestError, match="at most 100 tokens would fit"):
        narrow.logits([5] * 101)
    assert narrow.logits([5] * 100).shape == (100, 320)
    (output,) = narrow.generate([5] * 99, GREEDY)
    assert len(output.outputs[0].token_ids) == 1


@pytest.mark.parametrize("ids", [[], [320], [-1], "ab", 5, [[5]]])
def test_logits_refuses_bad_ids(llm, ids) -> None:
    with pytest.raises(RequestError):
        llm.logits(ids)


BAD_PARAMETERS = [
    ({"n": 0}, "n is 0, allowed are 1 to"),
    ({"n": 10**9}, "n is 1000000000, allowed are 1 to"),
    ({"temperature": -0.1}, "temperature is -0.1, allowed are finite numbers from 0"),
    ({"temperature": float("nan")}, "temperature is nan"),
    ({"temperature": float("inf")}, "temperature is inf"),
    ({"temperature": "hot"}, "temperature must be a number, got str"),
    ({"top_p": 0.0}, "top_p is 0.0"),
    ({"top_p": 1.01}, "top_p is 1.01, allowed are 0.0 to 1.0"),
    ({"top_k": -2}, "top_k is -2, allowed are -1 and more"),
    ({"top_k": 2.5}, "top_k must be an integer, got float"),
    ({"min_p": -0.1}, "min_p is -0.1"),
    ({"min_p": 1.5}, "min_p is 1.5, allowed are 0.0 to 1.0"),
    ({"seed": 2**63}, "seed is 9223372036854775808"),
    ({"max_tokens": 0}, "max_tokens is 0, allowed are 1 and more"),
    ({"min_tokens": 5, "max_tokens": 4}, "min_tokens is 5, allowed are 0 to 4"),
    ({"logprobs": -1}, "logprobs is -1, allowed are 0 and more"),
    ({"presence_penalty": 3}, "presence_penalty is 3.0, allowed are -2.0 to 2.0"),
    ({"frequency_penalty": -3}, "frequency_penalty is -3.0"),
    ({"repetition_penalty": 0}, "repetition_penalty is 0.0, allowed are numbers above 0"),
    ({"stop": ""}, "a stop string has 0 characters, allowed are 1 to"),
    ({"stop": ["a", 5]}, "stop must hold strings, got int"),
    ({"stop": 5}, "stop must be a string or a list of strings, got int"),
    ({"stop": ["a"] * 100}, "stop has 100 strings, allowed are at most"),
    ({"stop": "a" * 100_000}, "a stop string has 100000 characters"),
    ({"stop_token_ids": [-5]}, "a stop token id is -5"),
]


@pytest.mark.parametrize(("parameters", "message"), BAD_PARAMETERS)
def test_parameters_out_of_range_are_refused(llm, parameters, message) -> None:
    with pytest.raises(RequestError, match=message):
        SamplingParams(**parameters)
    # The engine judges again: an object may have been changed since it was made.
    params = SamplingParams()
    for name, value in parameters.items():
        setattr(params, name, value)
    with pytest.raises(RequestError, match=message):
        llm.generate([5, 6], params)
    assert llm.stats()["requests"] == 0


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"n": 65}, "n is 65, allowed are 1 to 64"),
        ({"logprobs": 21}, r"logprobs is 21, allowed are 0 to 20 \(max_logprobs\)"),
        ({"top_k": 321}, "top_k is 321, allowed are -1 to 320"),
        ({"stop_token_ids": [320]}, "stop_token_ids has 320, allowed are 0 to 319"),
    ],
)
def test_parameters_beyond_this_engine_are_refused(llm, parameters, message) -> None:
    with pytest.raises(RequestError, match=message):
        llm.generate([5, 6], SamplingParams(**parameters))


def test_an_unknown_parameter_is_a_type_error() -> None:
    with pytest.raises(TypeError, match="best_of"):
        SamplingParams(best_of=2)


def test_parameters_must_be_one_or_one_for_each_prompt(llm) -> None:
    with pytest.raises(RequestError, match="got 2 prompts but 3 sampling parameters"):
        llm.generate([[5], [6]], [GREEDY] * 3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kv_cache_tokens": 0}, "kv_cache_tokens is 0, allowed are whole numbers from 1"),
        ({"kv_cache_tokens": -5}, "kv_cache_tokens is -5"),
        ({"kv_cache_tokens": 10**15}, r"at most \d+ tokens would fit"),
        ({"kv_cache_dtype": "int4"}, "kv_cache_dtype is 'int4', allowed are auto, bfloat16"),
        ({"page_size": 0}, "page_size is 0"),
        ({"num_threads": 0}, "num_threads is 0"),
        ({"max_num_seqs": 0}, "max_num_seqs is 0"),
        ({"max_num_batched_tokens": 8}, "max_num_batched_tokens is 8, allowed .* from 64"),
        ({"dtype": "int8"}, "dtype"),
    ],
)
def test_options_out_of_range_are_refused(folder, options, message) -> None:
    with pytest.raises(ValueError, match=message):
        LLM(folder, **options)


def test_a_folder_without_tokenizer_serves_token_ids(open_llm, ids_only) -> None:
    engine = open_llm(ids_only)
    assert engine.tokenizer is None
    (output,) = engine.generate([5, 6], SamplingParams(max_tokens=4, logprobs=1, seed=1))
    assert output.outputs[0].text == ""
    assert output.outputs[0].logprobs[0][output.outputs[0].token_ids[0]].decoded_token is None
    with pytest.raises(RequestError, match=r"give token ids instead: .*tokenizer\.json"):
        engine.generate("text", GREEDY)
    with pytest.raises(RequestError, match="stop strings need a tokenizer"):
        engine.generate([5, 6], SamplingParams(stop="a"))
    with pytest.raises(RequestError, match="give token ids instead"):
        engine.chat([{"role": "user", "content": "hello"}])


def test_an_unsupported_tokenizer_leaves_token_ids(open_llm, folder, tmp_path) -> None:
    copy = shutil.copytree(folder, tmp_path / "copy")
    settings = json.loads((copy / "tokenizer.json").read_text("utf-8"))
    settings["pre_tokenizer"] = {"type": "Whitespace"}
    (copy / "tokenizer.json").write_text(json.dumps(settings), "utf-8")
    engine = open_llm(copy)
    assert len(engine.generate([5, 6], GREEDY)[0].outputs[0].token_ids) == 3
    with pytest.raises(RequestError, match=r"tokenizer\.json: unsupported tokenizer.*supported"):
        engine.generate("text", GREEDY)


def test_a_damaged_tokenizer_is_an_error(folder, tmp_path) -> None:
    copy = shutil.copytree(folder, tmp_path / "copy")
    (copy / "tokenizer.json").write_text("{", "utf-8")
    with pytest.raises(TokenizerError, match=r"tokenizer\.json"):
        LLM(copy, kv_cache_tokens=64)


def test_a_tokenizer_with_ids_beyond_the_embedding_is_an_error(tmp_path) -> None:
    write_checkpoint(tmp_path, vocab_size=299, torch_dtype="float32")
    write_tokenizer(tmp_path, vocab_size=300)
    message = r"tokenizer\.json has token ids up to 299, but the embedding has 299 rows"
    with pytest.raises(CheckpointError, match=message):
        LLM(tmp_path, kv_cache_tokens=64)


def test_a_closed_engine_says_so(folder) -> None:
    with LLM(folder, kv_cache_tokens=64) as engine:
        engine.generate([5], GREEDY)
    with pytest.raises(RequestError, match="closed"):
        engine.generate([5], GREEDY)
    engine.close()
