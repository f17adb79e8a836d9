"""The autoscaler's decision, and what it remembers from one reconcile to the next. Pure.

The replicas of the Deployment are never remembered but observed. What is lost with the process is lost
safely: the first reconcile after a start recommends what is there, so that its window begins anew.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from turbo_operator.api import ScalingReason

MAX_PERIOD_SECONDS = 1800.0  # of a rate policy, as the API bounds it
MIN_EVENTS_KEPT = 5  # for the status, however old


@dataclass(frozen=True, slots=True)
class Recommendation:
    """Equal results in a row: at least `low` replicas are needed, at most `high` are of use."""

    until: float  # epoch seconds of the last of them
    low: int
    high: int


@dataclass(frozen=True, slots=True)
class Event:
    """A change of the Deployment's replicas: when it was observed (epoch seconds), and its reason."""

    at: float
    before: int
    after: int
    reason: str


@dataclass(frozen=True, slots=True)
class History:
    """What is remembered. Empty at a start, save for the events that the status has kept."""

    recommendations: tuple[Recommendation, ...] = ()
    events: tuple[Event, ...] = ()
    present: int | None = None  # replicas at the last reconcile
    reason: str = ""  # of the last decision

    @classmethod
    def restored(cls, events: Iterable[Event]) -> History:
        """Return the history after a start, from the status, the earliest event first."""
        kept = tuple(events)
        return cls(events=kept, present=kept[-1].after if kept else None)

    def observe(self, present: int | None, now: float) -> History:
        """Add the Deployment's replicas as they are now; None while there is no Deployment."""
        events = self.events
        if self.present is not None and present is not None and present != self.present:
            events = (*events, Event(now, self.present, present, self.reason))
        recent = sum(event.at > now - MAX_PERIOD_SECONDS for event in events)
        return replace(self, events=events[-max(recent, MIN_EVENTS_KEPT) :], present=present)

    def recommend(self, low: int, high: int, present: int, now: float, max_age: float) -> History:
        """Add a recommendation. After a start, or a gap of more than `max_age` seconds, keeps `present`."""
        known = [row for row in self.recommendations if row.until > now - max_age]
        if not known:
            high = max(high, present)
        elif (known[-1].low, known[-1].high) == (low, high):
            return replace(self, recommendations=(*known[:-1], replace(known[-1], until=now)))
        return replace(self, recommendations=(*known, Recommendation(now, low, high)))

    def within(self, window: float, now: float) -> tuple[Recommendation, ...]:
        """Return the recommendations of the last `window` seconds, the latest one always."""
        recent = tuple(row for row in self.recommendations if row.until > now - window)
        return recent or self.recommendations[-1:]


@dataclass(frozen=True, slots=True)
class ScalingDecision:
    """Desired replicas, with the reason as an enum and a sentence, and the history to remember.

    The sentence holds no figure that moves with every reconcile: a status is written only when it differs.
    """

    replicas: int
    reason: ScalingReason
    detail: str
    history: History
