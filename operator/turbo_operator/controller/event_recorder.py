"""Events of TurboDeployments, for `kubectl describe` and `kubectl events`.

They are written in the background: a reconcile never waits for one. One that cannot be written is tried again
a few times, then logged and dropped.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from turbo_operator import metrics
from turbo_operator.api import API_VERSION, FIELD_MANAGER, TURBODEPLOYMENT
from turbo_operator.controller.kube import ConflictError, GoneError, Kube, KubeError, RefusedError
from turbo_operator.resources import EVENT
from turbo_operator.status.transitions import Transition

MAX_WAITING = 5000
MAX_NOTE = 1024  # bytes that the API server takes
# A state that flaps does not flood the API server: so many of each type at once, then one in so many seconds.
BURST, REFILL_SECONDS = 25, 300.0
RETRY_SECONDS = (1.0, 5.0)

log = logging.getLogger(__name__)


@dataclass(slots=True)
class TokenBucket:
    """How many Events of one type an object may still have: client-go's token bucket."""

    tokens: float = BURST
    time: float = 0.0  # of the monotonic clock, when that many were left

    def take(self, now: float) -> bool:
        """Take one; whether there was one."""
        self.tokens = min(BURST, self.tokens + (now - self.time) / REFILL_SECONDS)
        self.time = now
        if self.tokens < 1:
            return False
        self.tokens -= 1
        return True


TokenBuckets = defaultdict[str, TokenBucket]  # by type: what is usual takes no place from what is wrong


@dataclass(eq=False)
class EventRecorder:
    """Writes Events one after the other."""

    api: Kube

    def __post_init__(self) -> None:
        self._waiting: asyncio.Queue[dict[str, Any]] = asyncio.Queue(MAX_WAITING)
        self._instance = socket.gethostname()

    def record(
        self, body: Mapping[str, Any], found: Iterable[Transition], buckets: TokenBuckets, now: float
    ) -> None:
        """Queue an Event about a TurboDeployment for each transition; `now` is in seconds since the epoch."""
        meta = body["metadata"]
        regarding = {key: meta[key] for key in ("name", "namespace", "uid")}
        regarding |= {"apiVersion": API_VERSION, "kind": TURBODEPLOYMENT}
        for number, each in enumerate(found):
            kind = "Warning" if each.is_warning else "Normal"
            if self._waiting.full() or not buckets[kind].take(time.monotonic()):
                metrics.EVENTS_DROPPED.labels(kind).inc()
                details = {"object": f"{meta['namespace']}/{meta['name']}", "reason": each.reason}
                log.warning("dropped an Event: %s", each.message, extra=details)
                continue
            at = datetime.fromtimestamp(now, UTC) + timedelta(microseconds=number)  # for this order
            event = {
                "metadata": {"name": f"{meta['name']}.{at:%Y%m%d%H%M%S%f}", "namespace": meta["namespace"]},
                "eventTime": f"{at:%Y-%m-%dT%H:%M:%S.%fZ}",
                "type": kind,
                "reason": each.reason,
                "note": _cut(each.message),
                "action": "Reconcile",
                "regarding": regarding,
                "reportingController": FIELD_MANAGER,
                "reportingInstance": self._instance,
            }
            self._waiting.put_nowait(event)

    async def run(self) -> None:
        """Write what is queued, for ever."""
        while True:
            event = await self._waiting.get()
            try:
                await self._write(event)
            except KubeError as error:
                metrics.EVENTS_DROPPED.labels(event["type"]).inc()
                log.warning("an Event was not written: %s", error, extra={"reason": event["reason"]})

    async def _write(self, event: Mapping[str, Any]) -> None:
        for seconds in RETRY_SECONDS:
            try:
                await self.api.create(EVENT, event)
                return
            except (RefusedError, ConflictError, GoneError):  # its namespace may be going
                raise
            except KubeError:
                await asyncio.sleep(seconds)
        await self.api.create(EVENT, event)


def _cut(text: str) -> str:
    encoded = text.encode()
    if len(encoded) <= MAX_NOTE:
        return text
    return encoded[: MAX_NOTE - 3].decode(errors="ignore") + "…"
