"""Drawing a token from one row of logits.

A row is handled by itself and a random number comes from a hash of (seed, position), so that
neither the other rows of a step nor the order of requests can change what is drawn:

    logits -> penalties -> / temperature -> min_p -> top_k -> softmax -> top_p -> inverse CDF

Order of the filters and their meanings are vLLM's. Probabilities are f64, so that top-p and the
cumulative sum do not depend on the size of the vocabulary.
"""

from __future__ import annotations

import hashlib
import struct
from collections import Counter
from collections.abc import Sequence

import torch

from abyssal.engine.outputs import Logprob
from abyssal.engine.sampling_params import SamplingParams

#: Top-p looks at so many likeliest tokens before it sorts the whole vocabulary.
LOOKS = (256, 4096)


def uniform(seed: int, position: int) -> float:
    """Return a number in [0, 1) that depends on ``seed`` and ``position`` alone.

    53 bits of BLAKE2b over both: the same on every machine, and without correlation between
    neighboring seeds or positions, which answers of one request use.
    """
    message = struct.pack("<Qq", seed % 2**64, position)
    digest = hashlib.blake2b(message, digest_size=8, person=b"abyssal-sample").digest()
    return float(int.from_bytes(digest, "little") >> 11) * 2.0**-53


def likeliest(row: torch.Tensor, count: int) -> torch.Tensor:
    """Return the ids of the ``count`` largest values, best first.

    Args:
        row: ``[vocab]``, without NaN.
        count: 1 to ``vocab``.

    Returns:
        int64 ``[count]``.

    Guarantees: ties go to the lower id, which ``torch.topk`` does not promise.
    """
    if count == row.shape[0]:
        return torch.sort(row, descending=True, stable=True).indices
    threshold = torch.topk(row, count).values[-1]
    ids = (row >= threshold).nonzero().flatten()
    order = torch.sort(row[ids], descending=True, stable=True).indices
    return ids[order[:count]]


def sample(
    row: torch.Tensor,
    params: SamplingParams,
    *,
    seed: int,
    position: int,
    prompt: Sequence[int] = (),
    answer: Sequence[int] = (),
    banned: Sequence[int] = (),
    best: int | None = None,
) -> int:
    """Draw the token at ``position``.

    Args:
        row: f32 ``[vocab]``, finite; not changed.
        params: How to draw.
        seed: The sequence's own seed.
        position: The new token's position in its sequence.
        prompt: Token ids before the answer, for the repetition penalty.
        answer: Token ids of the answer so far, for the penalties.
        banned: Ids that must not be drawn (end tokens before ``min_tokens``).
        best: The id of the largest logit, if it is known.

    Returns:
        The token id.

    Guarantees: ties go to the lowest id; the result depends on the arguments alone.
    """
    given = row
    row = _penalized(row, params, prompt, answer)
    if banned:
        row = row.clone()
        row[list(banned)] = -torch.inf
    if params.greedy:
        return int(row.argmax()) if best is None or row is not given else best
    scores = row.double() / params.temperature
    ids, probabilities = _kept(scores, params)
    sums = probabilities.cumsum(0)
    # The last sum, not 1, bounds the draw: rounding cannot push it past the last token.
    draw = uniform(seed, position) * sums[-1]
    return int(ids[int(torch.searchsorted(sums, draw, right=True).clamp(max=len(ids) - 1))])


def _kept(scores: torch.Tensor, params: SamplingParams) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the ids that may be drawn and their probabilities, which need not add up to 1."""
    vocab = scores.shape[0]
    limit = vocab if params.top_k <= 0 else min(params.top_k, vocab)
    if limit == vocab and params.top_p >= 1.0:
        # Nothing asks for an order: all ids as they stand.
        weights = (scores - scores.max()).exp()
        weights[weights < params.min_p] = 0.0
        return torch.arange(vocab), weights
    total = (scores - scores.max()).exp()
    total[total < params.min_p] = 0.0
    if limit < vocab:
        ids = likeliest(scores, limit)
        mass = total[ids].sum()
    else:
        mass = total.sum()
        for count in (*LOOKS, vocab):
            ids = likeliest(scores, min(count, vocab))
            if total[ids].sum() >= params.top_p * mass:
                break
    weights = total[ids]
    # Keep a token when the likelier ones before it do not yet make up top_p.
    before = weights.cumsum(0) - weights
    weights = torch.where(before < params.top_p * mass, weights, 0.0)
    return ids, weights


def _penalized(
    row: torch.Tensor, params: SamplingParams, prompt: Sequence[int], answer: Sequence[int]
) -> torch.Tensor:
    """Return ``row`` after the three penalties; itself when none is set."""
    if params.repetition_penalty != 1.0:
        seen = torch.tensor(sorted({*prompt, *answer}), dtype=torch.int64)
        row = row.clone()
        values = row[seen]
        penalty = params.repetition_penalty
        row[seen] = torch.where(values > 0, values / penalty, values * penalty)
    if answer and (params.presence_penalty or params.frequency_penalty):
        counts = Counter(answer)
        ids = torch.tensor(list(counts), dtype=torch.int64)
        times = torch.tensor(list(counts.values()), dtype=row.dtype)
        row = row.clone()
        row[ids] -= params.presence_penalty + params.frequency_penalty * times
    return row


def logprobs(row: torch.Tensor, token: int, count: int) -> dict[int, Logprob]:
    """Report log probabilities of one position.

    Args:
        row: f32 ``[vocab]``, the unmodified logits.
        token: The token that was drawn; it comes first.
        count: How many of the likeliest tokens to report, 0 or more.

    Returns:
        ``{token id: Logprob}``: the drawn token, then the likeliest, best first.
    """
    values = torch.log_softmax(row, dim=-1)
    wanted = [token]
    if count:
        wanted += likeliest(values, min(count, len(values))).tolist()
    report = {}
    for each in dict.fromkeys(wanted):
        value = values[each]
        report[each] = Logprob(float(value), int((values > value).sum()) + 1)
    return report
