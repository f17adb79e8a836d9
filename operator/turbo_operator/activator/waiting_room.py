"""Which requests are under way, which are held, and how many may be. Pure: a clock is passed in."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from turbo_operator.activator.report import Traffic

Clock = Callable[[], float]


class FullError(Exception):
    """No further request can be taken, or held."""


@dataclass(eq=False)
class UnderWay:
    """A request until it is answered or given up."""

    counts: bool = True  # as one for which there is to be a replica
    held_seconds: float = 0.0


@dataclass(eq=False)
class WaitingRoom:
    """Counts requests; times are in seconds of one clock."""

    max_held: int  # requests that no replica can take yet
    max_bytes: int  # of the bodies of all requests
    last_seen: float  # when the last request that counts ended
    last_held: float | None = None  # when one was last held
    num_under_way: int = 0  # held ones included
    held: int = 0
    bytes: int = 0

    @contextmanager
    def memory(self, num_bytes: int) -> Iterator[None]:
        """Keep room for a body; raises FullError."""
        if self.bytes + num_bytes > self.max_bytes:
            raise FullError
        self.bytes += num_bytes
        try:
            yield
        finally:
            self.bytes -= num_bytes

    @contextmanager
    def under_way(self, clock: Clock) -> Iterator[UnderWay]:
        """Count a request until it was answered or given up."""
        request = UnderWay()
        self.num_under_way += 1
        try:
            yield request
        finally:
            self.num_under_way -= 1
            if request.counts:
                self.last_seen = clock()

    @contextmanager
    def hold(self, clock: Clock) -> Iterator[None]:
        """Hold a request; raises FullError."""
        if self.held >= self.max_held:
            raise FullError
        self.held += 1
        try:
            yield
        finally:
            self.held -= 1
            self.last_held = clock()

    def report(self, now: float) -> Traffic:
        """Return what the operator is to know."""
        idle = 0.0 if self.num_under_way else max(0.0, now - self.last_seen)
        since_held = None if self.last_held is None else max(0.0, now - self.last_held)
        running = self.num_under_way - self.held
        return Traffic(self.held, running, idle, 0.0 if self.held else since_held)
