"""Measured acceptance of tokens by confidence: counts in cells, shrunk to the claim."""

from __future__ import annotations

from collections.abc import Hashable

_PRIOR = 8.0  # observations that a claim counts for
_FORGET_AT = 512.0  # observations of a cell, at which they are halved, so that it follows the traffic


class Calibration:
    """Acceptance by cell."""

    def __init__(self) -> None:
        self._cells: dict[Hashable, tuple[float, float]] = {}  # accepted, seen

    def confidence(self, cell: Hashable, claim: float) -> float:
        """Return the posterior mean of the cell's acceptance under a beta prior around the claim."""
        accepted, seen = self._cells.get(cell, (0.0, 0.0))
        return (accepted + _PRIOR * claim) / (seen + _PRIOR)

    def learn(self, cell: Hashable, accepted: bool) -> None:
        """Add an observation."""
        hits, seen = self._cells.get(cell, (0.0, 0.0))
        scale = 0.5 if seen >= _FORGET_AT else 1.0
        self._cells[cell] = (hits * scale + accepted, seen * scale + 1.0)
