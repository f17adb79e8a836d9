"""Long work for a request, beside the event loop: large bodies, long prompts, replies with many logprobs."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable
from typing import TypeVar

Result = TypeVar("Result")

Wanted = Callable[[], bool]  # whether anybody still waits for the work, to be asked now and then

_running: set[threading.Thread] = set()


def still_running() -> bool:
    """Whether a thread works on, for nobody: its work cannot be interrupted."""
    return any(thread.is_alive() for thread in _running)


class ThreadOffload:
    """A few pieces of work at a time, each in a thread: it holds many times its text's size.

    The threads are daemons, and no executor's: the end of the process waits for none of them.
    """

    def __init__(self, slots: int) -> None:
        self._slots = asyncio.Semaphore(slots)

    async def run(self, work: Callable[[Wanted], Result]) -> Result:
        """What `work` returns or raises. It holds its slot until it has ended, wanted or not."""
        loop = asyncio.get_running_loop()
        await self._slots.acquire()
        done: asyncio.Future[Result] = loop.create_future()

        def told(result: Result | None, error: BaseException | None) -> None:
            _running.discard(thread)
            self._slots.release()
            if done.done():
                return
            if error is None:
                done.set_result(result)  # type: ignore[arg-type]  # with no error it is one
            else:
                done.set_exception(error)

        def body() -> None:
            result, error = None, None
            try:
                result = work(lambda: not done.done())
            except BaseException as raised:
                error = raised
            with contextlib.suppress(RuntimeError):  # the loop is closed
                loop.call_soon_threadsafe(told, result, error)

        thread = threading.Thread(target=body, name="beside the loop", daemon=True)
        _running.add(thread)
        thread.start()
        return await done
