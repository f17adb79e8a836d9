"""Which accelerators a pod could not get, and until when they are passed over. Pure.

Read from the pods that wait, by what Kubernetes says since when, and from the status, which remembers it
after such a pod has made way for the next best class. So an operator that starts anew knows as much.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from turbo_operator.api import Accelerators, TurboDeployment, epoch
from turbo_operator.snapshot import PodView

# After a wait of pendingTimeout, so many of them pass before the class is tried again; while the pod goes on
# waiting, as many again and again.
BACKOFF_TIMEOUTS = 10


def unavailable_until(td: TurboDeployment, pods: Iterable[PodView], now: float) -> Mapping[str, float]:
    """Return by accelerator the time (seconds since the epoch) until which no more of it is planned."""
    backoff = BACKOFF_TIMEOUTS * _timeout(td)
    times = {
        # No wait gives more than a backoff from now: whatever is later comes of a clock or a hand that erred.
        entry.accelerator: min(_read_time(entry.expiration_time), now + backoff)
        for entry in td.status.unavailable_accelerators
    }
    plan = td.status.plan
    if plan is not None and plan.accelerator is not None:
        for start in _waiting(plan.hash, pods):
            if now - start >= _timeout(td):
                end_time = start + backoff * (1 + (now - start) // backoff)
                times[plan.accelerator] = max(end_time, times.get(plan.accelerator, end_time))
    return {name: end_time for name, end_time in times.items() if end_time > now}


def next_look(td: TurboDeployment, pods: Iterable[PodView], now: float) -> float | None:
    """Return the seconds until `unavailable_until` changes; None where nothing is waited for."""
    waits = [start + _timeout(td) for start in _waiting(td.status.plan.hash, pods)] if td.status.plan else []
    times = [*waits, *unavailable_until(td, pods, now).values()]
    return min((at - now for at in times if at > now), default=None)


def _read_time(stamp: str) -> float:
    """Read seconds since the epoch; of a text that is no time, or one out of range, a time long past."""
    try:
        return epoch(stamp)
    except (ValueError, OverflowError):
        return 0.0


def _waiting(plan_hash: str | None, pods: Iterable[PodView]) -> list[float]:
    """Return since when each pod of the plan has waited for a node."""
    times = [pod.pending_since for pod in pods if not pod.terminating and pod.plan_hash == plan_hash]
    return [start for start in times if start is not None]


def _timeout(td: TurboDeployment) -> float:
    return (td.spec.accelerators or Accelerators()).pending_timeout.seconds
