"""The places of the queue: who is let in, how many have left, and when to come back."""

from __future__ import annotations

import asyncio
import time

from turbo_runtime.protocol.errors import ApiError, invalid, overloaded
from turbo_runtime.server.admission.drain_rate import DrainRate
from turbo_runtime.server.admission.policy import Admission, Limits, Refusal


class AdmissionSlot:
    """Of one request, from before its prompts are tokenised until its client has all of its answers."""

    def __init__(self, places: AdmissionSlots, tenant: str, answers: int, tokens: int, field: str) -> None:
        self._places = places
        self._tenant = tenant
        self._answers = answers
        self._tokens = tokens
        self._field = field

    def settle(self, tokens: int) -> None:
        """The prompts turned out to have so many tokens. Raises ApiError as `Places.take`."""
        self._places.settle(self._tenant, self._tokens, tokens, self._field)
        self._tokens = tokens

    def leave(self, *, answered: bool) -> None:
        """It is free again; `answered` says whether the engine had the answers."""
        self._places.leave(self._tenant, self._answers, self._tokens, answered=answered)


class AdmissionSlots:
    """The door, and the clock beside it; used on the event loop only."""

    def __init__(self, limits: Limits) -> None:
        self._door = Admission(limits)
        self._rate = DrainRate()
        self.empty = asyncio.Event()  # nobody waits for an answer
        self.empty.set()

    @property
    def answers(self) -> int:
        """Of those who are in."""
        return self._door.answers

    def take(self, tenant: str, answers: int, tokens: int, field: str) -> AdmissionSlot:
        """A place for so many answers, whose prompts have at least so many tokens, each answer's counted.

        Raises ApiError: 429 when the queue is full and the tenant has its share of it, 400, about `field`,
        when it could never fit.
        """
        self._check(answers, self._door.limits.answers, "answers", field)
        self._check(tokens, self._door.limits.tokens, "prompt tokens, each answer's counted", field)
        self._admit(self._door.refusal(tenant, answers, tokens))
        self._door.enter(tenant, answers, tokens)
        self.empty.clear()
        return AdmissionSlot(self, tenant, answers, tokens, field)

    def settle(self, tenant: str, before: int, tokens: int, field: str) -> None:
        """A place that was taken for fewer tokens needs so many. Raises ApiError as `take`."""
        self._check(tokens, self._door.limits.tokens, "prompt tokens, each answer's counted", field)
        if tokens == before:
            return
        self._door.enter(tenant, 0, -before)
        refusal = self._door.refusal(tenant, 0, tokens)
        self._door.enter(tenant, 0, before if refusal else tokens)
        self._admit(refusal)

    def leave(self, tenant: str, answers: int, tokens: int, *, answered: bool) -> None:
        """A place is free again."""
        self._door.leave(tenant, answers, tokens)
        if not self._door.answers:
            self.empty.set()
        for _ in range(answers if answered else 0):
            self._rate.left(time.monotonic())

    def _check(self, wanted: int, limit: int, what: str, field: str) -> None:
        if wanted > limit:
            raise invalid(
                field,
                f"The request asks for {wanted} {what}, and this server takes in at most {limit} "
                "at once: send several requests.",
            )

    def _admit(self, refusal: Refusal | None) -> None:
        if refusal is not None:
            raise self._later(refusal)

    def _later(self, refusal: Refusal) -> ApiError:
        seconds = self._rate.seconds_until(refusal.places, time.monotonic())
        return overloaded(f"{refusal.sentence} Retry after {seconds} s.", seconds)
