import json
import math
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from abyssal import LLM
from abyssal.cli import evaluate
from abyssal.cli.experts import ExpertLoad


class CountingModel:
    """Stands for a model whose prediction is known in closed form.

    After ``n`` tokens of a window it gives every token of the vocabulary a logit that depends on
    the token, on the last token and on ``n``, so that a wrong shift, a wrong context or a token
    left out changes the sum.
    """

    vocab_size = 50

    def __init__(self, *, bos):
        self.config = SimpleNamespace(vocab_size=self.vocab_size)
        self.tokenizer = SimpleNamespace(
            add_bos_token=bos, bos_token_id=0 if bos else None, encode=self.encode
        )
        self.layers = []
        self.windows = []

    def require_tokenizer(self):
        return self.tokenizer

    @staticmethod
    def encode(text, *, parse_special):
        assert parse_special is False
        return [1 + byte % 49 for byte in text.encode()]

    def row(self, context):
        tokens = torch.arange(self.vocab_size, dtype=torch.float64)
        return torch.sin(tokens * (context[-1] + 1) + 0.1 * len(context)).float()

    def logits(self, token_ids):
        self.windows.append(list(token_ids))
        return torch.stack([self.row(token_ids[: n + 1]) for n in range(len(token_ids))])


def brute_force(model, text, window, stride):
    """Score token by token, choosing each token's window by the definition."""
    ids = ([0] if model.tokenizer.add_bos_token else []) + model.encode(text, parse_special=False)
    bits = 0.0
    for place in range(len(ids)):
        if place == 0:
            bits += 0.0 if model.tokenizer.add_bos_token else math.log2(model.vocab_size)
            continue
        end = min(window, len(ids))
        while end <= place:
            end = min(end + stride, len(ids))
        begin = max(0, end - window)
        row = model.row(ids[begin:place]).double()
        bits -= float(row.log_softmax(0)[ids[place]]) / math.log(2)
    return bits


@pytest.mark.parametrize("bos", [False, True])
@pytest.mark.parametrize(("window", "stride"), [(100, 50), (16, 8), (16, 15), (16, 1), (7, 3)])
def test_every_token_is_scored_once_in_the_window_that_first_sees_it(bos, window, stride):
    model = CountingModel(bos=bos)
    text = "In the beginning was the Word — and 40 more."
    found = evaluate.score(model, "file", text, window, stride, ExpertLoad(model))
    assert found.num_bytes == len(text.encode())
    assert found.num_tokens == len(text.encode())
    # f32 logarithms of about 46 tokens: 46 * 2^-24 * 8 bits, rounded up.
    assert found.bits == pytest.approx(brute_force(model, text, window, stride), abs=1e-4)
    assert all(len(ids) <= window for ids in model.windows)


def test_a_text_that_fits_the_window_is_scored_in_one_piece():
    model = CountingModel(bos=True)
    evaluate.score(model, "file", "word", 100, 50, ExpertLoad(model))
    assert len(model.windows) == 1


def test_a_single_token_without_beginning_costs_a_guess_among_all_tokens():
    model = CountingModel(bos=False)
    found = evaluate.score(model, "file", "x", 10, 5, ExpertLoad(model))
    assert found.bits == math.log2(model.vocab_size)
    assert found.figures()["perplexity"] == pytest.approx(model.vocab_size)


@given(st.integers(1, 300), st.integers(2, 40), st.data())
def test_windows_cover_a_text_once_and_in_order(num_tokens, window, data):
    stride = data.draw(st.integers(1, window - 1))
    covered = []
    for begin, end, new in evaluate.windows(num_tokens, window, stride):
        assert 0 <= begin <= new < end <= num_tokens
        assert end - begin <= window
        # From the second window on, the first new token has context.
        assert new == 0 or begin < new
        covered += range(new, end)
    assert covered == list(range(num_tokens))


def test_cross_entropy_is_in_bits():
    logits = torch.tensor([[0.0, 0.0], [math.log(3.0), 0.0]])
    assert evaluate.cross_entropy_bits(logits, [0, 1]) == pytest.approx(1.0 + 2.0, abs=1e-6)


