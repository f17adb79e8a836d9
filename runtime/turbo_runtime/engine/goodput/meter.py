"""How much sooner tokens come than they would without drafts. Pure: seconds are told.

The time without drafts is predicted by the cost of a step without them, which steps without drafts keep
true (`Control` makes one from time to time if there are no others).
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class Meter:
    """Seconds as they were and as they would have been, the older the less they count."""

    keep: float = 1.0  # share of the past that a step leaves; 1: all
    without: float = 0.0
    measured: float = 0.0

    def book(self, without: float, measured: float) -> None:
        """What a step brought took `measured` seconds and would have taken `without`."""
        self.without = self.without * self.keep + without
        self.measured = self.measured * self.keep + measured

    @property
    def speedup(self) -> float | None:
        """Above 1: drafts pay. None while nothing was measured."""
        return self.without / self.measured if self.measured > 0 else None
