"""Counts how long requests took, finely enough to compare with a target. Pure."""

from __future__ import annotations

import math
from collections import Counter

from turbo_runtime.contract.documents import LatencyHistogram

RATIO = 1.1  # of the bounds of a bucket
_LOWEST, _HIGHEST = 1e-4, 1e4  # seconds; what is beyond counts as that


class LatencyCounter:
    """Requests by the time that they took, in buckets whose bounds are powers of RATIO."""

    def __init__(self) -> None:
        self._counts: Counter[int] = Counter()  # by the power of the upper bound

    def add(self, seconds: float) -> None:
        """Count one request."""
        bounded = min(max(seconds, _LOWEST), _HIGHEST)
        self._counts[math.ceil(math.log(bounded, RATIO))] += 1

    def histogram(self) -> LatencyHistogram:
        """Return what was counted, the shortest times first."""
        powers = sorted(self._counts)
        return LatencyHistogram(
            tuple(_bound(power - 1) for power in powers),
            tuple(_bound(power) for power in powers),
            tuple(self._counts[power] for power in powers),
        )


def _bound(power: int) -> float:
    return float(f"{RATIO**power:.6g}")
