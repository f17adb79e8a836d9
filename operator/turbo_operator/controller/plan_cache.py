"""Asks the planner, in a thread of its own, and remembers its answers: the same question is answered once.

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
from turbo_operator.planner.inputs import PlannerInputs, build_inputs, compute_plan
from turbo_operator.snapshot import Snapshot


@dataclass(frozen=True, slots=True)
class _Answered:
    asked: PlannerInputs
    plan: Plan
    edition: int
    at: float  # seconds since the epoch


class PlanCache:
    """The last plan of each TurboDeployment. An answer is asked for anew after `resync_seconds`."""

    def __init__(self, resync_seconds: float) -> None:
        self._resync_seconds = resync_seconds
        self._answers: dict[Key, _Answered] = {}
        self._editions: Counter[Key] = Counter()
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="planner")

    def last(self, key: Key) -> Plan | None:
        """The last answer; None before the first."""
        answered = self._answers.get(key)
        return None if answered is None else answered.plan

    def outdate(self, key: Key) -> None:
        """The cluster has another count of accelerators, which may give this one another plan."""
        self._editions[key] += 1

    def edition(self, key: Key) -> int:
        """How often it was outdated; to be read before what the next question is made of."""
        return self._editions[key]

    async def ask(
        self, key: Key, td: TurboDeployment, observed: Snapshot, edition: int, now: float
    ) -> Plan | None:
        """The plan for what was observed in this edition; None while the model is unknown."""
        if observed.model is None:
            return None
        return await self.answered(key, build_inputs(td, observed.model.shape, observed), edition, now)

    async def answered(self, key: Key, question: PlannerInputs, edition: int, now: float) -> Plan:
        """The plan for a question that was put together in this edition."""
        before = self._answers.get(key)
        if (
            before is not None
            and before.edition == edition
            and now - before.at < self._resync_seconds
            and before.asked.equals_but_for_counts(question)
        ):
            return before.plan
        plan = await asyncio.get_running_loop().run_in_executor(self._thread, compute_plan, question, now)
        self._answers[key] = _Answered(question, plan, edition, now)
        return plan

    def forget(self, key: Key) -> None:
        """The TurboDeployment is gone."""
        self._answers.pop(key, None)
        self._editions.pop(key, None)
