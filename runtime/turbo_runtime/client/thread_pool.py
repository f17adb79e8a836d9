"""Work done by several threads at a time, which Ctrl-C ends."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterable
from typing import TypeVar

Item = TypeVar("Item")


def work_off(items: Iterable[Item], work: Callable[[Item], None], workers: int) -> None:
    """Do the work on each item, so many at a time. Raises what the work raised first.

    On an interrupt nothing more is begun, and what runs is not waited for: a thread of a pool would keep the
    program from ending.
    """
    waiting: queue.SimpleQueue[Item] = queue.SimpleQueue()
    for item in items:
        waiting.put(item)
    errors: list[Exception] = []
    threads = [
        threading.Thread(target=_work, args=(waiting, work, errors), daemon=True)
        for _ in range(min(workers, waiting.qsize()))
    ]
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    except BaseException:
        _empty(waiting)
        raise
    if errors:
        raise errors[0]


def _work(waiting: queue.SimpleQueue[Item], work: Callable[[Item], None], errors: list[Exception]) -> None:
    try:
        while True:
            work(waiting.get_nowait())
    except queue.Empty:
        return
    except Exception as error:
        errors.append(error)
        _empty(waiting)


def _empty(waiting: queue.SimpleQueue[Item]) -> None:
    try:
        while True:
            waiting.get_nowait()
    except queue.Empty:
        return
