"""``abyssal bench``: the table, the record, and that nothing wrong is timed."""

import json
import statistics

import pytest
import torch

from abyssal.bench import eager, memory, ops, timing
from abyssal.bench.rows import Row

COLUMNS = ["name", "unit", "ours", "peer", "peer_name", "ratio", "limit"]


@pytest.fixture
def small(monkeypatch):
    """The same work on sizes that take no time."""
    monkeypatch.setattr(memory, "BYTES", 2**20)
    monkeypatch.setattr(ops, "TOKENS", 64)
    monkeypatch.setattr(ops, "ROWS", 128)
    monkeypatch.setattr(ops, "COLUMNS", 256)
    compare = timing.compare

    def quick(ours, peer, **_):
        return compare(ours, peer, samples=1, sample_seconds=1e-5)

    monkeypatch.setattr(ops, "compare", quick)


def test_the_record_has_the_machine_and_every_column(run, small):
    done = run("bench", "ops", "--json")
    assert done.code == 0, done.err
    report = json.loads(done.out)
    machine = report["machine"]
    assert machine["threads"] == 1
    assert machine["read_gb_per_s"] > 0
    names = [row["name"] for row in report["rows"]]
    assert len(set(names)) == len(names)
    for family in ("route", "permute", "quantize FP8", "dequantize FP8", "dequantize MXFP4"):
        assert any(name.startswith(family) for name in names), family
    for row in report["rows"]:
        assert list(row) == COLUMNS
        assert row["ours"] > 0
        assert row["peer_name"] is None or (row["peer"] > 0 and row["ratio"] > 0)


def test_the_table_has_a_line_for_each_row(run, small):
    done = run("bench", "ops")
    assert done.code == 0, done.err
    header, titles, *lines = done.out.splitlines()
    assert "1 thread, reads" in header
    assert "ratio" in titles
    assert len(lines) >= 15
    assert any("quantize FP8 1x128 from bf16" in line for line in lines)


def test_a_wrong_result_is_not_timed(small, monkeypatch):
    right = eager.quantize_rows

    def wrong(x):
        codes, scales = right(x)
        codes.view(torch.uint8)[0, 0] ^= 1
        return codes, scales

    monkeypatch.setattr(eager, "quantize_rows", wrong)
    with pytest.raises(RuntimeError, match="1 bytes differ"):
        list(ops.quantization())


def test_other_experts_are_not_timed(small, monkeypatch):
    right = ops.ops.route

    def wrong(logits, **arguments):
        weights, indices = right(logits, **arguments)
        return weights, (indices + 1) % 8

    monkeypatch.setattr(ops.ops, "route", wrong)
    with pytest.raises(RuntimeError, match="chose other experts"):
        list(ops.routing())


def test_an_unknown_subject_and_no_threads_are_refused(run):
    assert "'cats' cannot be measured; it must be one of ops, tokenizer" in run("bench", "cats").err
    assert "--threads is 0; it must be at least 1" in run("bench", "ops", "--threads", 0).err


def test_the_share_of_the_limit_reads_the_same_way_for_times_and_rates():
    assert Row("work", "GB/s", 5.0, limit=10.0).share_of_limit == 0.5
    assert Row("work", "us per token", 2.0, limit=1.0).share_of_limit == 0.5
    assert Row("work", "ns", 2.0).share_of_limit is None


def test_the_ratio_is_the_median_over_neighboring_samples(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(timing.time, "perf_counter", lambda: clock[0])
    # The machine is slow for a while: both sides of the second pair take ten times as long.
    slowness = iter([1.0] * 4 + [1.0, 1.0, 10.0, 10.0, 1.0, 1.0])

    def work(seconds):
        def call():
            clock[0] += seconds * next(slowness)

        return call

    found = timing.compare(work(1.0), work(3.0), samples=3, sample_seconds=1.0)
    assert found == timing.Comparison(ours=1.0, peer=3.0, ratio=3.0)


def test_a_model_is_measured_in_the_columns_of_llama_bench(
    run, wordless_model, tmp_path, monkeypatch
):
    monkeypatch.setattr(memory, "BYTES", 2**20)
    options = ("--context", 8, "--context", 20, "--decode", 5, "--repetitions", 2)
    done = run("bench", "model", wordless_model, *options, "--plot", tmp_path / "speed.png")
    assert done.code == 0, done.err
    _, titles, _, *lines = done.out.splitlines()
    assert titles == "| model | size | params | backend | threads | test | t/s |"
    tests = [line.split(" | ")[5] for line in lines]
    assert tests == ["pp8", "tg5 @ d8", "pp20", "tg5 @ d20"]
    assert (tmp_path / "speed.png").read_bytes().startswith(b"\x89PNG")
    report = json.loads(run("bench", "model", wordless_model, *options, "--json").out)
    assert report["machine"]["threads"] == 1
    for test in report["tests"]:
        # Two prompts; five steps after each.
        assert len(test["seconds"]) == (10 if test["decoded"] else 2)
        middle = statistics.median(test["seconds"])
        tokens = 1 if test["decoded"] else test["context"]
        assert test["tokens_per_second"] == pytest.approx(tokens / middle)


def test_what_a_model_cannot_hold_is_refused(run, wordless_model, monkeypatch):
    monkeypatch.setattr(memory, "BYTES", 2**20)
    done = run("bench", "model", wordless_model, "--context", 10**6)
    assert "--context 1000000 is out of range: 1 to " in done.err
    assert "--decode is 0" in run("bench", "model", wordless_model, "--decode", 0).err
    assert "go with model, not with ops" in run("bench", "ops", wordless_model).err
