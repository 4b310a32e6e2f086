"""The bundled model: what it is made of, and what it costs on chapters that it never saw."""

import json
import lzma
import math
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

import abyssal
from abyssal import LLM, Tokenizer
from abyssal.cli.evaluate import default_window, score
from abyssal.cli.experts import ExpertLoad, watch_routers
from abyssal.models.hub import bundled_model
from abyssal.nn import Linear
from abyssal.train import king_james
from abyssal.train.model import TrainingModel
from abyssal.train.recipe import KING_JAMES, count_parameters

#: Bits per byte of PPMd of order 16 that has read the training text, over the 59 chapters.
PPMD = 1.31


@pytest.fixture(scope="module")
def held_out() -> list[str]:
    """The 59 chapters that nothing in the recipe sees."""
    file = Path(__file__).parent / "held_out.txt.xz"
    return lzma.decompress(file.read_bytes()).decode("utf-8").split("\n\n")


@pytest.fixture(scope="module")
def sizes() -> dict[str, int]:
    return {file.name: file.stat().st_size for file in bundled_model().iterdir()}


def bits_per_byte(llm, texts):
    """What texts cost a model."""
    window = default_window(llm.config.max_position, llm.config.vocab_size)
    load = ExpertLoad(llm.model)
    with watch_routers(llm.model, load.seen):
        found = [score(llm, "chapter", text, window, window // 2, load) for text in texts]
    return math.fsum(each.bits for each in found) / sum(each.num_bytes for each in found)


def test_it_is_the_recipes_architecture_and_small_enough(sizes):
    config = json.loads((bundled_model() / "config.json").read_text())
    assert KING_JAMES.architecture.items() <= config.items()
    needed = ("model.safetensors", "config.json", "tokenizer.json", "tokenizer_config.json")
    assert sum(sizes[name] for name in needed) <= 12_000_000
    total, active = count_parameters(TrainingModel(KING_JAMES.architecture))
    assert 3 * active <= total
    assert config["n_routed_experts"] >= 16
    assert config["n_group"] >= 4


def test_the_file_packs_projections_alone_and_leaves_out_the_copies():
    with safe_open(bundled_model() / "model.safetensors", framework="pt") as file:
        types = {name: file.get_slice(name).get_dtype() for name in file.keys()}
    packed = {name for name, kind in types.items() if kind == "F8_E4M3"}
    assert packed == {name.removesuffix("_scale_inv") for name in types if "scale_inv" in name}
    assert all(name.endswith(("_proj.weight", "_with_mqa.weight")) for name in packed)
    plain = {name: kind for name, kind in types.items() if name not in packed}
    for name, kind in plain.items():
        wide = name.endswith(("scale_inv", "e_score_correction_bias"))
        assert kind == ("F32" if wide else "BF16"), name
    assert plain["model.layers.6.eh_proj.weight"] == "BF16"
    assert not {"model.layers.6.embed_tokens.weight", "model.layers.6.shared_head.head.weight"} & (
        types.keys()
    )
    assert "lm_head.weight" not in types


def test_the_held_out_chapters_are_not_in_the_training_text(held_out):
    data = (bundled_model() / "training_text.txt.xz").read_bytes()
    training = lzma.decompress(data).decode("utf-8")
    chapters = training.split("\n\n")
    assert len(chapters) + len(held_out) == king_james.NUM_CHAPTERS
    assert not set(chapters) & set(held_out)
    # The whole, in printed order, is the recipe's text.
    rest, held = iter(chapters), iter(held_out)
    numbers = range(1, king_james.NUM_CHAPTERS + 1)
    whole = [next(held) if number % 20 == 11 else next(rest) for number in numbers]
    named = [king_james.Chapter(number, "", text) for number, text in enumerate(whole, 1)]
    assert king_james.fingerprint(named) == king_james.SHA256


def test_held_out_chapters_cost_less_than_with_ppmd_and_load_the_experts_evenly(
    held_out, full_profile
):
    # Every third chapter by default: the whole set takes some minutes on a busy machine.
    texts = held_out if full_profile else held_out[::3]
    llm = LLM(str(bundled_model()))
    window = default_window(llm.config.max_position, llm.config.vocab_size)
    load, scores = ExpertLoad(llm.model), []
    with watch_routers(llm.model, load.seen):
        for text in texts:
            scores.append(score(llm, "chapter", text, window, window // 2, load))
    bits = math.fsum(each.bits for each in scores) / sum(each.num_bytes for each in scores)
    assert bits <= 1.20 < PPMD
    busiest = [row["max_over_mean"] for row in load.figures()]
    assert len(busiest) == 5
    # The bound of 1.5 is for all chapters together; a third of them scatters a little more.
    assert max(busiest) <= (1.5 if full_profile else 1.6)


def test_packing_to_fp8_costs_at_most_a_hundredth_of_a_bit(held_out):
    # The weights before packing are not shipped. Packing the shipped ones again, at scales that put
    # the rounding points elsewhere, makes an error of the same kind and size.
    llm = LLM(str(bundled_model()), dtype="float32")
    before, errors = bits_per_byte(llm, held_out[::12]), []
    for layer in llm.model.modules():
        if isinstance(layer, Linear) and layer.packed:
            weight, scales = layer.dequantized(torch.float32), layer.scales * 1.37
            rows, columns = weight.shape
            each = scales.repeat_interleave(128, 0)[:rows].repeat_interleave(128, 1)[:, :columns]
            layer.set_packed((weight / each).to(torch.float8_e4m3fn), scales)
            errors.append((layer.dequantized(torch.float32) - weight).norm() / weight.norm())
    # Three bits behind the leading one: errors up to 1/16 of a number, about 0.026 in the mean.
    assert 0.02 < min(errors) and max(errors) < 0.035
    assert abs(bits_per_byte(llm, held_out[::12]) - before) <= 0.01


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_every_tier_of_the_machine_gives_the_same_bits_per_byte(held_out, dtype):
    llm, before = LLM(str(bundled_model()), dtype=dtype), abyssal.kernel_tier()
    try:
        found = {}
        for name in abyssal.kernel_tiers():
            abyssal.set_kernel_tier(name)
            found[name] = bits_per_byte(llm, held_out[::30])
    finally:
        abyssal.set_kernel_tier(before)
    # Four digits. Sums in another order; pairs of bfloat16 numbers round weights and activations.
    assert max(found.values()) - min(found.values()) < 5e-4


def test_a_cache_in_fp8_costs_at_most_a_thousandth_of_a_bit(held_out):
    plain, packed = (LLM(str(bundled_model()), kv_cache_dtype=kind) for kind in ("auto", "fp8"))
    costs = [bits_per_byte(llm, held_out[::12]) for llm in (plain, packed)]
    assert 0 < abs(costs[1] - costs[0]) <= 0.001


def test_the_tokenizer_encodes_its_text_and_any_other(held_out):
    tokenizer = Tokenizer.from_pretrained(bundled_model())
    for text in [*held_out[:5], "naïve 创世记 \x00\r\n 🕯"]:
        assert tokenizer.decode(tokenizer.encode(text, parse_special=False)) == text
    assert tokenizer.add_bos_token
    assert torch.tensor(tokenizer.encode(held_out[0])).max() < 4096
