"""Follows the activators of TurboDeployments that may scale to zero: how long each has been idle, and at once
that it holds a request.

An activator answers at once for the first time, then when it holds a request, or after a scrape period. It is
asked, and need not ask: what anybody may reach has no right in the cluster.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import aiohttp

from turbo_operator import metrics
from turbo_operator.activator.report import ADMIN_PORT, LOAD_PATH, MAX_WAIT_SECONDS, Traffic
from turbo_operator.api import IDLE_AFTER, Duration
from turbo_operator.autoscaler.idle import RECENT_SECONDS
from turbo_operator.controller.cache.store import Cache, Key
from turbo_operator.controller.load.scraper import get_text
from turbo_operator.snapshot import PodView

LOOK_SECONDS = 1.0  # for pods that come and go
PAUSE_SECONDS = 1.0  # between two answers, while requests wait

log = logging.getLogger(__name__)

Place = tuple[Key, str, str]  # of a router's pod: whose, its name, its IP


@dataclass(eq=False)
class TrafficWatch:
    """Keeps the traffic of routers in `cache` fresh.

    An answer comes within `period` and `timeout` seconds; `wake` is called with its TurboDeployment where it
    may change something; `clock` gives seconds since the epoch.
    """

    cache: Cache
    period: float
    timeout: float
    wake: Callable[[Key], None]
    clock: Callable[[], float]

    async def run(self) -> None:
        """Follow until cancelled."""
        connector = aiohttp.TCPConnector(limit=0)
        timeout = aiohttp.ClientTimeout(total=self.period + self.timeout, sock_connect=self.timeout)
        async with (
            aiohttp.ClientSession(connector=connector, timeout=timeout) as session,
            asyncio.TaskGroup() as group,
        ):
            following: dict[Place, asyncio.Task[None]] = {}
            while True:
                wanted = set(self._places())
                for place in following.keys() - wanted:
                    following.pop(place).cancel()
                for place in wanted - following.keys():
                    following[place] = group.create_task(self._follow(session, *place))
                await asyncio.sleep(LOOK_SECONDS)

    def _places(self) -> list[Place]:
        """List the routers of whatever may have no replica."""
        idle = [
            key for key, _ in self.cache.deployments.items() if self._scaling(key).get("minReplicas") == 0
        ]
        return [(key, pod.name, pod.ip) for key in idle for pod in self.cache.pods.routers(key) if pod.ip]

    def _scaling(self, key: Key) -> Mapping[str, Any]:
        return ((self.cache.deployments.get(key) or {}).get("spec") or {}).get("scaling") or {}

    async def _follow(self, session: aiohttp.ClientSession, key: Key, name: str, ip: str) -> None:
        wait = 0.0
        while True:
            try:
                text = await get_text(session, ip, ADMIN_PORT, f"{LOAD_PATH}?wait={wait:g}")
                traffic = Traffic.from_json(text)
                self.cache.pods.put_traffic(key, name, self.clock(), traffic)
                if not wait or self._matters(key, traffic):
                    self.wake(key)
                wait = min(self.period, MAX_WAIT_SECONDS)
                metrics.SCRAPES.labels("ok").inc()
            except (aiohttp.ClientError, TimeoutError, ValueError, ArithmeticError, OSError) as error:
                metrics.SCRAPES.labels("failed").inc()
                log.debug("the traffic of pod %s is unknown: %r", name, error)
            await asyncio.sleep(PAUSE_SECONDS)

    def _matters(self, key: Key, traffic: Traffic) -> bool:
        """Whether replicas may come by this, or go."""
        held = traffic.held_seconds
        if traffic.waiting or (held is not None and held < RECENT_SECONDS):
            return True
        after = Duration(self._scaling(key).get("idleAfter") or IDLE_AFTER)
        return traffic.idle_seconds >= after.seconds and any(
            isinstance(pod, PodView) and pod.ready and pod.plan_hash for pod in self.cache.pods.of(key)
        )
