"""What goes wrong on the way ends the request it belongs to, and nothing else."""

from __future__ import annotations

import ast
import inspect
import os
import signal
import sys
import threading
import time

import pytest
import torch

from abyssal import SamplingParams
from abyssal.engine import chat, memory, prompts, validate
from abyssal.engine.shared import helpful_threads
from abyssal.errors import RequestError

from .conftest import check_empty
from .test_generate import prompt_of, tokens

GREEDY = SamplingParams(temperature=0.0, max_tokens=12, ignore_eos=True)
BAD = 7


@pytest.fixture
def poison(llm):
    """Overwrites a weight for the length of a test."""

    def write(weight: torch.Tensor, place: object, value: float) -> None:
        with torch.no_grad():
            weight[place] = value

    return write


def test_a_token_without_finite_embedding_ends_its_request_alone(llm, poison) -> None:
    healthy = [prompt_of(5), prompt_of(300)]
    healthy = [[token if token != BAD else 8 for token in prompt] for prompt in healthy]
    expected = tokens(llm.generate(healthy, GREEDY))
    poison(llm.model.embed.weight, BAD, float("nan"))
    mixed = llm.generate([healthy[0], [5, BAD, 6], healthy[1], [BAD] * 300], GREEDY)
    assert [output.outputs[0].finish_reason for output in mixed] == [
        "length", "error", "length", "error",
    ]  # fmt: skip
    assert "the embedding" in mixed[1].error
    assert "the embedding" in mixed[3].outputs[0].error
    assert mixed[1].outputs[0].token_ids == []
    assert tokens([mixed[0], mixed[2]]) == expected
    # The pages of the failed requests are dealt out again now.
    assert tokens(llm.generate(healthy, GREEDY)) == expected
    check_empty(llm)


@pytest.mark.parametrize(
    ("damage", "where"),
    [
        (lambda m: m.layers[0].attention.output.weight, r"layer 0 \(attention\)"),
        (lambda m: m.layers[1].attention.kv_norm.weight, r"layer 1 \(attention\)"),
        (lambda m: m.layers[0].mlp.down.weight, r"layer 0 \(the feed-forward part\)"),
        (lambda m: m.layers[1].moe.router.weight, r"layer 1 \(the router\)"),
        (lambda m: m.layers[1].moe.shared.up.weight, r"layer 1 \(the feed-forward part\)"),
        (lambda m: m.norm.weight, "the output head"),
        (lambda m: m.head.weight, "the output head"),
    ],
)
def test_the_error_names_the_first_layer_that_is_not_finite(llm, damage, where) -> None:
    expected = tokens(llm.generate(prompt_of(5), GREEDY))
    weight = damage(llm.model)
    before = weight.detach().clone()
    with torch.no_grad():
        weight.fill_(float("nan"))
    (output,) = llm.generate(prompt_of(5), GREEDY)
    answer = output.outputs[0]
    assert answer.finish_reason == "error"
    assert output.finished
    with pytest.raises(RequestError, match=where):
        raise RequestError(answer.error)
    with pytest.raises(RequestError, match=where):
        llm.logits(prompt_of(5))
    with torch.no_grad():
        weight.copy_(before)
    assert tokens(llm.generate(prompt_of(5), GREEDY)) == expected


def test_an_answer_that_goes_wrong_keeps_its_tokens(llm, poison) -> None:
    (free,) = tokens(llm.generate(prompt_of(5), GREEDY))
    bad = next(token for token in free[3:] if token not in prompt_of(5) + free[:3])
    before = llm.model.embed.weight[bad].clone()
    poison(llm.model.embed.weight, bad, float("inf"))
    (output,) = llm.generate(prompt_of(5), GREEDY)
    answer = output.outputs[0]
    assert answer.finish_reason == "error"
    assert answer.token_ids == free[: free.index(bad) + 1]
    poison(llm.model.embed.weight, bad, before)
    assert tokens(llm.generate(prompt_of(5), GREEDY)) == [free]


