"""A layer of latent attention with random numbers, and how far results may be off."""

import torch

from abyssal import ops
from abyssal._core import kernel_tier
from abyssal.reference.latents import pack_rows

#: Heads, kv_lora, rope, nope, v: V2's and V3's, GLM's, a small one and an odd one.
SIZES = [(4, 512, 64, 128, 128), (2, 512, 64, 192, 256), (3, 32, 8, 16, 24), (2, 50, 6, 5, 7)]
PACKINGS = ["float32", "bfloat16", "fp8", "mxfp4"]
DTYPES = [torch.float32, torch.bfloat16]


def stored(weight, packing):
    """A weight as a checkpoint stores it, its scales, and its values."""
    if packing == "fp8":
        codes, scales = ops.quantize_fp8(weight, (128, 128))
        return codes, scales, ops.dequantize_fp8(codes, scales, (128, 128), torch.float32)
    if packing == "mxfp4":
        codes, scales = ops.quantize_mxfp4(weight)
        return codes, scales, ops.dequantize_mxfp4(codes, scales, torch.float32)
    plain = weight.to(getattr(torch, packing))
    return plain, None, plain.float()


class Layer:
    """A sequence of a layer: all tokens' queries, and the cache with their rows."""

    def __init__(self, sizes, tokens, generator, packing="float32", dtype=torch.float32):
        heads, kv_lora, rope, nope, v = sizes
        if packing == "mxfp4":
            kv_lora = -(-kv_lora // 32) * 32
        self.sizes = (heads, kv_lora, rope, nope, v)
        self.tokens, self.page_size = tokens, 16
        self.scale = 1.5 / (nope + rope) ** 0.5
        self.query = torch.randn(tokens, heads, nope + rope, generator=generator).to(dtype)
        angles = torch.randn(tokens, rope // 2, generator=generator)
        self.cos, self.sin = angles.cos(), angles.sin()
        self.rows = torch.randn(tokens, kv_lora + rope, generator=generator).to(dtype)
        weight = torch.randn(heads * (nope + v), kv_lora, generator=generator) / kv_lora**0.5
        self.up, self.up_scales, self.weight = stored(weight, packing)
        pages = -(-tokens // self.page_size)
        self.table = torch.randperm(pages, generator=generator).int()

    def cache(self, tokens, dtype=None):
        """The cache after a step; slots that no token has are NaN."""
        place, kv_lora = torch.arange(tokens), self.sizes[1]
        rows, empty = self.rows, torch.nan
        if dtype == torch.uint8:
            rows, empty = pack_rows(rows[:, :kv_lora], rows[:, kv_lora:]), 255
        cache = rows.new_full((len(self.table) * self.page_size, rows.shape[1]), empty)
        slots = self.table[place // self.page_size].long() * self.page_size
        cache[slots + place % self.page_size] = rows[:tokens]
        return cache.to(dtype or cache.dtype)

    def attend(self, module, start, end, expanded=0, cache_dtype=None):
        here = max(0, min(expanded - start, end - start))
        return module.mla_attention(
            self.query[start:end],
            self.cos[start:end],
            self.sin[start:end],
            self.cache(end, cache_dtype),
            torch.tensor([[0, end - start, start, here]], dtype=torch.int32),
            self.table[None],
            self.up,
            self.up_scales,
            page_size=self.page_size,
            scale=self.scale,
        )

    def bound(self, dtype, packed=False):
        """Of the error of either module.

        With ``u = 2^-24``: a score is a chain of at most ``n = nope + kv_lora + rope`` products and
        a few other operations, each within ``u`` of the sum of its terms' sizes, ``S`` at most; a
        weight's relative error is twice that, and a few ``u`` more for sums over keys and latent.

        A tier that multiplies pairs of bfloat16 numbers rounds queries, keys, weights and values to
        these, each by at most ``h = 2^-9``: a score moves by ``2 h`` times the sum of the sizes of
        query times key, absorbed or not; weights and values count once each, the weights' sum too.
        Of a cache in FP8 it rounds each row as well: ``h`` times the sum of all terms' sizes more.
        """
        heads, kv_lora, rope, nope, _ = self.sizes
        unit = 2.0**-24
        up = self.weight.double().view(heads, -1, kv_lora).abs()
        query, rows = self.query.double().abs(), self.rows.double().abs()
        sizes = torch.einsum("thn,hnl->htl", query[..., :nope], up[:, :nope]) @ rows[:, :kv_lora].T
        sizes += 2 * query[..., nope:].transpose(0, 1) @ rows[:, kv_lora:].T
        largest = float(sizes.max())
        score = (nope + kv_lora + rope + 12) * unit * self.scale * largest
        relative = 2 * score + (self.tokens + kv_lora + 30) * unit
        value = float((up[:, nope:] @ rows[:, :kv_lora].max(dim=0).values).max())
        pairs = kernel_tier() == "avx512-bf16" and dtype == torch.bfloat16
        if pairs and self.up.dtype != torch.float32:
            weight = self.weight.double().view(heads, -1, kv_lora)
            query, rows = self.query.double(), self.rows.double()
            latents, rotary = rows[:, :kv_lora], rows[:, kv_lora:].abs()
            keys = torch.einsum("hnl,sl->hsn", weight[:, :nope], latents).abs()
            moved = torch.einsum("thn,hnl->htl", query[..., :nope], weight[:, :nope]).abs()
            plain = query[..., :nope].transpose(0, 1).abs() @ keys.transpose(1, 2)
            turned = 2 * query[..., nope:].transpose(0, 1).abs() @ rotary.T
            sizes = torch.maximum(plain, moved @ latents.abs().T) + turned
            half = 2.0**-9
            moved = 2 * half * sizes.max() + (half * largest if packed else 0.0)
            moves = float(torch.expm1(2 * self.scale * moved))
            values = float(torch.einsum("hnl,sl->hsn", weight[:, nope:], latents).abs().max())
            of_rows = half * value if packed else 0.0
            return relative * value + (moves + 3.1 * half) * values + of_rows, 2.0**-8
        # A result in bfloat16 rounds once more, by at most 2^-9 of itself in each module.
        return relative * value, 0.0 if dtype == torch.float32 else 2.0**-8
