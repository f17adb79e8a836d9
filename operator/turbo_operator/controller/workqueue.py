"""A queue of keys for level-triggered work: what is queued says who to look at, never what happened.

A key stands in the queue at most once and is worked on by at most one worker. Adding it while it is worked on
runs it once more afterwards. Work answers with the seconds until the next look, or fails and is tried again
with exponential backoff. Everything lives on one asyncio loop; no other thread may call in here.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Hashable
from dataclasses import dataclass
from typing import Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)

log = logging.getLogger(__name__)


@dataclass(eq=False)
class WorkQueue(Generic[Key]):
    """Keys waiting for `work(key)`, which answers with the seconds until the next look (None: when added).

    Errors of the `expected` kinds are reported in one line, all others with their traceback.
    """

    work: Callable[[Key], Awaitable[float | None]]
    num_workers: int = 1
    expected: tuple[type[Exception], ...] = ()
    first_backoff_seconds: float = 0.5
    max_backoff_seconds: float = 120.0

    def __post_init__(self) -> None:
        self._ready: asyncio.Queue[Key] = asyncio.Queue()
        self._waiting: set[Key] = set()  # in _ready
        self._running: set[Key] = set()
        self._again: set[Key] = set()  # added while running
        self._timers: dict[Key, asyncio.TimerHandle] = {}
        self._failures: Counter[Key] = Counter()

    def add(self, key: Key) -> None:
        """Look at `key` as soon as a worker is free; this look replaces the later one, if one was due."""
        self._cancel_timer(key)
        if key in self._running:
            self._again.add(key)
        elif key not in self._waiting:
            self._waiting.add(key)
            self._ready.put_nowait(key)

    def add_after(self, key: Key, seconds: float) -> None:
        """Look at `key` in `seconds` or earlier: the earliest of several times counts."""
        if key in self._waiting or key in self._again:
            return
        due = asyncio.get_running_loop().time() + seconds
        timer = self._timers.get(key)
        if timer is not None and timer.when() <= due:
            return
        self._cancel_timer(key)
        self._timers[key] = asyncio.get_running_loop().call_at(due, self.add, key)

    @property
    def num_waiting(self) -> int:
        """Keys that wait for a free worker."""
        return len(self._waiting)

    async def run(self) -> None:
        """Work until cancelled."""
        async with asyncio.TaskGroup() as group:
            for _ in range(self.num_workers):
                group.create_task(self._worker())

    async def _worker(self) -> None:
        while True:
            key = await self._ready.get()
            self._waiting.discard(key)
            self._running.add(key)
            next_look: float | None = None
            try:
                next_look = await self.work(key)
                self._failures.pop(key, None)
            except Exception as error:
                # The exponent is bounded before the power is taken: a key may fail for weeks.
                backoff = self.first_backoff_seconds * 2.0 ** min(self._failures[key], 30)
                next_look = min(self.max_backoff_seconds, backoff)
                self._failures[key] += 1
                trace = None if isinstance(error, self.expected) else error
                message, extra = "will be tried again in %.1f s: %s", {"object": str(key)}
                log.warning(message, next_look, error, exc_info=trace, extra=extra)
            finally:
                self._running.discard(key)
            if key in self._again:
                self._again.discard(key)
                self.add(key)
            elif next_look is not None:
                self.add_after(key, next_look)

    def _cancel_timer(self, key: Key) -> None:
        if timer := self._timers.pop(key, None):
            timer.cancel()
