"""What one reconcile of a TurboDeployment leaves for the next; lost with the process, which is safe."""

from __future__ import annotations

from dataclasses import dataclass, field

from turbo_operator.autoscaler import History
from turbo_operator.controller.cache.store import Key
from turbo_operator.drafts.speedup import SpeedupTracker
from turbo_operator.planner.performance.calibration import Online


@dataclass(slots=True)
class Memo:
    """Memory of one object."""

    uid: str
    history: History | None = None  # of scaling; None before the first look
    online: Online | None = None  # of step times under load
    speedups: SpeedupTracker = field(default_factory=SpeedupTracker)
    announced: str | None = None  # the last plan's hash: once each, whatever becomes of the status
    # Children, by uid, whose write changed nothing: with the hash that was applied, or the fields to remove.
    noop_applies: set[tuple[str, str]] = field(default_factory=set)


class Memos:
    """Memories by key, of the object that has it now: one that is created again under a name has no past."""

    def __init__(self) -> None:
        self._memos: dict[Key, Memo] = {}

    def get(self, key: Key, uid: str) -> Memo:
        """Return the memory of this very object, to be written to."""
        memo = self._memos.get(key)
        if memo is None or memo.uid != uid:
            memo = self._memos[key] = Memo(uid)
        return memo

    def forget(self, key: Key) -> None:
        """Forget an object that is gone."""
        self._memos.pop(key, None)
