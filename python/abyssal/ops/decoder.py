"""A decoder layer as one call: weights are handed over once, and read in place.

The work is done by the Rust crate ``abyssal-kernels``; ``abyssal.reference.decoder_layer`` is the
same in plain PyTorch, up to the order of the sums within a product.
"""

import torch
from torch import Tensor

from abyssal._core import DecoderLayer as _DecoderLayer
from abyssal.reference.checks import check_dtype
from abyssal.reference.decoder import LayerWeights
from abyssal.reference.formats import ACTIVATIONS

from .experts import Experts, as_held
from .native import plain

_NAMES = {torch.float32: "float32", torch.bfloat16: "bfloat16"}


class DecoderLayer:
    """Attention over a paged latent cache and a feed-forward part, on a float32 stream.

    Args:
        weights: what the layer is made of: plain or packed weights in CPU memory, contiguous.

    Raises:
        TypeError: a weight that is no dense CPU tensor, or of a wrong dtype.
        ValueError: weights that are not contiguous or do not fit together.

    Guarantees: the weights are read where they lie, at every call; no copy is made. The object
    keeps them in memory.

    Source: DeepSeek-V2 (arXiv 2405.04434), DeepSeek-V3 (arXiv 2412.19437).
    """

    def __init__(self, weights: LayerWeights) -> None:
        norm, _ = weights.kv_norm
        down = weights.query_down
        experts = Experts(
            weights.routed,
            weights.shared,
            num_routes=None if weights.router is None else weights.router.weight.shape[0],
            limit=weights.limit,
        )
        self._layer = _DecoderLayer(
            input_norm=weights.input_norm,
            query_down=None if down is None else (as_held(down[0]), down[1]),
            query=as_held(weights.query),
            kv_down=as_held(weights.kv_down),
            kv_norm=weights.kv_norm,
            kv_up=as_held(weights.kv_up),
            output=as_held(weights.output),
            sizes=(
                weights.num_heads,
                norm.shape[0],
                weights.rope_dim,
                weights.nope_dim,
                weights.v_dim,
            ),
            scale=weights.scale,
            post_norm=weights.post_norm,
            router=weights.router,
            experts=experts.compiled,
        )

    def __call__(
        self,
        hidden: Tensor,
        cos: Tensor,
        sin: Tensor,
        cache: Tensor,
        slots: Tensor,
        spans: Tensor,
        block_tables: Tensor,
        *,
        page_size: int,
        dtype: torch.dtype,
    ) -> Tensor:
        """Map the stream before the layer to the stream after it; this step's rows are cached.

        Args:
            hidden: float32 ``[tokens, hidden_size]``, in CPU memory like all others.
            cos: float32 ``[tokens, rope / 2]``, of each token's position.
            sin: like ``cos``.
            cache: float32 or bfloat16 ``[slots, kv_lora + rope]``, or rows in FP8 as bytes (uint8),
                contiguous, written in place.
            slots: int64 ``[tokens]``, each token's row of the cache, each its own.
            spans: as for ``mla_attention``.
            block_tables: as for ``mla_attention``.
            page_size: tokens in a page.
            dtype: of what goes from one part to the next: float32 or bfloat16.

        Returns:
            float32 ``[tokens, hidden_size]``.

        Raises:
            TypeError: a wrong dtype.
            ValueError: shapes that do not fit together, spans that do not cover the tokens, a slot
                or a page outside the cache. The step's own rows of the cache may be written then.

        Guarantees: the bits of ``rms_norm``, the products, ``write_latents``, ``mla_attention``,
        ``gate_route`` and ``Experts`` called one after the other, with each part's result added to
        the stream in float32; so a token's bits depend neither on the other tokens nor on the
        number of threads (``abyssal.get_num_threads()`` at most). No gradient is recorded.
        """
        check_dtype("hidden", hidden, (torch.float32,))
        if dtype not in ACTIVATIONS:
            raise TypeError(f"dtype is {dtype}; it must be one of {list(ACTIVATIONS)}")
        hidden = plain(hidden)
        out = torch.empty_like(hidden)
        self._layer.forward(
            hidden,
            plain(cos),
            plain(sin),
            cache,
            plain(slots),
            plain(spans),
            plain(block_tables),
            out,
            page_size=page_size,
            dtype=_NAMES[dtype],
        )
        return out
