"""Answers: right tokens, alone or together, however the prompt is cut and the pages are dealt."""

from __future__ import annotations

import itertools
import random

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM

from abyssal import SamplingParams
from abyssal.testing.checkpoints import write_checkpoint

GREEDY = {"temperature": 0.0, "ignore_eos": True}


def prompt_of(length: int, seed: int = 0) -> list[int]:
    return random.Random(f"{seed}-{length}").choices(range(4, 300), k=length)


def tokens(outputs) -> list[list[int]]:
    return [answer.token_ids for output in outputs for answer in output.outputs]


@pytest.mark.parametrize("family", ["v2-lite", "v3"])
def test_greedy_tokens_are_those_of_transformers(family, tmp_path, open_llm) -> None:
    write_checkpoint(tmp_path, family=family, torch_dtype="float32", seed=3)
    engine = open_llm(tmp_path)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    vocab = engine.config.vocab_size
    for length in (1, 5, 70):
        prompt = [token % vocab for token in prompt_of(length)]
        (ours,) = tokens(engine.generate(prompt, SamplingParams(**GREEDY, max_tokens=12)))
        sequence = torch.tensor([prompt + ours])
        with torch.no_grad():
            logits = theirs(sequence).logits[0, length - 1 : -1]
        for row, token in zip(logits, ours, strict=True):
            best, second = torch.topk(row, 2).values
            # A near tie may fall either way between two implementations in f32.
            assert int(row.argmax()) == token or best - second < 2e-4


def test_prompts_together_answer_as_each_alone(llm) -> None:
    prompts = [prompt_of(length) for length in (1, 3, 17, 64, 130, 300, 520)]
    params = SamplingParams(**GREEDY, max_tokens=20)
    together = llm.generate(prompts, params)
    assert [output.prompt_token_ids for output in together] == prompts
    alone = [llm.generate(prompt, params)[0] for prompt in prompts]
    assert tokens(together) == tokens(alone)
    assert {output.outputs[0].finish_reason for output in together} == {"length"}
    assert [output.outputs[0].text for output in together] == [
        output.outputs[0].text for output in alone
    ]


@pytest.mark.parametrize("chunk", [8, 64, 300])
def test_the_cut_of_a_prompt_into_chunks_does_not_matter(llm, open_llm, chunk) -> None:
    cut = open_llm(max_num_batched_tokens=chunk, max_num_seqs=8)
    params = SamplingParams(**GREEDY, max_tokens=8)
    prompts = [prompt_of(length) for length in (5, 290, 700)]
    assert tokens(cut.generate(prompts, params)) == tokens(llm.generate(prompts, params))


def test_preempted_sequences_give_the_same_tokens(llm, open_llm) -> None:
    # 10 pages for 6 sequences that each grow to 6 pages.
    narrow = open_llm(kv_cache_tokens=160)
    prompts = [prompt_of(10 + 7 * place, place) for place in range(6)]
    params = SamplingParams(max_tokens=50, seed=5, ignore_eos=True)
    preempted = []
    scheduler = narrow._core._core.scheduler
    original = scheduler.preempt
    scheduler.preempt = lambda sequence: (preempted.append(sequence), original(sequence))[1]
    assert tokens(narrow.generate(prompts, params)) == tokens(llm.generate(prompts, params))
    assert preempted


def test_stream_yields_every_token_and_ends_as_generate(llm) -> None:
    params = SamplingParams(max_tokens=30, seed=9, ignore_eos=True, logprobs=1, stop="zzz")
    outputs = list(llm.stream("In the beginning", params))
    (whole,) = llm.generate("In the beginning", params)
    assert [len(output.outputs[0].token_ids) for output in outputs] == list(range(1, 31))
    assert outputs[-1].outputs == whole.outputs
    assert [output.finished for output in outputs] == [False] * 29 + [True]
    texts = [output.outputs[0].text for output in outputs]
    assert all(later.startswith(text) for text, later in itertools.pairwise(texts))
    assert whole.prompt == "In the beginning"
    begin = llm.tokenizer.bos_token_id
    assert whole.prompt_token_ids == [begin, *llm.tokenizer.encode("In the beginning")]


def test_the_text_is_the_decoded_answer(llm) -> None:
    params = SamplingParams(max_tokens=60, seed=4, ignore_eos=True)
    for output in llm.generate(["light", "東京"], params):
        answer = output.outputs[0]
        named = [token for token in answer.token_ids if token <= llm.tokenizer.max_id]
        assert answer.text == llm.tokenizer.decode(named, skip_special=True)


def test_a_seed_gives_the_same_answer_whatever_runs_beside_it(llm) -> None:
    params = SamplingParams(max_tokens=24, seed=77, ignore_eos=True, top_p=0.9, top_k=50)
    (alone,) = tokens(llm.generate(prompt_of(20), params))
    others = [prompt_of(9, seed) for seed in range(5)]
    noise = SamplingParams(max_tokens=11, temperature=1.5)
    mixed = llm.generate([*others, prompt_of(20)], [noise] * 5 + [params])
    assert mixed[-1].outputs[0].token_ids == alone
    other = SamplingParams(max_tokens=24, seed=78, ignore_eos=True)
    assert tokens(llm.generate(prompt_of(20), other)) != [alone]


