"""Admission: how much the server holds at once, whom it rejects when full, and when they should retry.

The engine takes whatever is admitted here, so no admitted request is lost.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from dataclasses import dataclass

from turbo_runtime.protocol.errors import invalid, overloaded

NUM_DEPARTURES = 64  # that the drain rate is measured over
MAX_RETRY_SECONDS = 60


@dataclass(frozen=True, slots=True)
class Limits:
    """Answers, and tokens of their prompts, that may wait and run at once; both at least 1."""

    answers: int
    tokens: int


@dataclass(frozen=True, slots=True)
class Rejection:
    """Why a request cannot come in now, and about how many answers must finish first."""

    message: str
    num_answers: int


@dataclass(slots=True)
class _Count:
    answers: int = 0
    tokens: int = 0


class Admission:
    """Counts of what is admitted, per tenant. Pure.

    Below the limits everybody is admitted. At the limits a tenant still gets its fair share, a limit divided
    by the tenants present: whoever fills the queue does not keep the others out. Twice the limits are never
    exceeded.
    """

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self._total = _Count()
        self._by_tenant: dict[str, _Count] = {}  # tenants with at least one answer here

    @property
    def answers(self) -> int:
        """Number of answers admitted and not finished."""
        return self._total.answers

    def find_rejection(self, tenant: str, answers: int, tokens: int) -> Rejection | None:
        """Return why so many more answers and prompt tokens cannot come in now; None if they can."""
        own = self._by_tenant.get(tenant, _Count())
        num_tenants = len(self._by_tenant) + (tenant not in self._by_tenant)
        for limit, total, tenants_own, added, unit in (
            (self.limits.answers, self._total.answers, own.answers, answers, "answers"),
            (self.limits.tokens, self._total.tokens, own.tokens, tokens, "prompt tokens"),
        ):
            if added <= 0 or total + added <= limit:
                continue
            if total + added <= 2 * limit and (tenants_own + added) * num_tenants <= limit:
                continue
            leaving = (total + added - limit) * self._total.answers / max(total, 1)  # of the mean size
            return Rejection(
                f"The queue is full: {total} {unit} of at most {limit} are running or waiting.",
                max(math.ceil(leaving), 1),
            )
        return None

    def add(self, tenant: str, answers: int, tokens: int) -> None:
        """Count answers that came in, and the tokens of their prompts."""
        own = self._by_tenant.setdefault(tenant, _Count())
        for count in (self._total, own):
            count.answers += answers
            count.tokens += tokens

    def remove(self, tenant: str, answers: int, tokens: int) -> None:
        """Take off what `add` counted."""
        self.add(tenant, -answers, -tokens)
        if not self._by_tenant[tenant].answers:
            del self._by_tenant[tenant]


class DrainRate:
    """Rate at which answers finish; times are in seconds on one monotonic clock."""

    def __init__(self) -> None:
        self._departures: deque[float] = deque(maxlen=NUM_DEPARTURES)

    def record(self, now: float) -> None:
        """Record that an answer finished."""
        self._departures.append(now)

    def estimate_seconds(self, num_answers: int, now: float) -> int:
        """Estimate the seconds until so many answers finish; the estimate grows while nothing finishes."""
        if len(self._departures) < 2:
            return 1  # no rate is known yet
        seconds = num_answers * (now - self._departures[0]) / len(self._departures)
        return min(max(math.ceil(seconds), 1), MAX_RETRY_SECONDS)


@dataclass(slots=True)
class AdmissionSlot:
    """One request's share of the queue, until its client has all answers. `field` is what errors name."""

    tenant: str
    answers: int
    tokens: int
    field: str


class AdmissionSlots:
    """The queue's slots; used on the event loop only."""

    def __init__(self, limits: Limits) -> None:
        self._admission = Admission(limits)
        self._drain_rate = DrainRate()
        self.empty = asyncio.Event()  # nobody waits for an answer
        self.empty.set()

    @property
    def answers(self) -> int:
        """Number of answers admitted and not finished."""
        return self._admission.answers

    def acquire(self, tenant: str, answers: int, tokens: int, field: str) -> AdmissionSlot:
        """Admit so many answers; `tokens` is a lower bound of their prompts', counted for each answer.

        Raises ApiError: 429 while the queue is full, 400 about `field` when the request could never fit.
        """
        _check_size(answers, self._admission.limits.answers, "answers", field)
        self._check_tokens(tokens, field)
        self._reject(self._admission.find_rejection(tenant, answers, tokens))
        self._admission.add(tenant, answers, tokens)
        self.empty.clear()
        return AdmissionSlot(tenant, answers, tokens, field)

    def resize(self, slot: AdmissionSlot, tokens: int) -> None:
        """Account for the prompts' actual number of tokens. Raises ApiError as `acquire`."""
        self._check_tokens(tokens, slot.field)
        if tokens == slot.tokens:
            return
        self._admission.add(slot.tenant, 0, -slot.tokens)
        rejection = self._admission.find_rejection(slot.tenant, 0, tokens)
        self._admission.add(slot.tenant, 0, slot.tokens if rejection else tokens)
        self._reject(rejection)
        slot.tokens = tokens

    def release(self, slot: AdmissionSlot, *, finished: bool) -> None:
        """Free a slot; `finished` says whether the engine had the answers."""
        self._admission.remove(slot.tenant, slot.answers, slot.tokens)
        if not self._admission.answers:
            self.empty.set()
        for _ in range(slot.answers if finished else 0):
            self._drain_rate.record(time.monotonic())

    def _check_tokens(self, tokens: int, field: str) -> None:
        limit = self._admission.limits.tokens
        _check_size(tokens, limit, "prompt tokens, each answer's counted", field)

    def _reject(self, rejection: Rejection | None) -> None:
        if rejection is not None:
            seconds = self._drain_rate.estimate_seconds(rejection.num_answers, time.monotonic())
            raise overloaded(f"{rejection.message} Retry after {seconds} s.", seconds)


def _check_size(size: int, limit: int, unit: str, field: str) -> None:
    if size > limit:
        raise invalid(
            field,
            f"The request asks for {size} {unit}, and this server takes in at most {limit} "
            "at once: send several requests.",
        )
