"""How often tokens of one confidence were in fact accepted: counts in cells, shrunk to what was claimed."""

from __future__ import annotations

from collections.abc import Hashable

_PRIOR = 8.0  # a claim counts as much as so many observations
_FORGET_AT = 512.0  # observations of a cell, where all of them are halved, so that it follows the traffic


class Calibration:
    """Acceptance by cell."""

    def __init__(self) -> None:
        self._cells: dict[Hashable, tuple[float, float]] = {}  # accepted, seen

    def confidence(self, cell: Hashable, claim: float) -> float:
        """The chance of acceptance: the posterior mean of the cell under a beta prior around the claim."""
        accepted, seen = self._cells.get(cell, (0.0, 0.0))
        return (accepted + _PRIOR * claim) / (seen + _PRIOR)

    def learn(self, cell: Hashable, accepted: bool) -> None:
        """One more observation."""
        hits, seen = self._cells.get(cell, (0.0, 0.0))
        scale = 0.5 if seen >= _FORGET_AT else 1.0
        self._cells[cell] = (hits * scale + accepted, seen * scale + 1.0)
