"""What drafts have won and cost, for each request and for all together: whom to draft for, and the speedup.

Drafters choose drafts by their own estimates; the gates rest on results: one for each request, and one for
all together. Without the latter, every request would pay to find out anew that drafts do not help traffic
like it: where answers are short, that adds up. Heads have a gate of their own: where they take more than they
add to drafts that cost nothing, they alone are left out. Pure.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

_ALLOWANCE = 0.005  # of the time, that drafting may lose
_RICH, _OVERDRAFT = 4.0, -1.5  # credit of all from which one request may lose this much
_NEW, _NEW_OF_ALL = 0.3, 0.02  # weight of the newest step for one answer's use, and for the usual one
_MIN_DEMAND = 0.25  # tokens a step, below which nothing is promised


@dataclass(slots=True)
class Gate:
    """The credit of a request, or of all, in the time that one of its tokens takes without drafts."""

    credit: float = 0.25  # a new request may lose that before its allowance counts
    low: float = -2.0  # neither good nor bad times count for ever
    high: float = 4.0
    won: float = 0.0  # by drafts so far, without the allowance

    @property
    def open(self) -> bool:
        """Whether to ask for drafts."""
        return self.credit >= 0

    def book(self, gained: float, lost: float) -> None:
        """Book a step of an answer."""
        self.credit = min(max(self.credit + gained - lost + _ALLOWANCE, self.low), self.high)
        self.won = min(max(self.won + gained - lost, self.low), self.high)

    def admits(self, gate: Gate) -> bool:
        """Whether to draft for a request: without credit of all only where its drafts have paid; with much of
        it always, since tokens that share a block of rows share its cost.
        """
        if self.credit >= _RICH:
            return gate.credit >= _OVERDRAFT
        return gate.open and (self.open or gate.won > 0)


def shared_gate() -> Gate:
    """The gate of all requests together: one step of many may lose dozens of tokens."""
    return Gate(2.0, -64.0, 16.0)


@dataclass(slots=True)
class Meter:
    """Measured seconds and those predicted without drafts, the older the less they count. Steps without
    drafts keep the prediction true: the controller runs one from time to time if there are no others.
    """

    keep: float = 1.0  # share of the past that a step leaves; 1: all
    without: float = 0.0
    measured: float = 0.0
    tokens: float = 0.0
    passes: float = 0.0

    def book(self, without: float, measured: float, tokens: float) -> None:
        """Book a step that gave an answer `tokens` in `measured` seconds; they would have taken `without`."""
        self.without = self.without * self.keep + without
        self.measured = self.measured * self.keep + measured
        self.tokens = self.tokens * self.keep + tokens
        self.passes = self.passes * self.keep + 1.0

    @property
    def speedup(self) -> float | None:
        """Above 1: drafts pay. At most the tokens of a pass: more is the noise of a few steps."""
        return min(self.without / self.measured, self.tokens / self.passes) if self.measured > 0 else None


class Demand:
    """Draft slots of a step that each answer is likely to use, by what was verified for it lately. Prompts
    lose the slots that are promised to drafts, and an unused promise slows down all prompts.
    """

    def __init__(self) -> None:
        self._usual = 0.0  # where a new answer begins
        self._lately: defaultdict[str, float] = defaultdict(lambda: self._usual)

    def of(self, request_id: str) -> int:
        """Slots that the answer is likely to use; 0 where it drafts next to nothing."""
        lately = self._lately.get(request_id, self._usual)
        return -int(-lately // 1) if lately >= _MIN_DEMAND else 0

    def book(self, request_id: str, verified: int, slots: int) -> None:
        """Book a step that verified drafts of an answer. A full use of the slots might have been more; no
        slots are no sign.
        """
        if not slots:
            return
        seen = verified if verified < slots else 2 * slots
        self._usual += _NEW_OF_ALL * (seen - self._usual)
        self._lately[request_id] += _NEW * (seen - self._lately[request_id])

    def forget(self, request_id: str) -> None:
        """Forget an ended request."""
        self._lately.pop(request_id, None)
