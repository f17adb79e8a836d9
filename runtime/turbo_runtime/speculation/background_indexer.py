"""What drafters read in the background of steps: prompts being computed, and finished answers.

Reading serves later steps and whoever comes next, so it is booked to no request; it has a share of every
step's time, and a text is read in slices that fit.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Protocol

_SLICE = 32  # tokens; less is not worth the call, and waits for the next step
_MOST = 1024  # tokens of a step, whatever the share
_DEBT = 16.0  # shares of a step that may be owed
_REST = 2048  # tokens at a time while there is nothing else to do
_PACE = 1e-5  # seconds that a token takes, before any was read
_LEARN = 0.2  # weight of the newest slice in what is known of the pace


class Reader(Protocol):
    """Who reads."""

    @property
    def waiting(self) -> bool:
        """Whether there is something to read."""

    def read(self, most: int) -> int:
        """Read at most so many tokens; how many it were."""


class Reading:
    """Slices of a share of each step's time."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        """`clock`: seconds."""
        self._clock = clock
        self._pace = _PACE
        self._spare = 0.0  # seconds of earlier steps that were too few for a slice

    def step(self, reader: Reader, spare: float) -> float:
        """Let it read for about `spare` seconds; the seconds it took."""
        if not reader.waiting:
            self._spare = 0.0
            return 0.0
        self._spare += spare
        tokens = min(_MOST, int(self._spare / self._pace))
        if tokens < _SLICE:
            return 0.0
        took = self._read(reader, tokens)
        # a slice that took too long is made up for, but for what only the machine can have held up
        self._spare = min(0.0, max(self._spare - took, -_DEBT * spare))
        return took

    def rest(self, reader: Reader) -> None:
        """Go on where nobody waits."""
        if reader.waiting:
            self._read(reader, _REST)

    def _read(self, reader: Reader, tokens: int) -> float:
        began = self._clock()
        read = reader.read(tokens)
        took = self._clock() - began
        if read:
            self._pace += _LEARN * (max(took / read, 1e-7) - self._pace)
        return took
