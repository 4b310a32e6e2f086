"""A decoder layer as one call: its modules' bits, right to rounding, and modules where need be."""

import dataclasses

import pytest
import torch

from abyssal import ops, reference
from abyssal.models import load_model
from abyssal.models.whole import _weights
from abyssal.testing.checkpoints import write_checkpoint
from abyssal.testing.families import FAMILIES
from abyssal.testing.numeric import assert_same_bits
from abyssal.testing.steps import Sequence


def nobody(_layer, _name, _tensor):
    """Look at nothing; being there, it makes every part a call of its own."""


def run(model, on_layer, cache_dtype, prompt=270):
    """Logits of a prompt in two parts and of three more tokens, and the cached rows."""
    sequence = Sequence(model, prompt, prompt + 3, cache_dtype=cache_dtype)
    ids = [(7 * place) % 128 for place in range(prompt + 3)]
    parts = [ids[:261], ids[261:prompt], *([each] for each in ids[prompt:])]
    logits = [sequence.step(part, on_layer) for part in parts]
    return torch.cat(logits), torch.cat(sequence.caches)


def make(tmp_path, dtype="bfloat16", **settings):
    write_checkpoint(tmp_path, torch_dtype=dtype, num_hidden_layers=2, **settings)
    return load_model(tmp_path)[0]


@pytest.mark.parametrize("packing", ["none", "fp8", "ue8m0", "mxfp4"])
@pytest.mark.parametrize("family", list(FAMILIES))
def test_a_layer_has_the_bits_of_its_modules(family, packing, tmp_path):
    model = make(tmp_path, family=family, packing=packing)
    layer, hidden = model.layers[1], torch.zeros(1, 64)
    with torch.no_grad():
        assert layer.path(hidden, model.new_caches(64)[0]) == "compiled"
    for got, want in zip(run(model, None, None), run(model, nobody, None), strict=True):
        assert_same_bits(got, want)


@pytest.mark.parametrize("cache_dtype", [torch.float32, torch.bfloat16, torch.uint8])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_every_pair_of_types_has_the_bits_of_its_modules(dtype, cache_dtype, tmp_path):
    model = make(tmp_path, dtype, packing="fp8")
    whole, parts = run(model, None, cache_dtype), run(model, nobody, cache_dtype)
    for got, want in zip(whole, parts, strict=True):
        assert_same_bits(got, want)


