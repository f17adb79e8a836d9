"""To zero and back: whether requests come, by what the activators in front of the replicas report. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from turbo_operator.snapshot import PodView

# A request that its client gave up before it was seen starts a replica all the same.
RECENT_SECONDS = 30.0


def is_idle(
    routers: Sequence[PodView], pods: Sequence[PodView], idle_after: float, now: float, fresh_seconds: float
) -> bool:
    """Whether no request has come for `idle_after` seconds, as every router that answers says, and a replica
    has been ready for all of them: a model that loads for longer than that is not given up on the way.

    What is not known is no silence: with no router, or one that has not reported for `fresh_seconds`,
    somebody may be asking. Nor are `pods` idle that answer a request which came to them past the routers.
    """
    ready = [pod.ready_since for pod in pods if pod.ready and not pod.terminating]
    if not any(since is not None and since <= now - idle_after for since in ready):
        return False
    answering = [router for router in routers if router.ready and not router.terminating]
    if not answering or not all(_is_known(router, now, fresh_seconds) for router in answering):
        return False
    # One that leaves may still pass on what it has taken.
    known = [router.traffic for router in routers if router.traffic is not None]
    # As they were read: what has come since is not known.
    if any(sample.traffic.idle_seconds < idle_after for sample in known):
        return False
    loads = [pod.load.load for pod in pods if pod.load is not None and now - pod.load.at <= fresh_seconds]
    return not any(load.running_requests or load.waiting_requests for load in loads)


def is_wanted(routers: Iterable[PodView], idle_after: float, now: float, fresh_seconds: float) -> bool:
    """Whether a request waits for a replica, or one did just now."""
    recent = min(RECENT_SECONDS, idle_after)
    for router in routers:
        if (sample := router.traffic) is not None and now - sample.at <= fresh_seconds:
            held = sample.traffic.held_seconds
            if sample.traffic.waiting or (held is not None and held + now - sample.at < recent):
                return True
    return False


def would_notice(routers: Iterable[PodView], now: float, fresh_seconds: float) -> bool:
    """Whether a router that answers reports its traffic, so that a request would start a replica."""
    return any(router.ready and _is_known(router, now, fresh_seconds) for router in routers)


def _is_known(router: PodView, now: float, fresh_seconds: float) -> bool:
    return router.traffic is not None and now - router.traffic.at <= fresh_seconds
