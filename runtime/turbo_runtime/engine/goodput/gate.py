"""Whether to draft for a request at all: drafting that does not pay may lose a small share of its time. Pure.

The choice of drafts rests on what drafters say of themselves; the gate rests on what became of it.
"""

from __future__ import annotations

from dataclasses import dataclass

_ALLOWANCE = 0.01  # of a request's time, that drafting may lose
_START = 0.25  # tokens' time that a new request may lose before its allowance counts
_MOST, _LEAST = 4.0, -1.0  # bounds of the credit: neither good nor bad times are remembered for ever


@dataclass(slots=True)
class Gate:
    """One request's credit, in the time that one of its tokens takes without drafts."""

    credit: float = _START

    @property
    def open(self) -> bool:
        """Whether drafts are to be asked for."""
        return self.credit >= 0

    def book(self, gained: float, lost: float) -> None:
        """A step brought `gained` tokens by drafts, and cost the time of `lost` tokens for them."""
        self.credit = min(max(self.credit + gained - lost + _ALLOWANCE, _LEAST), _MOST)
