"""Whom to draft for at all: drafting that does not pay may lose a small share of the time. Pure.

The choice of drafts rests on what drafters say of themselves; the gates rest on what became of it: one for
each request, and one for all together. Without the latter, every request would pay for finding out anew that
drafts do not help traffic like it: where answers are short, that adds up. Heads have one of their own beside
these: where they take more than they add to drafts that cost nothing, they alone are left out.
"""

from __future__ import annotations

from dataclasses import dataclass

_ALLOWANCE = 0.005  # of the time, that drafting may lose
_START = 0.25  # tokens' time that a new request may lose before its allowance counts
_MOST, _LEAST = 4.0, -2.0  # bounds of a credit: neither good nor bad times are remembered for ever
_RICH, _OVERDRAFT = 4.0, -1.5  # credit of all from which one request may lose this much
# The same of the credit of all together; many that try in one step may lose the time of dozens of tokens.
_FIRST, _SHARED_MOST, _SHARED_LEAST = 2.0, 16.0, -64.0


def _bounded(credit: float, least: float, most: float) -> float:
    return min(max(credit, least), most)


@dataclass(slots=True)
class Gate:
    """One request's credit, in the time that one of its tokens takes without drafts."""

    credit: float = _START
    won: float = 0.0  # by drafts so far, without what it is allowed to lose

    @property
    def open(self) -> bool:
        """Whether drafts may be asked for."""
        return self.credit >= 0

    def book(self, gained: float, lost: float) -> None:
        """A step brought `gained` tokens by drafts, and cost the time of `lost` tokens for them."""
        self.credit = _bounded(self.credit + gained - lost + _ALLOWANCE, _LEAST, _MOST)
        self.won = _bounded(self.won + gained - lost, _LEAST, _MOST)


@dataclass(slots=True)
class SharedGate:
    """What all requests together may lose on those whose drafts have not paid yet."""

    credit: float = _FIRST

    @property
    def open(self) -> bool:
        """Whether anything may be lost yet."""
        return self.credit >= 0

    def admits(self, gate: Gate) -> bool:
        """Whether to draft for a request: without credit only where its drafts have paid. With credit for
        all, since tokens that share a block of rows share its cost.
        """
        if self.credit >= _RICH:
            return gate.credit >= _OVERDRAFT
        return gate.open and (self.open or gate.won > 0)

    def book(self, gained: float, lost: float) -> None:
        """Any request's token: `gained` and `lost` as in `Gate.book`."""
        credit = self.credit + gained - lost + _ALLOWANCE
        self.credit = _bounded(credit, _SHARED_LEAST, _SHARED_MOST)
