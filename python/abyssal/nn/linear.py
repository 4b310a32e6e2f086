"""A linear layer whose weight stays as the checkpoint stores it: f32, bf16, FP8 blocks or MXFP4."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar, Self

import torch
import torch.nn.functional as F
from torch import nn

from abyssal import ops
from abyssal.reference import formats


class Linear(nn.Module):
    """``x @ W.T (+ bias)`` with a plain or a packed weight.

    A plain weight is an ordinary parameter and can be trained. A packed weight (``set_packed``) is
    never expanded as a whole: the product reads the codes where they lie. On a CPU, where no
    gradient is recorded, every product is the compiled one (``path`` tells), whose rows do not
    depend on one another; everywhere else a plain weight is torch's affair.

    Args:
        in_features: Columns of the weight.
        out_features: Rows of the weight.
        bias: Whether a bias is added.
        dtype: Type of a plain weight.
        device: Where the weight is made.
    """

    #: Counts how often weights were moved (``module.to`` and the like) without being replaced.
    moves: ClassVar[int] = 0

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        bias: bool = False,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        self.in_features = in_features
        self.out_features = out_features
        self.weight = nn.Parameter(
            torch.empty(out_features, in_features, dtype=dtype, device=device)
        )
        self.bias = (
            nn.Parameter(torch.zeros(out_features, dtype=dtype, device=device)) if bias else None
        )
        self.scales: torch.Tensor | None
        self.register_buffer("scales", None)

    def set_packed(self, codes: torch.Tensor, scales: torch.Tensor) -> None:
        """Replace the weight by packed codes and their scales, without a copy.

        Args:
            codes: ``float8_e4m3fn [out, in]``, or uint8 ``[out, in / 2]`` (MXFP4, low nibble
                first).
            scales: f32 or e8m0 ``[ceil(out / 128), ceil(in / 128)]``, or uint8 ``[out, in / 32]``.

        Raises:
            ValueError: the shapes do not belong to this layer.
        """
        rows, columns = self.out_features, self.in_features
        if codes.dtype == torch.float8_e4m3fn:
            want_codes, want_scales = (rows, columns), (-(-rows // 128), -(-columns // 128))
        elif codes.dtype == torch.uint8:
            want_codes, want_scales = (rows, columns // 2), (rows, columns // 32)
        else:
            raise ValueError(f"packed weight must be float8_e4m3fn or uint8, got {codes.dtype}")
        if tuple(codes.shape) != want_codes or tuple(scales.shape) != want_scales:
            raise ValueError(
                f"packed weight of a {rows}x{columns} layer needs codes {want_codes} and scales "
                f"{want_scales}, got {tuple(codes.shape)} and {tuple(scales.shape)}"
            )
        self.weight = nn.Parameter(codes, requires_grad=False)
        self.scales = scales

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> Self:
        Linear.moves += 1
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return self

    @property
    def packed(self) -> bool:
        """Whether the weight is FP8 or MXFP4."""
        return self.scales is not None

    def dequantized(self, dtype: torch.dtype) -> torch.Tensor:
        """Return the weight ``[out, in]`` in ``dtype``: itself if it is plain and of that type."""
        if self.scales is None:
            return self.weight.to(dtype)
        if self.weight.dtype == torch.uint8:
            return ops.dequantize_mxfp4(self.weight, self.scales, dtype=dtype)
        return ops.dequantize_fp8(self.weight, self.scales, (128, 128), dtype=dtype)

    @property
    def readable(self) -> bool:
        """Whether the compiled code can read the weight where it lies."""
        weight = self.weight
        known = self.packed or weight.dtype in formats.ACTIVATIONS
        return known and weight.device.type == "cpu" and weight.is_contiguous()

    def path(self, x: torch.Tensor) -> str:
        """Name what multiplies ``x``: ``"compiled"`` (this package's code) or ``"torch"``."""
        if self.scales is None:
            if torch.is_grad_enabled() and (x.requires_grad or self.weight.requires_grad):
                return "torch"
            if x.dtype not in formats.ACTIVATIONS or not self.readable:
                return "torch"
        return "compiled" if x.device.type == "cpu" else "torch"

    def forward(self, x: torch.Tensor, dtype: torch.dtype | None = None) -> torch.Tensor:
        """Multiply ``x [..., in]`` by the transposed weight.

        Returns:
            ``[..., out]`` in ``dtype``, float32 or that of ``x``, which it is where not given;
            accumulated in f32 on the compiled path and for packed weights.
        """
        if self.scales is None:
            if self.path(x) == "torch":
                return F.linear(x, self.weight, self.bias).to(dtype or x.dtype)
            y = ops.linear(x, self.weight, dtype=dtype)
        elif self.weight.dtype == torch.uint8:
            y = ops.mxfp4_linear(x, self.weight, self.scales, dtype=dtype)
        else:
            y = ops.fp8_linear(x, self.weight, self.scales, dtype=dtype)
        return y if self.bias is None else y + self.bias.to(y.dtype)

    def extra_repr(self) -> str:
        """Sizes and storage type for ``repr``."""
        return f"{self.in_features}, {self.out_features}, {self.weight.dtype}"
