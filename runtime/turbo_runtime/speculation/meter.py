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
    tokens: float = 0.0
    passes: float = 0.0

    def book(self, without: float, measured: float, tokens: float) -> None:
        """A step that gave an answer so many `tokens` took `measured` seconds; they would have taken
        `without`.
        """
        self.without = self.without * self.keep + without
        self.measured = self.measured * self.keep + measured
        self.tokens = self.tokens * self.keep + tokens
        self.passes = self.passes * self.keep + 1.0

    @property
    def speedup(self) -> float | None:
        """Above 1: drafts pay. None while nothing was measured. Never more than the tokens of a pass: what
        short answers show beyond that is the noise of a few steps.
        """
        return min(self.without / self.measured, self.tokens / self.passes) if self.measured > 0 else None
