"""For how long the engine has been silent, by a count that it raises at every turn of its loop."""

from __future__ import annotations

PERIOD_SECONDS = 1.0  # between two looks at most

# From this share of the limit on no new requests should come. Not much sooner: a chunk of a long prompt is
# one step, and 512 tokens of SmolLM2-135M after 4,000 others took 6 s of a core: 15 s of a pod that may use
# 400m of one, and 30 s where others wanted the core too. A pod that left its Service for each such step
# would only send the next long prompt to another.
LATE_SHARE = 0.5


class Watchdog:
    """Adds up the time between looks that find the count where it was.

    Only time that the server was awake for counts, so that server and engine may be stopped together (a
    frozen container, a suspended machine) and go on: a look that comes late adds no more than two periods.
    """

    def __init__(self, limit: float) -> None:
        """`limit` in seconds, as all times here. Silence begins with the first look."""
        self.limit = limit
        self.period = min(PERIOD_SECONDS, limit / 8)
        self.silent = 0.0  # seconds
        self._count = -1
        self._looked = 0.0

    def look(self, count: int, now: float) -> None:
        """Take note of the engine's count as it is `now`, by a clock that never goes back."""
        passed, self._looked = now - self._looked, now
        if count != self._count:
            self._count, self.silent = count, 0.0
        else:
            self.silent += min(passed, 2 * self.period)

    @property
    def late(self) -> bool:
        """Whether the engine has been silent for so long that requests should go elsewhere."""
        return self.silent >= LATE_SHARE * self.limit

    @property
    def expired(self) -> bool:
        """Whether the engine is to be given up."""
        return self.silent >= self.limit
