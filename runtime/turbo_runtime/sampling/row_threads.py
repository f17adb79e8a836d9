"""Rows of logits shared out among threads: numpy computes on large arrays without Python's lock."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
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
    pool, others = _pool(torch.get_num_threads() - 1, os.getpid()), list[Future[None]]()
    try:
        for part in range(1, parts):
            others.append(pool.submit(work, slice(*bounds[part : part + 2])))
        work(slice(0, bounds[1]))
    finally:  # nobody writes any more when this returns
        wait(others)
    for other in others:
        other.result()


@cache
def _pool(threads: int, _process: int) -> ThreadPoolExecutor:
    """Create the worker threads of this process once; a forked process inherits none."""
    return ThreadPoolExecutor(threads, thread_name_prefix="rows")
