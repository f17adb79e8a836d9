"""Compiled code in torch's own threads, which share what there is to do by an atomic counter."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import cache
from typing import Any

import torch

from turbo_runtime.models.compiled.code import Compiled

_SHARES = 4  # of the parts for each thread: one that was held up takes fewer
_WORTH_WAKING = 1 << 19  # multiplications: about 10 µs, for which a thread that sleeps hardly wakes up


def check() -> None:
    """Raise RuntimeError where torch's threads cannot run compiled code."""
    if torch.get_num_threads() > 1 and _parallel() is None:
        raise RuntimeError("torch was built without GNU OpenMP, whose threads compiled code needs")


def count_for(operations: int) -> int:
    """How many threads so many operations are worth waking up; one where none can run compiled code."""
    return torch.get_num_threads() if operations >= _WORTH_WAKING and _parallel() else 1


def run(compiled: Compiled, arguments: Any, parts: int, threads: int) -> None:
    """Run compiled code in so many threads, which share the `parts` that it has to do."""
    arguments.taken = 0
    start = None if threads == 1 else _parallel()
    if start is None:
        arguments.share = parts
        compiled.run(arguments)
    else:
        arguments.share = -(-parts // (_SHARES * threads))
        start(compiled.address, ctypes.byref(arguments), threads, 0)


@cache
def _parallel() -> Callable[..., Any] | None:
    """The function with which GNU OpenMP runs code in its threads; None where torch has another OpenMP."""
    start = getattr(ctypes.CDLL(None), "GOMP_parallel", None)
    if start is not None:
        start.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint)
        start.restype = None
    return start
