"""Rows of logits shared out among threads: numpy computes on large arrays without Python's lock."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache

import torch

_MIN_ROWS = 32  # of a thread: fewer are not worth waking it up


def share_out(count: int, work: Callable[[slice], None]) -> None:
    """Call `work` with parts of `count` rows, at the same time, in as many threads as torch has. It may only
    write to its own rows, and calls nothing of torch that has threads of its own.
    """
    parts = min(torch.get_num_threads(), count // _MIN_ROWS)
    if parts < 2:
        work(slice(0, count))
        return
    bounds = [count * part // parts for part in range(parts + 1)]
    others = [
        _pool(parts - 1, os.getpid()).submit(work, slice(*bounds[part : part + 2]))
        for part in range(1, parts)
    ]
    try:
        work(slice(0, bounds[1]))
    finally:  # nobody writes any more when this returns
        errors = [other.exception() for other in others]
    for error in errors:
        if error is not None:
            raise error


@cache
def _pool(threads: int, _process: int) -> ThreadPoolExecutor:
    """One for each number, of this process: a forked one has no threads."""
    return ThreadPoolExecutor(threads, thread_name_prefix="rows")