@pytest.mark.parametrize(
    ("window", "stride", "message"),
    [
        (1, 1, r"--window 1 is out of range: 2 to the model's context of 64"),
        (65, 1, r"--window 65 is out of range"),
        (64, 0, r"--stride 0 is out of range: 1 to 63"),
        (64, 64, r"--stride 64 is out of range: 1 to 63"),
    ],
)
def test_a_window_that_the_model_cannot_see_is_refused(window, stride, message):
    with pytest.raises(ValueError, match=message):
        evaluate.check_window(window, stride, 64)


def test_the_default_window_is_the_context_as_far_as_memory_goes():
    assert evaluate.default_window(1024, 4096) == 1024
    assert evaluate.default_window(163840, 4096) == 4096
    assert evaluate.default_window(163840, 129280) == 2**28 // 129280


def test_bad_files_are_refused_by_name(tmp_path):
    empty, binary = tmp_path / "empty.txt", tmp_path / "binary.txt"
    empty.write_bytes(b"")
    binary.write_bytes(b"abc\xff")
    with pytest.raises(ValueError, match=r"empty\.txt is empty"):
        evaluate.read_text(empty)
    with pytest.raises(ValueError, match=r"binary\.txt is not UTF-8: byte 3 of 4"):
        evaluate.read_text(binary)
    with pytest.raises(FileNotFoundError):
        evaluate.read_text(tmp_path / "absent.txt")


def test_line_ends_are_scored_as_they_are(tmp_path):
    file = tmp_path / "crlf.txt"
    file.write_bytes(b"one\r\ntwo\n")
    assert evaluate.read_text(file) == "one\r\ntwo\n"


def test_the_command_reports_what_the_engines_logits_say(run, base_model, tmp_path):
    first, second = tmp_path / "one.txt", tmp_path / "two.txt"
    first.write_text("And the earth was without form, and void", encoding="utf-8")
    second.write_text("Let there be light — 光", encoding="utf-8")
    done = run("evaluate", base_model, first, second, "--json", "--dtype", "float32")
    assert done.code == 0, done.err
    report = json.loads(done.out)
    llm = LLM(base_model, dtype="float32")
    for row, file in zip(report["files"], (first, second), strict=True):
        text = file.read_text(encoding="utf-8")
        ids = [llm.require_tokenizer().bos_token_id, *llm.require_tokenizer().encode(text)]
        chosen = llm.logits(ids)[:-1].double().log_softmax(1)
        bits = -float(chosen.gather(1, torch.tensor(ids[1:]).unsqueeze(1)).sum()) / math.log(2)
        assert row["bytes"] == len(text.encode())
        assert row["tokens"] == len(ids) - 1
        assert row["bits"] == pytest.approx(bits, rel=1e-5)
        assert row["bits_per_byte"] == row["bits"] / row["bytes"]
    total = report["total"]
    assert total["bytes"] == sum(row["bytes"] for row in report["files"])
    assert total["bits"] == pytest.approx(sum(row["bits"] for row in report["files"]))
    assert (report["window"], report["stride"]) == (2048, 1024)


def test_every_token_counts_once_in_the_expert_load(run, base_model, tmp_path):
    file = tmp_path / "text.txt"
    file.write_text("And God said, Let there be light: and there was light. " * 6)
    whole = json.loads(run("evaluate", base_model, file, "--json").out)
    cut = json.loads(
        run("evaluate", base_model, file, "--json", "--window", 40, "--stride", 10).out
    )
    tokens = whole["files"][0]["tokens"] + 1  # the beginning token is routed, too
    for report in (whole, cut):
        assert [row["layer"] for row in report["expert_load"]] == [1, 2]
        for row in report["expert_load"]:
            counts = row["counts"]
            assert sum(counts) == tokens * 4
            assert row["max_over_mean"] == max(counts) / (sum(counts) / len(counts))
            assert counts[row["busiest"]] == max(counts)
    assert cut["total"]["bits"] != whole["total"]["bits"]


def test_words_state_window_and_stride(run, base_model, tmp_path):
    file = tmp_path / "text.txt"
    file.write_text("And God said")
    done = run("evaluate", base_model, file, "--window", 64, "--stride", 16)
    assert "window: 64 tokens, stride 16; each file from its beginning" in done.out
    assert "bits per byte, perplexity" in done.out
    assert "times the mean load" in done.out


def test_a_bad_file_is_refused_before_the_model_is_loaded(run, base_model, tmp_path):
    done = run("evaluate", base_model, tmp_path / "absent.txt")
    assert done.code == 1
    assert "absent.txt" in done.err
    assert "loading" not in done.err
