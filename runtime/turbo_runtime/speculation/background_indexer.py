"""Indexes prompts and finished answers for drafters, in slices of a share of every step's time.

It serves later steps and requests, so no request pays for it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Protocol

_MIN_SLICE, _MAX_SLICE = 32, 1024  # tokens of a step; fewer are not worth the call, and wait for the next
_IDLE_SLICE = 2048  # tokens at a time while there is nothing else to do
_MAX_DEBT = 16.0  # shares of a step
_PACE = 1e-5  # seconds per token before the first measurement
_LEARN = 0.2  # weight of the newest slice in the pace


class Reader(Protocol):
    """An index of texts that reads them on demand."""

    @property
    def waiting(self) -> bool:
        """Whether there is something to read."""

    def read(self, max_tokens: int) -> int:
        """Read up to `max_tokens`; the number of tokens read."""


class Reading:
    """The background reading of one engine."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._pace = _PACE
        self._spare = 0.0  # unused seconds of earlier steps

    def step(self, reader: Reader, spare: float) -> float:
        """Read for about `spare` seconds; the seconds it took."""
        if not reader.waiting:
            self._spare = 0.0
            return 0.0
        self._spare += spare
        tokens = min(_MAX_SLICE, int(self._spare / self._pace))
        if tokens < _MIN_SLICE:
            return 0.0
        seconds = self._read(reader, tokens)
        # later steps make up for a slow slice, unless only a stall of the machine explains it
        self._spare = min(0.0, max(self._spare - seconds, -_MAX_DEBT * spare))
        return seconds

    def rest(self, reader: Reader) -> None:
        """Read while the engine is idle."""
        if reader.waiting:
            self._read(reader, _IDLE_SLICE)

    def _read(self, reader: Reader, tokens: int) -> float:
        start_time = self._clock()
        num_read = reader.read(tokens)
        seconds = self._clock() - start_time
        if num_read:
            self._pace += _LEARN * (max(seconds / num_read, 1e-7) - self._pace)
        return seconds
