"""Long work in threads beside the event loop: large bodies, long prompts, replies with many logprobs."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable
from functools import partial
from typing import TypeVar

Result = TypeVar("Result")

IsWanted = Callable[[], bool]  # whether anybody still waits for the work; long work asks now and then

_running: set[threading.Thread] = set()


def has_running_threads() -> bool:
    """Return whether work still runs, if only for clients that left: it cannot be interrupted."""
    return any(thread.is_alive() for thread in _running)


class ThreadOffload:
    """Limited number of threads: each work holds many times its text's size in memory.

    The threads are daemons and belong to no executor, so the end of the process waits for none of them.
    """

    def __init__(self, num_threads: int) -> None:
        self._slots = asyncio.Semaphore(num_threads)

    async def run(self, work: Callable[[IsWanted], Result]) -> Result:
        """Return what `work` returns, or raise what it raises. It holds its thread until it ends."""
        loop = asyncio.get_running_loop()
        await self._slots.acquire()
        done: asyncio.Future[Result] = loop.create_future()

        def finish(settle: Callable[[], None]) -> None:
            _running.discard(thread)
            self._slots.release()
            if not done.done():
                settle()

        def run_work() -> None:
            try:
                settle = partial(done.set_result, work(lambda: not done.done()))
            except BaseException as error:
                settle = partial(done.set_exception, error)
            with contextlib.suppress(RuntimeError):  # the loop is closed
                loop.call_soon_threadsafe(finish, settle)

        thread = threading.Thread(target=run_work, name="thread offload", daemon=True)
        _running.add(thread)
        thread.start()
        return await done
