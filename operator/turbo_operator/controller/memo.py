"""What one reconcile of a TurboDeployment leaves for the next; lost with the process, which is safe.

Plans are part of it: the same question is answered once. The counts of accelerators in a question move all
the time: whom they concern is told by `Memo.edition`, and what that misses waits for the resync.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from turbo_operator.autoscaler import History
from turbo_operator.controller.cache.store import Key
from turbo_operator.controller.event_recorder import TokenBucket, TokenBuckets
from turbo_operator.controller.kube import RefusedError
from turbo_operator.controller.pod_labels import Attempts
from turbo_operator.drafts.speedup import SpeedupTracker
from turbo_operator.plan import Plan
from turbo_operator.planner import PlannerInputs
from turbo_operator.planner import plan as compute_plan
from turbo_operator.planner.performance.calibration import OnlineCorrection
from turbo_operator.status.targets import TargetTracker


@dataclass(frozen=True, slots=True)
class CachedPlan:
    """A plan and the question that it answers."""

    inputs: PlannerInputs
    plan: Plan
    edition: int
    time: float  # seconds since the epoch


@dataclass(slots=True)
class Memo:
    """Memory of one object."""

    uid: str
    history: History | None = None  # of scaling; None before the first look
    online: OnlineCorrection | None = None  # of step times under load
    speedups: SpeedupTracker = field(default_factory=SpeedupTracker)
    targets: TargetTracker = field(default_factory=TargetTracker)
    rate_changed: float | None = None  # when the tokens per second of the status last did, in epoch seconds
    announced: str | None = None  # the last plan's hash: once each, whatever becomes of the status
    # Children, by uid, whose write changed nothing: with the hash that was applied, or the fields to remove.
    noop_applies: set[tuple[str, str]] = field(default_factory=set)
    events: TokenBuckets = field(default_factory=lambda: TokenBuckets(TokenBucket))
    relabels: Attempts = field(default_factory=dict)
    refusal: tuple[int, RefusedError | None] = (0, None)  # of the last look, and the spec's generation then
    plan: CachedPlan | None = None  # the best
    pinned_plan: CachedPlan | None = None  # of what runs, while the best one waits for approval
    undrafted_plan: CachedPlan | None = None  # of the same targets without speculation
    training_plan: CachedPlan | None = None  # of a training that waits
    trial_plan: CachedPlan | None = None  # with a draft that is tried
    # How often another count may have given it another plan: read before what the next question is made of.
    edition: int = 0

    @property
    def plans(self) -> tuple[CachedPlan | None, ...]:
        """All of them."""
        return self.plan, self.pinned_plan, self.undrafted_plan, self.training_plan, self.trial_plan

    def follow_rate(self, old: Mapping[str, Any], new: Mapping[str, Any], now: float) -> None:
        """Follow what a status says of tokens per second."""
        before, after = ((each.get("observed") or {}).get("tokensPerSecond") for each in (old, new))
        if before != after:
            self.rate_changed = now


class Memos(dict[Key, Memo]):
    """Memories by key."""

    def of(self, key: Key, uid: str) -> Memo:
        """Return the memory of this very object: one that is created again under a name has no past."""
        if key not in self or self[key].uid != uid:
            self[key] = Memo(uid)
        return self[key]


class Planner:
    """Runs the planner in a thread of its own, anew for the same question after `resync_seconds`.

    A plan is arithmetic of up to a tenth of a second, which would keep a thousand objects' watches and the
    liveness probe waiting; what goes in and comes out is frozen.
    """

    def __init__(self, resync_seconds: float) -> None:
        self._resync_seconds = resync_seconds
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="planner")

    async def plan(
        self, last: CachedPlan | None, inputs: PlannerInputs, edition: int, now: float
    ) -> CachedPlan:
        """Return the plan for inputs that were put together in this edition: the last one while it holds."""
        if (
            last is not None
            and last.edition == edition
            and now - last.time < self._resync_seconds
            and last.inputs.equals_but_for_counts(inputs)
        ):
            return last
        plan = await asyncio.get_running_loop().run_in_executor(self._thread, compute_plan, inputs, now)
        return CachedPlan(inputs, plan, edition, now)
