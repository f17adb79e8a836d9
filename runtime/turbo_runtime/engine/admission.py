"""How much may be in the engine at once, and whom to turn away when it is full.

The server keeps one, to answer 429 before anything is sent; the scheduler keeps one, so that its memory is
bounded whoever feeds it. Both count from submission to end, so the server's is never behind: what it let in,
the scheduler takes.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Limits:
    """Of answers and of their prompts' tokens in the engine at once, waiting and running; None: no limit."""

    answers: int | None = None
    tokens: int | None = None


@dataclass(slots=True)
class _Count:
    answers: int = 0
    tokens: int = 0


class Admission:
    """Counts what is in the engine, per tenant.

    Below the limits everybody is let in. At the limits a tenant is still let in up to its fair share, a limit
    divided by the tenants present: who fills the queue does not turn the others away. Twice the limits are
    never passed.
    """

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self._all = _Count()
        self._own: dict[str, _Count] = {}  # of tenants that have anything here

    def refusal(self, tenant: str, answers: int, tokens: int) -> str | None:
        """Why so many answers, whose prompts have so many tokens together, cannot come in now, in one
        sentence; None if they can.
        """
        own = self._own.get(tenant, _Count())
        tenants = len(self._own) + (tenant not in self._own)
        for limit, here, mine, more, what in (
            (self.limits.answers, self._all.answers, own.answers, answers, "answers"),
            (self.limits.tokens, self._all.tokens, own.tokens, tokens, "prompt tokens"),
        ):
            if limit is None or here + more <= limit:
                continue
            if here + more > 2 * limit or (mine + more) * tenants > limit:
                return (
                    f"the queue is full: {here} {what} of at most {limit} are running or waiting; try later"
                )
        return None

    def enter(self, tenant: str, tokens: int) -> None:
        """One answer has come in."""
        own = self._own.setdefault(tenant, _Count())
        for count in (self._all, own):
            count.answers += 1
            count.tokens += tokens

    def leave(self, tenant: str, tokens: int) -> None:
        """One answer is over."""
        own = self._own[tenant]
        for count in (self._all, own):
            count.answers -= 1
            count.tokens -= tokens
        if not own.answers:
            del self._own[tenant]
