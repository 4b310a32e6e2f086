"""The rows of a benchmark's table, and the record that they make."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

#: Units in which less is better.
TIMES = ("s", "ms", "us", "ns")


@dataclass(frozen=True)
class Row:
    """One line of a benchmark: the same work done by us and by a peer.

    Attributes:
        name: the work.
        unit: of ``ours``, ``peer`` and ``limit``: a time (less is better) or a rate.
        ours: our figure, a median.
        peer: the peer's figure, or None where there is no peer.
        peer_name: who the peer is.
        ratio: how many times better we are: the median of the ratios of neighboring samples.
        limit: what this machine allows at most (or at least, for times) in the same unit, measured
            in the same run; None where it was not measured.
    """

    name: str
    unit: str
    ours: float
    peer: float | None = None
    peer_name: str | None = None
    ratio: float | None = None
    limit: float | None = None

    @property
    def is_time(self) -> bool:
        """Whether less is better."""
        return self.unit.split("/", maxsplit=1)[0].split(" ", maxsplit=1)[0] in TIMES

    @property
    def share_of_limit(self) -> float | None:
        """How much of what the machine allows is reached, 1 being all."""
        if not self.limit:
            return None
        return self.limit / self.ours if self.is_time else self.ours / self.limit


def record(machine: dict[str, Any], rows: list[Row]) -> dict[str, Any]:
    """Return the JSON object of a benchmark."""
    return {"machine": machine, "rows": [asdict(row) for row in rows]}
