"""A latent cache in FP8: read as the reference reads it, written as what would have been cached."""

import pytest
import torch

from abyssal import ops, reference
from abyssal.reference.checks import row_width
from abyssal.reference.latents import pack_rows, unpack_rows
from abyssal.testing.numeric import assert_same_bits

from .attention_case import DTYPES, PACKINGS, SIZES, Layer


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("packing", PACKINGS)
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_a_cache_in_fp8_is_read_as_by_the_reference(sizes, packing, dtype, generator):
    layer = Layer(sizes, 70, generator, packing, dtype)
    absolute, relative = layer.bound(dtype, packed=True)
    for start, end, expanded in [(0, 70, 0), (0, 70, 70), (50, 60, 55)]:
        found = layer.attend(ops, start, end, expanded, torch.uint8)
        expected = layer.attend(reference, start, end, expanded, torch.uint8)
        torch.testing.assert_close(found, expected, rtol=relative, atol=2 * absolute)


@pytest.mark.parametrize("norm_dtype", DTYPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kv_lora", [512, 200])
def test_rows_in_fp8_equal_the_references(kv_lora, dtype, norm_dtype, generator):
    tokens, rope = 100, 64
    values = torch.randn(tokens, kv_lora + rope, generator=generator).to(dtype)
    norm = (1 + torch.randn(kv_lora, generator=generator) * 0.1).to(norm_dtype)
    angles = torch.randn(tokens, rope // 2, generator=generator)
    slots = torch.randperm(150, generator=generator)[:tokens]
    width = row_width(torch.uint8, kv_lora, rope)
    arguments = (values, norm, angles.cos(), angles.sin())
    found, plain = (torch.full((150, size), 9).byte() for size in (width, kv_lora + rope))
    plain = plain.to(values.dtype if dtype == norm_dtype else torch.float32)
    ops.write_latents(*arguments, found, slots, eps=1e-6)
    ops.write_latents(*arguments, plain, slots, eps=1e-6)
    # What would have been cached is quantized.
    latents, keys = plain[slots, :kv_lora], plain[slots, kv_lora:]
    assert_same_bits(found[slots], pack_rows(latents, keys))
    untouched = torch.ones(150, dtype=torch.bool)
    untouched[slots] = False
    assert (found[untouched] == 9).all()
    expected = torch.full_like(found, 9)
    reference.write_latents(*arguments, expected, slots, eps=1e-6)
    # A factor that differs by some units moves few numbers to the next code, an eighth away.
    got, want = (unpack_rows(rows[slots], kv_lora) for rows in (found, expected))
    torch.testing.assert_close(got, want, rtol=2.0**-3, atol=2.0**-9)
    assert ((got - want).abs() > 2.0**-16 * want.abs()).float().mean() < 0.01
