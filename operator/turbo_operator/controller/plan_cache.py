"""Runs the planner, in a thread of its own, and caches its plans: the same question is answered once.

A plan is arithmetic of up to a tenth of a second, which would keep a thousand objects' watches and the
liveness probe waiting; what goes in and comes out is frozen. The counts of accelerators in a question move
all the time: whom they concern is told by `outdate`, and what that misses waits for the resync.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from turbo_operator.api import TurboDeployment
from turbo_operator.controller.cache.store import Key
from turbo_operator.plan import Plan
from turbo_operator.planner import PlannerInputs, build_inputs
from turbo_operator.planner import plan as compute_plan
from turbo_operator.snapshot import Snapshot


@dataclass(frozen=True, slots=True)
class _CachedPlan:
    inputs: PlannerInputs
    plan: Plan
    edition: int
    time: float  # seconds since the epoch


class PlanCache:
    """The last plan of each TurboDeployment; it is planned anew after `resync_seconds`."""

    def __init__(self, resync_seconds: float) -> None:
        self._resync_seconds = resync_seconds
        self._plans: dict[Key, _CachedPlan] = {}
        self._editions: Counter[Key] = Counter()
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="planner")

    def last(self, key: Key) -> Plan | None:
        """Return the last plan; None before the first."""
        cached = self._plans.get(key)
        return None if cached is None else cached.plan

    def outdate(self, key: Key) -> None:
        """Record that the cluster has another count of accelerators, which may give this one another plan."""
        self._editions[key] += 1

    def edition(self, key: Key) -> int:
        """Return how often it was outdated; to be read before what the next question is made of."""
        return self._editions[key]

    async def ask(
        self, key: Key, td: TurboDeployment, observed: Snapshot, edition: int, now: float
    ) -> Plan | None:
        """Plan for what was observed in this edition; None while the model is unknown."""
        if observed.model is None:
            return None
        return await self.answered(key, build_inputs(td, observed.model.shape, observed), edition, now)

    async def answered(self, key: Key, inputs: PlannerInputs, edition: int, now: float) -> Plan:
        """Plan for inputs that were put together in this edition."""
        cached = self._plans.get(key)
        if (
            cached is not None
            and cached.edition == edition
            and now - cached.time < self._resync_seconds
            and cached.inputs.equals_but_for_counts(inputs)
        ):
            return cached.plan
        plan = await asyncio.get_running_loop().run_in_executor(self._thread, compute_plan, inputs, now)
        self._plans[key] = _CachedPlan(inputs, plan, edition, now)
        return plan

    def forget(self, key: Key) -> None:
        """Forget a TurboDeployment that is gone."""
        self._plans.pop(key, None)
        self._editions.pop(key, None)
