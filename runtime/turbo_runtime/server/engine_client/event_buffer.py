"""What the engine says to one request, from the moment it comes until the request's client takes it."""

from __future__ import annotations

import asyncio
from typing import NamedTuple

from turbo_runtime.messages import TokenEvent

AT_ONCE = 64  # events taken in a round: a few milliseconds of work


class Arrival(NamedTuple):
    """An event and when it came, on the monotonic clock: a client that lags does not make the engine slow."""

    event: TokenEvent
    at: float


class Arrivals:
    """Filled by the engine's link, emptied by the request's coroutine; both on the event loop's thread."""

    def __init__(self) -> None:
        self._queue: asyncio.Queue[Arrival] = asyncio.Queue()

    def put(self, event: TokenEvent, at: float) -> None:
        """An event has come."""
        self._queue.put_nowait(Arrival(event, at))

    async def take(self) -> list[Arrival]:
        """What has come, in order, `AT_ONCE` events at most; waits for one.

        Always lets others run: a queue that is never empty would not, and the loop would be one client's.
        """
        await asyncio.sleep(0)
        taken = [await self._queue.get()]
        while len(taken) < AT_ONCE and not self._queue.empty():
            taken.append(self._queue.get_nowait())
        return taken
