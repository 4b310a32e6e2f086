import json

import pytest
import torch

from abyssal import LLM
from abyssal.cli.quality import Quality


@pytest.fixture
def text(tmp_path):
    file = tmp_path / "text.txt"
    file.write_text("In the beginning God created the heaven and the earth. " * 40)
    return file


def test_it_writes_a_checkpoint_and_says_what_it_costs(run, chat_model, tmp_path, text):
    done = run(
        "quantize", chat_model, tmp_path / "fp8", "--to", "fp8", "--text", text, "--threads", 1
    )
    assert done.code == 0, done.err
    assert "perplexity: " in done.out
    assert "bits per token (KL)" in done.out
    assert LLM(str(tmp_path / "fp8")).config.quantization.method == "fp8"
    done = run("quantize", chat_model, tmp_path / "four", "--to", "mxfp4", "--json", "--text", text)
    report = json.loads(done.out)
    assert report["bytes"] < report["source_bytes"]
    quality = report["quality"]
    assert quality["tokens"] > 100
    assert 0 < quality["kl_bits_per_token"] < 10
    assert 0 <= quality["agreement"] <= 1
    assert quality["perplexity"] != quality["source_perplexity"]


def test_without_text_nothing_is_scored(run, chat_model, tmp_path):
    done = run("quantize", chat_model, tmp_path / "fp8", "--to", "fp8", "--json")
    assert "quality" not in json.loads(done.out)


def test_refusals_are_one_line(run, chat_model, base_model, tmp_path):
    for source, options, message in [
        (chat_model, ("--to", "q8"), "method must be one of fp8, mxfp4, got 'q8'"),
        (chat_model, ("--to", "fp8", "--experts-only"), "experts_only goes with mxfp4"),
        (base_model, ("--to", "fp8"), "is packed as fp8 already"),
        (chat_model, ("--to", "fp8", "--text", tmp_path / "none.txt"), "none.txt"),
    ]:
        done = run("quantize", source, tmp_path / "new", *options)
        assert done.code == 1
        assert message in done.err
        assert not (tmp_path / "new").exists()


def test_quality_is_what_its_definition_says():
    generator = torch.Generator().manual_seed(0)
    one, other = (torch.randn(7, 11, generator=generator) for _ in range(2))
    other[:4] = one[:4]
    targets = list(range(7))
    quality = Quality()
    quality.add(one[:3], other[:3], targets[:3])
    quality.add(one[3:], other[3:], targets[3:])
    p, q = one.double().softmax(1), other.double().softmax(1)
    divergence = float((p * (p / q).log2()).sum()) / 7
    figures = quality.figures()
    assert figures["tokens"] == 7
    assert figures["kl_bits_per_token"] == pytest.approx(divergence, rel=1e-5)
    bits = -sum(float(q[row, row].log2()) for row in range(7)) / 7
    assert figures["perplexity"] == pytest.approx(2**bits, rel=1e-5)
    agreed = int((p.argmax(1) == q.argmax(1)).sum())
    assert figures["agreement"] == pytest.approx(agreed / 7)
