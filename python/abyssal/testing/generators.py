"""Random inputs that hit corners: ties, zeros of both signs, infinities, NaN, subnormals."""

import torch
from torch import Tensor


def plain_logits(rows: int, experts: int, source: torch.Generator) -> Tensor:
    """Return random router logits ``[rows, experts]`` float32, without ties by construction."""
    return torch.randn(rows, experts, generator=source) * 3.0


def hard_logits(rows: int, experts: int, source: torch.Generator) -> Tensor:
    """Return router logits ``[rows, experts]`` float32, half of the rows with corners.

    Of each eight rows: four plain; one rounded to bfloat16 with many ties; one of few distinct
    values, both zeros included; one with infinities; one with NaN, up to all of it.
    """
    logits = plain_logits(rows, experts, source)
    kind = torch.arange(rows) % 8
    coarse = kind == 4
    logits[coarse] = logits[coarse].to(torch.bfloat16).mul(4).round().div(4).to(torch.float32)
    few = torch.tensor([0.0, -0.0, 1.0, -1.0, 30.0])
    chosen = kind == 5
    count = int(chosen.sum())
    logits[chosen] = few[torch.randint(5, (count, experts), generator=source)]
    corners = ((6, (float("inf"), float("-inf"), 88.8, -104.0)), (7, (float("nan"),)))
    for which, values in corners:
        chosen = kind == which
        count = int(chosen.sum())
        share = torch.rand(count, 1, generator=source)
        hit = torch.rand(count, experts, generator=source) < share * share * 1.1
        drawn = torch.tensor(values)[torch.randint(len(values), (count, experts), generator=source)]
        logits[chosen] = torch.where(hit, drawn, logits[chosen])
    return logits


def hard_values(rows: int, columns: int, source: torch.Generator, *, nan: bool = True) -> Tensor:
    """Return float32 ``[rows, columns]`` over all magnitudes, with corners.

    Rows differ in scale from subnormal to near the largest number; some hold zeros, infinities
    and (with ``nan``) NaN of both signs.
    """
    exponents = torch.randint(-140, 120, (rows, 1), generator=source).to(torch.float64)
    values = torch.randn(rows, columns, generator=source, dtype=torch.float64) * 2.0**exponents
    result = values.to(torch.float32)
    result[::7] = torch.randn(result[::7].shape, generator=source)
    hit = torch.rand(rows, columns, generator=source) < 0.02
    corners = [0.0, -0.0, 1e-23, -1e-45, 448.0, -464.0]
    rare = [float("inf"), float("-inf"), *([float("nan"), -float("nan")] if nan else [])]
    few = torch.tensor(corners)[torch.randint(len(corners), result.shape, generator=source)]
    result = torch.where(hit, few, result)
    drawn = torch.tensor(rare)[torch.randint(len(rare), result.shape, generator=source)]
    hit = (torch.rand(rows, columns, generator=source) < 0.01) & (torch.arange(rows) % 5 == 0)[
        :, None
    ]
    return torch.where(hit, drawn, result)
