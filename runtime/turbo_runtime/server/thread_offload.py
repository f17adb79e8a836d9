"""Long work in threads beside the event loop: large bodies, long prompts, replies with many logprobs."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

Result = TypeVar("Result")

IsWanted = Callable[[], bool]  # whether anybody still waits for the work; long work asks now and then

_unfinished: set[Future[Any]] = set()


def has_running_threads() -> bool:
    """Return whether work still runs, if only for clients that left: it cannot be interrupted."""
    return bool(_unfinished)


class ThreadOffload:
    """Limited number of threads: each work holds many times its text's size in memory."""

    def __init__(self, num_threads: int) -> None:
        self._executor = ThreadPoolExecutor(num_threads, "thread offload")

    async def run(self, work: Callable[[IsWanted], Result]) -> Result:
        """Return what `work` returns, or raise what it raises. It holds its thread until it ends."""
        wanted = True
        future = self._executor.submit(work, lambda: wanted)
        _unfinished.add(future)
        future.add_done_callback(_unfinished.discard)
        try:
            return await asyncio.wrap_future(future)
        finally:
            wanted = False
