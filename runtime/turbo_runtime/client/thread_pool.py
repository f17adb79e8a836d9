"""Work done by several threads at a time, which Ctrl-C ends."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from typing import TypeVar

Item = TypeVar("Item")


def work_off(items: Iterable[Item], work: Callable[[Item], None], num_threads: int) -> None:
    """Do the work on each item, so many at a time. Raises the first error of the work.

    After an interrupt nothing more begins, and what runs is not waited for: a thread of an executor would
    keep the program from ending.
    """
    pending = deque(items)
    errors: list[Exception] = []

    def work_pending() -> None:
        try:
            for item in _pop_all(pending):
                work(item)
        except Exception as error:
            errors.append(error)
            pending.clear()

    threads = [
        threading.Thread(target=work_pending, daemon=True) for _ in range(min(num_threads, len(pending)))
    ]
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    except BaseException:
        pending.clear()
        raise
    if errors:
        raise errors[0]


def _pop_all(pending: deque[Item]) -> Iterator[Item]:
    with suppress(IndexError):
        while True:
            yield pending.popleft()
