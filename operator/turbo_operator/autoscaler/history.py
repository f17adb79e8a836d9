"""What the autoscaler remembers from one look to the next: plain data, in and out. Pure.

The replicas of the Deployment are never remembered but seen. What is lost with the process is lost safely:
the first look after a start counts as a wish for what is there, so that its window begins anew.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

LONGEST_PERIOD = 1800.0  # seconds of a rate policy, as the API bounds it
NUM_EVENTS_KEPT = 5  # at least, for the status, however old


@dataclass(frozen=True, slots=True)
class Recommendation:
    """Looks in a row that came to the same: at least `low` replicas are needed, at most `high` are of use."""

    since: float  # epoch seconds of the first of them
    until: float  # and of the last
    low: int
    high: int


@dataclass(frozen=True, slots=True)
class Event:
    """The Deployment's replicas changed: when it was seen (epoch seconds), and why it was asked for."""

    at: float
    before: int
    after: int
    reason: str


@dataclass(frozen=True, slots=True)
class History:
    """Empty at a start, save for the events that the status has kept."""

    recommendations: tuple[Recommendation, ...] = ()
    events: tuple[Event, ...] = ()
    present: int | None = None  # replicas at the last look
    reason: str = ""  # of the replicas that were last asked for

    @classmethod
    def restored(cls, events: Iterable[Event]) -> History:
        """After a start: what the status says, the earliest event first."""
        kept = tuple(events)
        return cls(events=kept, present=kept[-1].after if kept else None)

    def seen(self, present: int | None, now: float) -> History:
        """The Deployment's replicas as they are now; None while there is no Deployment."""
        events = self.events
        if self.present is not None and present is not None and present != self.present:
            events = (*events, Event(now, self.present, present, self.reason))
        recent = sum(event.at > now - LONGEST_PERIOD for event in events)
        return replace(self, events=events[-max(recent, NUM_EVENTS_KEPT) :], present=present)

    def recommended(self, low: int, high: int, present: int, now: float, longest: float) -> History:
        """One more look. After a start, or a gap of more than `longest` seconds, `present` is held."""
        known = [each for each in self.recommendations if each.until > now - longest]
        if not known:
            high = max(high, present)
        elif (known[-1].low, known[-1].high) == (low, high):
            return replace(self, recommendations=(*known[:-1], replace(known[-1], until=now)))
        return replace(self, recommendations=(*known, Recommendation(now, now, low, high)))

    def least(self, window: float, now: float) -> int:
        """Replicas that were needed all the time of the last `window` seconds, now included."""
        return min(each.low for each in self._within(window, now))

    def most(self, window: float, now: float) -> int:
        """Replicas that were of use at some time of the last `window` seconds, now included."""
        return max(each.high for each in self._within(window, now))

    def _within(self, window: float, now: float) -> tuple[Recommendation, ...]:
        earlier = tuple(each for each in self.recommendations if each.until > now - window)
        return earlier or self.recommendations[-1:]
