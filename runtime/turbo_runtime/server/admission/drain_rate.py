"""How fast answers leave, and so when a client that was turned away should come back."""

from __future__ import annotations

import math
from collections import deque

REMEMBERED = 64  # departures
LONGEST_WAIT_SECONDS = 60


class DrainRate:
    """Measures departures; times are in seconds on one monotonic clock."""

    def __init__(self) -> None:
        self._left: deque[float] = deque(maxlen=REMEMBERED)

    def left(self, now: float) -> None:
        """An answer has left."""
        self._left.append(now)

    def seconds_until(self, places: int, now: float) -> int:
        """After how many whole seconds so many places should be free: 1 to `LONGEST_WAIT_SECONDS`.

        The rate counts the time since the last departure too, so that it falls while nothing leaves.
        """
        if len(self._left) < 2:
            return 1  # nothing is known yet
        seconds = places * (now - self._left[0]) / len(self._left)
        return min(max(math.ceil(seconds), 1), LONGEST_WAIT_SECONDS)
