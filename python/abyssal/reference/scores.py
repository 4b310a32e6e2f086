"""Router scores in exactly defined float32 arithmetic.

The exponential and the logarithm are polynomials in plain float32 additions, multiplications and
divisions, each rounded to nearest even, in a fixed order. PyTorch on the CPU and the Rust crate
``abyssal-routing`` therefore give the same bits on every machine, where a library exponential would
not. The polynomials are minimax fits, found offline: ``exp`` is within 0.97 units in the last
place, ``log1p`` within 1.97, measured over every float32 of their domain.

Gradients are the analytic ones, written in terms of the score itself.
"""

import torch
from torch import Tensor

from .checks import SCORINGS, check_choice, check_dtype, check_rank

# Coefficients of (exp(r) - 1 - r) / r**2 for |r| <= ln(2) / 2, highest power first.
_EXP = (
    0.0001991838653339073,
    0.0013946073595434427,
    0.008333263918757439,
    0.041666269302368164,
    0.1666666716337204,
    0.5,
)
# Coefficients of (atanh(s) / s - 1) / s**2 in z = s**2 for 0 <= s <= 1/3, highest power first.
_LOG = (
    0.12150466442108154,
    0.10713829100131989,
    0.14308442175388336,
    0.19999438524246216,
    0.3333333730697632,
)
_LOG2_E = 1.4426950216293335
_LN_2_HIGH = 0.693359375  # nine bits: its product with an exponent is exact
_LN_2_LOW = -0.00021219443762674928
# Below this the exponential is under half the smallest subnormal number, so zero.
_EXP_FLOOR = -104.0
_LANES = 16


def _horner(x: Tensor, coefficients: tuple[float, ...]) -> Tensor:
    value = torch.full_like(x, coefficients[0])
    for coefficient in coefficients[1:]:
        value = value * x + coefficient
    return value


def _power_of_two(exponent: Tensor) -> Tensor:
    return ((exponent + 127) << 23).view(torch.float32)


def exp_nonpositive(x: Tensor) -> Tensor:
    """Return ``exp(x)`` for float32 ``x <= 0``, within one unit in the last place.

    Args:
        x: float32 of any shape, every element zero, negative or ``-inf``.

    Returns:
        float32 of the same shape.

    Guarantees: the bits are the same on every machine and equal to the Rust crate's; ``exp(-inf)``
    is zero and ``exp(0)`` is one; subnormal results are rounded once.
    """
    x = x.clamp(min=_EXP_FLOOR)
    steps = (x * _LOG2_E).round()
    rest = (x - steps * _LN_2_HIGH) - steps * _LN_2_LOW
    value = (_horner(rest, _EXP) * (rest * rest) + rest) + 1.0
    # Two factors, because 2**-150 is no float32: the first product is exact, the second rounds
    # once.
    exponent = steps.to(torch.int32)
    half = exponent >> 1
    return value * _power_of_two(half) * _power_of_two(exponent - half)


def log1p_unit(x: Tensor) -> Tensor:
    """Return ``log(1 + x)`` for float32 ``x`` in ``[0, 1]``, within two units in the last place.

    Args:
        x: float32 of any shape, every element in ``[0, 1]``.

    Returns:
        float32 of the same shape.

    Guarantees: the bits are the same on every machine and equal to the Rust crate's.
    """
    s = x / (x + 2.0)
    z = s * s
    double = s + s
    return _horner(z, _LOG) * z * double + double


def _lane_sum(x: Tensor) -> Tensor:
    """Add each row of ``[rows, columns]`` in 16 lanes, then the lanes as a tree: a fixed order."""
    rows, columns = x.shape
    steps = -(-columns // _LANES)
    padded = torch.nn.functional.pad(x, (0, steps * _LANES - columns)).view(rows, steps, _LANES)
    lanes = torch.zeros(rows, _LANES, dtype=x.dtype, device=x.device)
    for step in range(steps):
        lanes = lanes + padded[:, step]
    width = _LANES
    while width > 1:
        width //= 2
        lanes = lanes[:, :width] + lanes[:, width : 2 * width]
    return lanes


def _softmax(logits: Tensor) -> Tensor:
    largest = logits.amax(dim=1, keepdim=True)
    # inf - inf is taken as zero: the largest logits share the mass, whatever their size.
    shifted = torch.where(logits == largest, torch.zeros_like(logits), logits - largest)
    weights = exp_nonpositive(shifted)
    return weights / _lane_sum(weights)


def _sigmoid(logits: Tensor) -> Tensor:
    weights = exp_nonpositive(-logits.abs())
    return torch.where(logits >= 0, torch.ones_like(weights), weights) / (weights + 1.0)


def _sqrtsoftplus(logits: Tensor) -> Tensor:
    softplus = logits.clamp(min=0.0) + log1p_unit(exp_nonpositive(-logits.abs()))
    # PyTorch's float32 root may be off by one unit. No float32 has a root close enough to a
    # midpoint for that to matter in float64.
    return softplus.to(torch.float64).sqrt().to(torch.float32)


_FORWARD = {"softmax": _softmax, "sigmoid": _sigmoid, "sqrtsoftplus": _sqrtsoftplus}


class _Scores(torch.autograd.Function):
    """Exact scores forward, the analytic derivative backward."""

    @staticmethod
    def forward(logits: Tensor, scoring: str) -> Tensor:
        return _FORWARD[scoring](logits.masked_fill(logits.isnan(), float("-inf")))

    @staticmethod
    def setup_context(
        ctx: torch.autograd.function.FunctionCtx, inputs: tuple[Tensor, str], output: Tensor
    ) -> None:
        ctx.save_for_backward(inputs[0], output)
        ctx.scoring = inputs[1]  # type: ignore[attr-defined]

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, gradient: Tensor) -> tuple[Tensor, None]:
        logits, score = ctx.saved_tensors  # type: ignore[attr-defined]
        scoring = ctx.scoring  # type: ignore[attr-defined]
        if scoring == "softmax":
            result = score * (gradient - (gradient * score).sum(dim=1, keepdim=True))
        elif scoring == "sigmoid":
            result = gradient * score * (1.0 - score)
        else:
            # d sqrt(softplus(x)) = sigmoid(x) / (2 score); both vanish together far to the left.
            slope = torch.where(
                score > 0, torch.sigmoid(logits) / (2.0 * score), torch.zeros_like(score)
            )
            result = gradient * slope
        return result, None


def router_scores(logits: Tensor, scoring: str) -> Tensor:
    """Turn router logits into scores.

    Args:
        logits: ``[num_tokens, num_experts]`` float32.
        scoring: ``"softmax"``, ``"sigmoid"`` or ``"sqrtsoftplus"`` (the square root of softplus).

    Returns:
        ``[num_tokens, num_experts]`` float32.

    Raises:
        TypeError: another dtype.
        ValueError: another number of dimensions, or an unknown ``scoring``.

    Guarantees: a NaN logit counts as ``-inf``. Infinite logits take their limits: in a softmax row
    the largest logits share the mass, also when they are infinite. Bits do not depend on the
    machine or on other rows. Differentiable with respect to ``logits``.

    Source: DeepSeek-V2 (softmax), DeepSeek-V3 (sigmoid) and DeepSeek-V4 (square root of softplus)
    gates.
    """
    check_dtype("logits", logits, (torch.float32,))
    check_rank("logits", logits, 2)
    check_choice("scoring", scoring, SCORINGS)
    scores: Tensor = _Scores.apply(logits, scoring)
    return scores
