"""What one look at a TurboDeployment leaves for the next; lost with the process, which is safe."""

from __future__ import annotations

from dataclasses import dataclass, field

from turbo_operator.autoscaler import History
from turbo_operator.controller.cache.store import Key
from turbo_operator.drafts.speedup import SpeedupTracker
from turbo_operator.planner.performance.calibration import Online


@dataclass(slots=True)
class Memo:
    """Of one object."""

    uid: str
    history: History | None = None  # of scaling; None before the first look
    online: Online | None = None  # of step times under load
    gains: SpeedupTracker = field(default_factory=SpeedupTracker)
    announced: str | None = None  # the last plan's hash: once each, whatever becomes of the status
    # Uid and hash of children whose apply changed nothing.
    futile: set[tuple[str, str]] = field(default_factory=set)


class Memories:
    """By key, of the object that bears it now: one that is made again under a name has no past."""

    def __init__(self) -> None:
        self._kept: dict[Key, Memo] = {}

    def of(self, key: Key, uid: str) -> Memo:
        """What is remembered of this very object, to be written on."""
        kept = self._kept.get(key)
        if kept is None or kept.uid != uid:
            kept = self._kept[key] = Memo(uid)
        return kept

    def forget(self, key: Key) -> None:
        """The object is gone."""
        self._kept.pop(key, None)
