"""How much may be in the server at once, and whom to turn away when it is full. Pure.

This is the only door: the engine takes whatever was let in here, so nothing that was admitted is lost.
"""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Limits:
    """Of answers and of their prompts' tokens at once, waiting and running; both at least 1."""

    answers: int
    tokens: int


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a request cannot come in now, in one sentence, and about how many answers have to leave first."""

    sentence: str
    places: int


@dataclass(slots=True)
class _Count:
    answers: int = 0
    tokens: int = 0


class Admission:
    """Counts what was let in and has not left, per tenant.

    Below the limits everybody is let in. At the limits a tenant is still let in up to its fair share, a limit
    divided by the tenants present: who fills the queue does not turn the others away. Twice the limits are
    never passed.
    """

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self._all = _Count()
        self._own: dict[str, _Count] = {}  # of tenants that have anything here

    @property
    def answers(self) -> int:
        """How many were let in and have not left."""
        return self._all.answers

    def refusal(self, tenant: str, answers: int, tokens: int) -> Refusal | None:
        """Why so many more answers, whose prompts have so many tokens together, cannot come in now; None if
        they can. What is already in may ask for more tokens alone.
        """
        own = self._own.get(tenant, _Count())
        tenants = len(self._own) + (tenant not in self._own)
        for limit, here, mine, more, what in (
            (self.limits.answers, self._all.answers, own.answers, answers, "answers"),
            (self.limits.tokens, self._all.tokens, own.tokens, tokens, "prompt tokens"),
        ):
            if more <= 0 or here + more <= limit:
                continue
            if here + more <= 2 * limit and (mine + more) * tenants <= limit:
                continue
            leaving = (here + more - limit) * self._all.answers / max(here, 1)  # as large as the mean
            return Refusal(
                f"The queue is full: {here} {what} of at most {limit} are running or waiting.",
                max(math.ceil(leaving), 1),
            )
        return None

    def enter(self, tenant: str, answers: int, tokens: int) -> None:
        """So many answers have come in, whose prompts have so many tokens together."""
        own = self._own.setdefault(tenant, _Count())
        for count in (self._all, own):
            count.answers += answers
            count.tokens += tokens

    def leave(self, tenant: str, answers: int, tokens: int) -> None:
        """They are over."""
        own = self._own[tenant]
        for count in (self._all, own):
            count.answers -= answers
            count.tokens -= tokens
        if not own.answers:
            del self._own[tenant]