@pytest.mark.parametrize("step", [1, 2, 5])
@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, MemoryError])
def test_an_exception_in_the_model_gives_every_page_back(llm, monkeypatch, error, step) -> None:
    expected = tokens(llm.generate([prompt_of(40), prompt_of(9)], GREEDY))
    forward, calls = llm.model.forward, []

    def fail(*arguments: object) -> torch.Tensor:
        calls.append(1)
        if len(calls) == step:
            raise error("in the middle of a layer")
        return forward(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(llm.model, "forward", fail)
        with pytest.raises(error):
            llm.generate([prompt_of(40), prompt_of(9)], GREEDY)
        check_empty(llm)
    assert tokens(llm.generate([prompt_of(40), prompt_of(9)], GREEDY)) == expected


def test_an_exception_anywhere_in_a_step_leaves_the_engine_usable(llm, monkeypatch) -> None:
    """Every line of the engine in turn is interrupted once."""
    params = SamplingParams(n=2, max_tokens=4, seed=1, ignore_eos=True, logprobs=1)
    pair = [prompt_of(20), prompt_of(3)]
    expected = tokens(llm.generate(pair, params))
    count = 0

    def interrupted(line: int) -> bool:
        seen = 0

        def trace(frame, event, _argument):
            nonlocal seen
            if "/abyssal/engine/" not in frame.f_code.co_filename:
                return None
            if event == "line":
                seen += 1
                if seen == line:
                    raise KeyboardInterrupt
            return trace

        sys.settrace(trace)
        try:
            llm.generate(pair, params)
        except KeyboardInterrupt:
            return True
        finally:
            sys.settrace(None)
        return False

    line = 1
    while interrupted(line):
        # The interruption may lie in the cleaning itself; the next use makes good for that.
        assert tokens(llm.generate(pair, params)) == expected
        check_empty(llm)
        count += 1
        line += 1 + line // 12
    assert count > 30


def test_ctrl_c_ends_generating_long_before_the_answer_would_end(llm) -> None:
    params = SamplingParams(temperature=0.0, max_tokens=1500, ignore_eos=True)
    timer = threading.Timer(0.4, lambda: os.kill(os.getpid(), signal.SIGINT))
    begin = time.process_time()
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        llm.generate([prompt_of(20), prompt_of(30)], params)
    # Processor time, which a busy machine does not stretch: 0.4 s until the signal, and a step. The
    # whole answers take ten times as much.
    assert time.process_time() - begin < 1.4
    check_empty(llm)
    assert len(llm.generate(prompt_of(20), GREEDY)[0].outputs[0].token_ids) == 12


def test_a_stream_that_nobody_reads_on_gives_its_pages_back(llm) -> None:
    stream = llm.stream(prompt_of(30), GREEDY)
    next(stream)
    assert llm.stats()["used_pages"] > 0
    stream.close()
    check_empty(llm)
    # One that was never started holds nothing.
    llm.stream(prompt_of(30), GREEDY)
    check_empty(llm)


def test_generate_inside_a_stream_shares_the_engine(llm) -> None:
    expected = tokens(llm.generate([prompt_of(30), prompt_of(8)], GREEDY))
    inner = []
    outputs = []
    for output in llm.stream(prompt_of(30), GREEDY):
        outputs.append(output)
        if len(outputs) == 3:
            inner = tokens(llm.generate(prompt_of(8), GREEDY))
    assert [*tokens(outputs[-1:]), *inner] == expected
    assert [len(output.outputs[0].token_ids) for output in outputs] == list(range(1, 13))


def test_threads_get_their_own_answers(llm) -> None:
    given = [prompt_of(5 + 9 * place, place) for place in range(6)]
    expected = tokens(llm.generate(given, GREEDY))
    answers: dict[int, list[list[int]]] = {}
    errors: list[BaseException] = []

    def work(place: int) -> None:
        try:
            if place % 2:
                *_, last = llm.stream(given[place], GREEDY)
                answers[place] = tokens([last])
            else:
                answers[place] = tokens(llm.generate(given[place], GREEDY))
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(place,)) for place in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert [answers[place][0] for place in range(6)] == expected


def test_a_failure_in_one_thread_leaves_the_others_alone(llm, monkeypatch) -> None:
    expected = tokens(llm.generate(prompt_of(30), GREEDY))
    stream = llm.stream(prompt_of(30), GREEDY)
    outputs = [next(stream), next(stream)]
    forward = llm.model.forward

    def fail(*_arguments: object) -> torch.Tensor:
        monkeypatch.setattr(llm.model, "forward", forward)
        raise RuntimeError("once")

    monkeypatch.setattr(llm.model, "forward", fail)
    with pytest.raises(RuntimeError, match="once"):
        llm.generate(prompt_of(9), GREEDY)
    outputs += stream
    assert tokens(outputs[-1:]) == expected
    assert [len(output.outputs[0].token_ids) for output in outputs] == list(range(1, 13))


def test_num_threads_holds_for_the_steps_alone(open_llm) -> None:
    engine = open_llm(num_threads=2)
    seen = []
    forward = engine.model.forward
    engine.model.forward = lambda *arguments: (
        seen.append(torch.get_num_threads()),
        forward(*arguments),
    )[1]
    engine.generate(prompt_of(4), GREEDY)
    assert set(seen) == {2}
    assert torch.get_num_threads() == 1


def test_small_models_take_one_thread_and_large_ones_leave_torchs_number(open_llm) -> None:
    assert open_llm().num_threads == 1
    weights = torch.nn.Linear(4_000, 4_000, bias=False, device="meta")  # 64 MB in float32
    assert helpful_threads(weights) is None
    assert helpful_threads(weights.to(torch.bfloat16)) == 1


def test_checks_of_requests_hold_under_python_o() -> None:
    """``python -O`` drops assertions: none of them may stand between a request and the engine."""
    for module in (validate, prompts, chat, memory):
        tree = ast.parse(inspect.getsource(module))
        assert not [node for node in ast.walk(tree) if isinstance(node, ast.Assert)]
