"""Which tests follow one another where tests run side by side: those of a cluster, and those of a file.

pytest-xdist's own groups (`--dist loadgroup`) do nothing under pytest 9.2: they rename tests, and
it no longer reads those names.
"""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path

from xdist.scheduler import LoadScopeScheduling

# What starts pods for minutes comes first: the others run meanwhile.
SHARED = ("node", "cluster")
NICE = 5  # of the others: they compute all the time, and would starve those that mostly wait


def order(file: Path) -> int:
    """The place of a file's lane in the queue: what runs models before what is done in seconds."""
    lane = lane_of(file)
    return SHARED.index(lane) if lane in SHARED else len(SHARED) + ("runtime" not in file.parts)


def give_way(file: Path) -> None:
    """Let tests of a cluster go first from here on; in a worker they come before all others, or never."""
    if lane_of(file) not in SHARED and "PYTEST_XDIST_WORKER" in os.environ and os.nice(0) < NICE:
        os.nice(NICE - os.nice(0))


@cache
def lane_of(file: Path) -> str:
    """The cluster that a test file shares, by the marks in it, else the file itself."""
    text = file.read_text(encoding="utf-8")
    return next((mark for mark in SHARED if f"pytest.mark.{mark}" in text), str(file))


class Lanes(LoadScopeScheduling):  # type: ignore[misc] # it has no types
    """Gives a free worker the next lane; the order is that of the collection."""

    def _split_scope(self, nodeid: str) -> str:
        return lane_of(self.config.rootpath / nodeid.partition("::")[0])
