"""How many tokens of each sequence a step takes."""

import pytest

from abyssal import SamplingParams
from abyssal.engine import scheduler


@pytest.fixture
def steps(llm, monkeypatch):
    """The token counts of every step that the engine plans."""
    seen, plan = [], scheduler.Scheduler.plan

    def watched(self):
        step = plan(self)
        if step is not None:
            seen.append(step.counts)
        return step

    monkeypatch.setattr(scheduler.Scheduler, "plan", watched)
    return seen


def test_a_prompt_alone_is_taken_whole(llm, steps):
    llm.generate([list(range(5, 295)) * 5], SamplingParams(max_tokens=2, ignore_eos=True))
    assert steps == [[1450], [1]]


def test_a_prompt_beside_an_answer_is_taken_in_parts(llm, steps, monkeypatch):
    monkeypatch.setattr(scheduler, "BESIDE_ANSWERS", 300)
    few, many = (SamplingParams(max_tokens=count, ignore_eos=True) for count in (1, 8))
    stream = llm.stream([7, 8, 9], many)
    next(stream)
    (output,) = llm.generate([list(range(5, 295)) * 3], few)
    assert len(output.outputs[0].token_ids) == 1
    # An answer's one token, then whole segments of the prompt that fit beside it.
    assert [counts for counts in steps if len(counts) == 2] == [[1, 256]] * 3 + [[1, 102]]
    assert len(list(stream)) == 7
