"""What a Deployment does that a plan is recommended for: its pods, and its load from their counters. Pure."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from turbo_operator.snapshot import AcceleratorLabels
from turbo_runtime.contract.documents import Load

WINDOW_SECONDS = 600.0  # over which a load counts: a burst of a minute is no reason for another accelerator
MIN_SECONDS = 60.0  # until it has been seen for that long, what there is of it counts, from here on
MIN_REQUESTS = 10  # that end in a window: fewer tell no rate and no lengths
MEMORY_SECONDS = 86_400.0  # for which the busiest window is remembered


class MeasuredLoad(NamedTuple):
    """The load of a window, in requests that ended in it."""

    requests_per_second: float
    input_tokens: float  # mean
    output_tokens: float  # mean
    time: float  # of the window's end, in seconds since the epoch


class Counters(NamedTuple):
    """What pods have done since they started."""

    requests: int = 0  # that have ended
    input_tokens: int = 0  # of those
    output_tokens: int = 0  # of those

    @classmethod
    def of(cls, load: Load) -> Counters:
        """Read those of a pod."""
        requests = load.prompts or 0
        return cls(requests, load.prompt_tokens or 0, (load.decode_tokens or 0) + requests)

    def since(self, before: Counters) -> Counters:
        """Return what was done since; of a process that has started anew all of it."""
        has_restarted = any(now < then for now, then in zip(self, before, strict=True))
        return self if has_restarted else Counters(*(a - b for a, b in zip(self, before, strict=True)))

    def __add__(self, other: object) -> Counters:
        if not isinstance(other, Counters):
            return NotImplemented
        return Counters(*(a + b for a, b in zip(self, other, strict=True)))


@dataclass(frozen=True, slots=True)
class Reference:
    """The Deployment as it was last seen."""

    name: str
    error: str | None = None  # why nothing is known of it, as a sentence
    replicas: int = 0
    ready: int = 0
    placed: tuple[AcceleratorLabels, ...] = ()  # its pods that are on a node, as they are billed
    unidentified: str | None = None  # a node of its pods that is of no TurboAccelerator
    answering: int = 0  # pods whose metrics were read
    load: MeasuredLoad | None = None  # of the busiest window; None: not known yet


@dataclass(eq=False)
class LoadTracker:
    """Adds up the counters of a Deployment's pods, and remembers the busiest window of a day.

    `busiest` is what was known before, as after a start of the operator.
    """

    busiest: MeasuredLoad | None = None
    _last: dict[str, Counters] = field(default_factory=dict)  # by pod
    _total: Counters = field(default_factory=Counters)
    _points: deque[tuple[float, Counters]] = field(default_factory=deque)  # of a window, and one before
    _peaks: deque[MeasuredLoad] = field(default_factory=deque)  # ever later and less busy

    def __post_init__(self) -> None:
        if self.busiest is not None:
            self._peaks.append(self.busiest)

    def add(self, now: float, pods: Mapping[str, Counters], present: Iterable[str]) -> None:
        """Add what pods say by name; `present` are those that there are, of which some may be silent."""
        for name, counters in pods.items():
            if name in self._last:
                self._total += counters.since(self._last[name])
            self._last[name] = counters
        self._last = {name: self._last[name] for name in present if name in self._last}
        self._points.append((now, self._total))
        while len(self._points) > 1 and self._points[1][0] <= now - WINDOW_SECONDS:
            self._points.popleft()
        while self._peaks and self._peaks[0].time < now - MEMORY_SECONDS:
            self._peaks.popleft()
        latest = self._window(now)
        if latest is not None and now - self._points[0][0] >= WINDOW_SECONDS:
            while self._peaks and self._peaks[-1].requests_per_second <= latest.requests_per_second:
                self._peaks.pop()
            self._peaks.append(latest)
        known = [load for load in (*list(self._peaks)[:1], latest) if load is not None]
        self.busiest = max(known, key=lambda load: load.requests_per_second, default=None)

    def _window(self, now: float) -> MeasuredLoad | None:
        began, before = self._points[0]
        requests, prompts, outputs = self._total.since(before)
        if now - began < MIN_SECONDS or requests < MIN_REQUESTS:
            return None
        return MeasuredLoad(requests / (now - began), prompts / requests, outputs / requests, now)