def call(weights, operation, generator, tokens=20, dtype=torch.float32):
    """Call an operation on a prompt of a sequence of its own."""
    hidden = torch.randn(tokens, 64, generator=generator)
    angles = torch.rand(tokens, weights.rope_dim // 2, generator=generator)
    width = weights.kv_norm[0].shape[0] + weights.rope_dim
    cache = torch.full((64, width), 7.0)
    out = operation(
        hidden,
        angles.cos(),
        angles.sin(),
        cache,
        torch.arange(tokens),
        torch.tensor([[0, tokens, 0, 0]], dtype=torch.int32)[: min(tokens, 1)],
        torch.tensor([[0, 1]], dtype=torch.int32)[: min(tokens, 1)],
        page_size=32,
        dtype=dtype,
    )
    return out, cache


@pytest.mark.parametrize("packing", ["none", "fp8", "mxfp4"])
@pytest.mark.parametrize("family", ["v2-lite", "v3"])
@pytest.mark.parametrize("index", [0, 1])
def test_a_layer_is_right(index, family, packing, tmp_path):
    model = make(tmp_path, "float32", family=family, packing=packing)
    weights = _weights(model.layers[index])

    def plainly(*arguments, **options):
        return reference.decoder_layer(weights, *arguments, **options)

    def source():
        return torch.Generator().manual_seed(3)

    want, want_cache = call(weights, plainly, source())
    got, got_cache = call(weights, ops.DecoderLayer(weights), source())
    # About ten products one after the other, of rows of at most 96, each term rounded once.
    unit = 10 * 96 * 2.0**-24
    torch.testing.assert_close(
        got_cache, want_cache, rtol=0, atol=unit * float(want_cache.abs().max())
    )
    torch.testing.assert_close(got, want, rtol=0, atol=unit * float(want.abs().max()))
    assert (got_cache[20:] == 7.0).all()


def test_no_tokens_give_no_rows(tmp_path):
    weights = _weights(make(tmp_path).layers[1])
    got, cache = call(weights, ops.DecoderLayer(weights), torch.Generator(), 0, torch.bfloat16)
    assert got.shape == (0, 64)
    assert (cache == 7.0).all()


def test_modules_are_called_where_somebody_looks_or_has_changed_them(tmp_path):
    model = make(tmp_path, packing="fp8")
    layer, hidden = model.layers[1], torch.zeros(1, 64)
    cache = model.new_caches(64, torch.float32)[0].zero_()

    def path():
        with torch.no_grad():
            return layer.path(hidden, cache)

    assert layer.path(hidden, cache) == "modules"  # gradients may be recorded
    assert path() == "compiled"
    seen = []
    handle = layer.attention.output.register_forward_hook(lambda *_: seen.append(1))
    assert path() == "modules"
    run(model, None, None)
    assert seen
    handle.remove()
    assert path() == "compiled"
    with torch.no_grad():
        assert layer.path(hidden, cache[:, ::2]) == layer.path(hidden.double(), cache) == "modules"

    class Louder(type(layer.moe.shared)):
        def forward(self, x):
            return 2 * super().forward(x)

    before = run(model, None, None)[0]
    layer.moe.shared.__class__ = Louder
    layer.post_norm.weight = torch.nn.Parameter(layer.post_norm.weight.detach() * 2)
    assert path() == "modules"
    assert not torch.equal(run(model, None, None)[0], before)


def test_weights_that_change_are_seen(tmp_path):
    model = make(tmp_path)
    layer = model.layers[1]
    before = run(model, None, None)[0]
    for change in (
        lambda: setattr(layer.moe.router, "correction_bias", torch.arange(16.0)),
        lambda: setattr(layer.moe.experts[15].up, "weight", layer.moe.experts[4].up.weight),
        lambda: layer.attention.kv_norm.weight.data.mul_(3),
    ):
        change()
        after = run(model, None, None)[0]
        assert not torch.equal(after, before)
        assert_same_bits(after, run(model, nobody, None)[0])
        before = after


def test_what_does_not_fit_is_refused(tmp_path):
    weights = _weights(make(tmp_path, packing="fp8").layers[1])
    narrow = (weights.input_norm[0][:-1].clone(), 1e-6)
    with pytest.raises(ValueError, match="input_norm has 63 elements; it must have 64"):
        ops.DecoderLayer(dataclasses.replace(weights, input_norm=narrow))
    with pytest.raises(ValueError, match="kv_up has 128 elements; it must have 144"):
        ops.DecoderLayer(dataclasses.replace(weights, v_dim=20))
    layer, generator = ops.DecoderLayer(weights), torch.Generator()

    def misplaced(hidden, cos, sin, cache, slots, spans, tables, **options):
        return layer(hidden, cos, sin, cache, slots + 60, spans, tables, **options)

    with pytest.raises(ValueError, match="slot"):
        call(weights, misplaced, generator)
    with pytest.raises(TypeError, match="dtype"):
        call(weights, layer, generator, dtype=torch.float16)

    def doubled(hidden, *rest, **options):
        return layer(hidden.double(), *rest, **options)

    with pytest.raises(TypeError, match="hidden"):
        call(weights, doubled, generator)


def test_a_cache_that_lies_in_a_weight_is_refused(tmp_path):
    weights = _weights(make(tmp_path).layers[1])
    size = weights.kv_norm[0].shape[0]
    memory = torch.ones(64, size + weights.rope_dim)
    norm = (memory.view(-1)[:size], 1e-6)
    layer = ops.DecoderLayer(dataclasses.replace(weights, kv_norm=norm))

    def shared(hidden, cos, sin, cache, *rest, **options):
        return layer(hidden, cos, sin, memory, *rest, **options)

    with pytest.raises(ValueError, match="cache shares memory with a weight"):
        call(weights, shared, torch.Generator())
    assert bool((memory == 1).all())