def test_answers_without_a_seed_differ(llm) -> None:
    params = SamplingParams(max_tokens=24, ignore_eos=True)
    first, second = tokens(llm.generate([prompt_of(20)] * 2, params))
    assert first != second


def test_n_answers_share_the_prompt_and_use_seeds_one_after_the_other(llm) -> None:
    prompt = prompt_of(100)
    several = SamplingParams(n=4, max_tokens=20, seed=30, ignore_eos=True)
    (output,) = llm.generate(prompt, several)
    assert [answer.index for answer in output.outputs] == [0, 1, 2, 3]
    singly = [
        llm.generate(prompt, SamplingParams(max_tokens=20, seed=30 + index, ignore_eos=True))[0]
        for index in range(4)
    ]
    assert tokens([output]) == tokens(singly)
    shared = []
    for _ in llm.stream(prompt, several):
        shared.append(llm.stats()["shared_pages"])
    # 100 tokens fill 6 pages of 16; the partly filled seventh is copied when it is written.
    assert max(shared) >= 6


def test_forks_that_do_not_fit_together_take_turns(llm, open_llm) -> None:
    narrow = open_llm(kv_cache_tokens=96)
    params = SamplingParams(n=5, max_tokens=40, seed=8, ignore_eos=True)
    assert tokens(narrow.generate(prompt_of(30), params)) == tokens(
        llm.generate(prompt_of(30), params)
    )


def test_logprobs_are_the_log_softmax_of_the_logits(llm) -> None:
    prompt = prompt_of(40)
    params = SamplingParams(max_tokens=10, seed=3, ignore_eos=True, logprobs=5, temperature=0.7)
    (output,) = llm.generate(prompt, params)
    answer = output.outputs[0]
    expected = llm.logits(prompt + answer.token_ids).log_softmax(-1)[len(prompt) - 1 : -1]
    total = 0.0
    for row, token, report in zip(expected, answer.token_ids, answer.logprobs, strict=True):
        assert next(iter(report)) == token
        best = torch.sort(row, descending=True, stable=True).indices[:5].tolist()
        assert list(report) == list(dict.fromkeys([token, *best]))
        for each, entry in report.items():
            # f32 products of other shapes: about 1e-6 of logits below 10.
            assert abs(entry.logprob - float(row[each])) < 1e-4
            assert entry.rank == int((row > row[each]).sum()) + 1
            assert entry.decoded_token == (llm.tokenizer.decode([each]) if each < 300 else "")
        total += report[token].logprob
    assert answer.cumulative_logprob == pytest.approx(total, abs=1e-9)


def test_logprobs_0_reports_the_drawn_token_alone(llm) -> None:
    params = SamplingParams(max_tokens=4, logprobs=0, seed=1, ignore_eos=True)
    (output,) = llm.generate(prompt_of(4), params)
    answer = output.outputs[0]
    assert [list(report) for report in answer.logprobs] == [[each] for each in answer.token_ids]


def test_logits_do_not_depend_on_the_chunks(llm, open_llm) -> None:
    prompt = prompt_of(600)
    whole = llm.logits(prompt)
    assert whole.shape == (600, 320)
    assert whole.dtype == torch.float32
    cut = open_llm(max_num_batched_tokens=32, max_num_seqs=2).logits(prompt)
    # Both forms of attention in f32; measured differences are below 1e-5 of logits of about 5.
    torch.testing.assert_close(whole, cut, atol=1e-4, rtol=0)
    torch.testing.assert_close(llm.logits(torch.tensor(prompt[:50])), whole[:50], atol=1e-3, rtol=0)


def test_an_end_token_ends_the_answer(llm) -> None:
    params = SamplingParams(temperature=0.0, max_tokens=12, ignore_eos=True)
    (free,) = tokens(llm.generate(prompt_of(6), params))
    core = llm._core._core
    core.eos_ids = (free[3],)
    cut = free.index(free[3]) + 1
    (output,) = llm.generate(prompt_of(6), SamplingParams(temperature=0.0, max_tokens=12))
    assert output.outputs[0].token_ids == free[:cut]
    assert (output.outputs[0].finish_reason, output.outputs[0].stop_reason) == ("stop", None)
    (output,) = llm.generate(
        prompt_of(6), SamplingParams(temperature=0.0, max_tokens=12, min_tokens=8)
    )
    assert len(output.outputs[0].token_ids) >= 8
    assert free[3] not in output.outputs[0].token_ids[:7]
    assert tokens(llm.generate(prompt_of(6), params)) == [free]


