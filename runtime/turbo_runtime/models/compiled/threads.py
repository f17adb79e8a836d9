"""Compiled code in torch's own threads, which share what there is to do by an atomic counter."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import cache
from typing import Any

import torch

from turbo_runtime.models.compiled.code import Compiled

_SHARES = 4  # of the work for each thread: one that was held up takes fewer


def check() -> None:
    """Raise RuntimeError where torch's threads cannot run compiled code."""
    if torch.get_num_threads() > 1:
        _parallel()


def share_of(number: int) -> int:
    """How many of so many parts a thread takes at a time."""
    threads = torch.get_num_threads()
    return number if threads == 1 else -(-number // (_SHARES * threads))


def run(compiled: Compiled, arguments: ctypes.Structure) -> None:
    """Run compiled code in all threads."""
    threads = torch.get_num_threads()
    if threads == 1:
        compiled.run(arguments)
    else:
        _parallel()(compiled.address, ctypes.byref(arguments), threads, 0)


@cache
def _parallel() -> Callable[..., Any]:
    """The function with which GNU OpenMP runs code in its threads."""
    try:
        start = ctypes.CDLL(None).GOMP_parallel
    except AttributeError:
        raise RuntimeError("torch was built without GNU OpenMP, whose threads compiled code needs") from None
    start.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint)
    start.restype = None
    return start
