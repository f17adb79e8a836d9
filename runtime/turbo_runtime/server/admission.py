"""Admission: how much the server holds at once, whom it rejects when full, and when they should retry.

The engine takes whatever is admitted here, so no admitted request is lost.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from dataclasses import dataclass

from turbo_runtime.protocol.errors import ApiError, invalid

NUM_DEPARTURES = 64  # that the drain rate is measured over
MAX_RETRY_SECONDS = 60


@dataclass(slots=True)
class Amount:
    """Number of answers, and of tokens of their prompts."""

    answers: int = 0
    tokens: int = 0


@dataclass(slots=True)
class AdmissionSlot(Amount):
    """One request's share of the queue, until its client has all answers. `field` is what errors name."""

    tenant: str = ""
    field: str = ""


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


class AdmissionSlots:
    """The queue's slots, counted per tenant; used on the event loop only.

    Below the limits, both at least 1, everybody is admitted. At the limits a tenant still gets its fair
    share, a limit divided by the tenants present: whoever fills the queue does not keep the others out. Twice
    the limits are never exceeded.
    """

    def __init__(self, limits: Amount) -> None:
        self._limits = limits
        self._total = Amount()
        self._by_tenant: dict[str, Amount] = {}  # tenants with at least one answer here
        self._drain_rate = DrainRate()
        self.empty = asyncio.Event()  # nobody waits for an answer
        self.empty.set()

    @property
    def answers(self) -> int:
        """Number of answers admitted and not finished."""
        return self._total.answers

    def find_rejection(self, tenant: str, answers: int, tokens: int) -> tuple[str, int] | None:
        """Return why so much more cannot come in now, and about how many answers must finish first."""
        own = self._by_tenant.get(tenant, Amount())
        num_tenants = len(self._by_tenant) + (tenant not in self._by_tenant)
        for limit, total, tenants_own, added, unit in (
            (self._limits.answers, self._total.answers, own.answers, answers, "answers"),
            (self._limits.tokens, self._total.tokens, own.tokens, tokens, "prompt tokens"),
        ):
            if added <= 0 or total + added <= limit:
                continue
            if total + added <= 2 * limit and (tenants_own + added) * num_tenants <= limit:
                continue
            leaving = (total + added - limit) * self._total.answers / max(total, 1)  # of the mean size
            message = f"The queue is full: {total} {unit} of at most {limit} are running or waiting."
            return message, max(math.ceil(leaving), 1)
        return None

    def add(self, tenant: str, answers: int, tokens: int) -> None:
        """Count answers that came in and the tokens of their prompts, or negative numbers that left."""
        own = self._by_tenant.setdefault(tenant, Amount())
        for count in (self._total, own):
            count.answers += answers
            count.tokens += tokens
        if not own.answers:
            del self._by_tenant[tenant]

    def acquire(self, tenant: str, answers: int, tokens: int, field: str) -> AdmissionSlot:
        """Admit so many answers; `tokens` is a lower bound of their prompts', counted for each answer.

        Raises ApiError: 429 while the queue is full, 400 about `field` when the request could never fit.
        """
        _check_size(answers, self._limits.answers, "answers", field)
        slot = AdmissionSlot(tenant=tenant, field=field)
        self._admit(slot, answers, tokens)
        self.empty.clear()
        return slot

    def resize(self, slot: AdmissionSlot, tokens: int) -> None:
        """Account for the prompts' actual number of tokens. Raises ApiError as `acquire`."""
        if tokens != slot.tokens:
            self._admit(slot, 0, tokens)

    def release(self, slot: AdmissionSlot, *, finished: bool) -> None:
        """Free a slot; `finished` says whether the engine had the answers."""
        self.add(slot.tenant, -slot.answers, -slot.tokens)
        if not self.answers:
            self.empty.set()
        for _ in range(slot.answers if finished else 0):
            self._drain_rate.record(time.monotonic())

    def _admit(self, slot: AdmissionSlot, added_answers: int, tokens: int) -> None:
        _check_size(tokens, self._limits.tokens, "prompt tokens, each answer's counted", slot.field)
        self.add(slot.tenant, 0, -slot.tokens)
        rejection = self.find_rejection(slot.tenant, added_answers, tokens)
        if rejection is None:
            slot.answers, slot.tokens = slot.answers + added_answers, tokens
        self.add(slot.tenant, 0 if rejection else added_answers, slot.tokens)
        if rejection is not None:
            message, num_answers = rejection
            seconds = self._drain_rate.estimate_seconds(num_answers, time.monotonic())
            raise ApiError(429, f"{message} Retry after {seconds} s.", retry_after=seconds)


def _check_size(size: int, limit: int, unit: str, field: str) -> None:
    if size > limit:
        raise invalid(
            field,
            f"The request asks for {size} {unit}, and this server takes in at most {limit} "
            "at once: send several requests.",
        )