def test_a_stop_token_ends_the_answer_and_is_named(llm) -> None:
    params = SamplingParams(**GREEDY, max_tokens=12)
    (free,) = llm.generate(prompt_of(6), params)
    ids = free.outputs[0].token_ids
    stop = next(token for token in ids[2:] if 4 <= token < 300)
    cut = ids.index(stop)
    params = SamplingParams(**GREEDY, max_tokens=12, stop_token_ids=[stop])
    (output,) = llm.generate(prompt_of(6), params)
    answer = output.outputs[0]
    assert answer.token_ids == ids[: cut + 1]
    assert (answer.finish_reason, answer.stop_reason) == ("stop", stop)
    known = [token for token in ids[:cut] if token < 300]
    assert answer.text == llm.tokenizer.decode(known, skip_special=True)


def test_a_stop_string_ends_the_answer_across_token_borders(llm) -> None:
    params = SamplingParams(seed=2, max_tokens=60, ignore_eos=True)
    text = llm.generate("And the", params)[0].outputs[0].text
    for start in range(3, len(text) - 6, max(1, len(text) // 6)):
        stop = text[start : start + 5]
        params = SamplingParams(seed=2, max_tokens=60, ignore_eos=True, stop=[stop, "\0\0"])
        outputs = list(llm.stream("And the", params))
        answer = outputs[-1].outputs[0]
        assert answer.text == text[: text.index(stop)]
        assert (answer.finish_reason, answer.stop_reason) == ("stop", stop)
        # No step ever showed a part of the stop string.
        assert all(answer.text.startswith(each.outputs[0].text) for each in outputs)
        params.include_stop_str_in_output = True
        (output,) = llm.generate("And the", params)
        assert output.outputs[0].text == text[: text.index(stop)] + stop


def test_the_answer_ends_where_cache_or_model_end(open_llm, tmp_path) -> None:
    narrow = open_llm(kv_cache_tokens=50)
    params = SamplingParams(**GREEDY, max_tokens=None)
    (output,) = narrow.generate(prompt_of(20), params)
    assert len(output.outputs[0].token_ids) == 30
    assert output.outputs[0].finish_reason == "length"
    write_checkpoint(tmp_path, torch_dtype="float32", max_position_embeddings=40, rope_scaling=None)
    short = open_llm(tmp_path)
    (output,) = short.generate([5] * 20, params)
    assert len(output.outputs[0].token_ids) == 20


def test_the_checkpoint_recommends_sampling_parameters(open_llm, tmp_path, folder) -> None:
    import json
    import shutil

    copy = shutil.copytree(folder, tmp_path / "copy")
    recommended = {"temperature": 0.6, "top_p": 0.95, "eos_token_id": [7, 8], "do_sample": True}
    (copy / "generation_config.json").write_text(json.dumps(recommended))
    engine = open_llm(copy)
    assert engine.eos_ids == (7, 8)
    assert engine.get_default_sampling_params() == SamplingParams(temperature=0.6, top_p=0.95)
    assert len(engine.generate([[5, 6]])[0].outputs[0].token_ids) <= 16
    assert open_llm().eos_ids == (1,)


def test_no_prompts_have_no_answers(llm) -> None:
    assert llm.generate([]) == []


@pytest.mark.parametrize("form", ["ids", "tuple", "dict", "tensor", "text", "text dict"])
def test_every_form_of_a_prompt_is_taken(llm, form) -> None:
    ids = [0, *llm.tokenizer.encode("the word")]
    prompt = {
        "ids": ids,
        "tuple": tuple(ids),
        "dict": {"prompt_token_ids": ids},
        "tensor": torch.tensor(ids),
        "text": "the word",
        "text dict": {"prompt": "the word"},
    }[form]
    params = SamplingParams(**GREEDY, max_tokens=3)
    (output,) = llm.generate(prompt, params)
    assert output.prompt_token_ids == ids
    assert [each.outputs for each in llm.generate([prompt, prompt], params)] == [output.outputs] * 2


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=6)
@given(
    st.lists(
        st.tuples(st.integers(1, 60), st.integers(1, 12), st.integers(1, 3), st.floats(0, 2)),
        min_size=1,
        max_size=8,
    ),
    st.integers(80, 200),
    st.integers(4, 64),
)
def test_any_mix_of_requests_answers_as_each_alone(open_llm, requests, pool, chunk) -> None:
    engine = open_llm(kv_cache_tokens=pool, max_num_seqs=4, max_num_batched_tokens=chunk)
    prompts = [prompt_of(length, place) for place, (length, *_) in enumerate(requests)]
    params = [
        SamplingParams(n=n, max_tokens=most, temperature=heat, seed=place, ignore_eos=True)
        for place, (_, most, n, heat) in enumerate(requests)
    ]
    together = engine.generate(prompts, params)
    alone = [engine.generate(*pair)[0] for pair in zip(prompts, params, strict=True)]
    assert tokens(together) == tokens(alone)
