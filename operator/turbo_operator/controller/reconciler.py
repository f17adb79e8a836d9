"""Order only: observe -> plan -> gains, canary -> training -> scale -> rollout -> render -> apply -> status.

One read phase, one decision, one write phase. Level-triggered: nothing is remembered between two looks that
the cluster does not hold, so a process that dies anywhere is continued by the next one. Deletion is the
garbage collector's work, by owner references.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from typing import Any

from turbo_operator import metrics, status
from turbo_operator.api import (
    API_VERSION,
    TURBODEPLOYMENT,
    ConditionType,
    InvalidObject,
    ScalingPolicy,
    TurboDeployment,
    TurboDeploymentStatus,
    parse,
)
from turbo_operator.controller import deployment_metrics, revisions
from turbo_operator.controller.cache.store import Cache, Key
from turbo_operator.controller.child_writer import ChildWriter
from turbo_operator.controller.decision import Decision, decide, restored, status_of
from turbo_operator.controller.kube import GoneError, Kube, KubeError, RefusedError, StrangerError
from turbo_operator.controller.memo import Memories
from turbo_operator.controller.plan_cache import PlanCache
from turbo_operator.controller.snapshot_builder import build_snapshot
from turbo_operator.drafts import canary, training
from turbo_operator.inventory.store import InventoryStore
from turbo_operator.inventory.unavailable import next_look
from turbo_operator.plan import Plan
from turbo_operator.resources import TURBODEPLOYMENT as DEPLOYMENTS
from turbo_operator.rollout import seconds_left
from turbo_operator.settings import Settings
from turbo_operator.snapshot import Snapshot

# While the model is unknown, the next look: that a Job makes no pod is an event that never comes.
INSPECTING_SECONDS = 10.0
LIVE_SECONDS = 60.0  # between two looks at what is measured and paid
ROLLOUT_SECONDS = 10.0  # and at a rollout: that there is room again is no event of its own
STRANGER_SECONDS = 3.0  # and while an object of somebody else's is in the way: no watch shows it
REFUSED_SECONDS = 30.0  # and while the API server refuses a child, which the spec alone may not mend

log = logging.getLogger(__name__)


class Reconciler:
    """Brings one TurboDeployment at a time to what it asks for. `clock` gives seconds since the epoch."""

    def __init__(
        self, cache: Cache, ledger: InventoryStore, api: Kube, settings: Settings, clock: Callable[[], float]
    ) -> None:
        self._cache = cache
        self._ledger = ledger
        self._api = api
        self._settings = settings
        self._clock = clock
        self.plans = PlanCache(settings.resync_seconds)
        self._rooms = PlanCache(settings.resync_seconds)  # for trainings
        self._memories = Memories()
        self._writer = ChildWriter(cache, api, self._memories)

    def answers(self, key: Key) -> list[Plan]:
        """What another count of the cluster may outdate: the plan, and what a waiting training was told."""
        return [plan for plans in (self.plans, self._rooms) if (plan := plans.last(key)) is not None]

    async def reconcile(self, key: Key) -> float | None:
        """One look; the seconds until the next. Raises KubeError for what only time can mend."""
        body = self._cache.deployment(key)
        if body is None or "deletionTimestamp" in body["metadata"]:
            self.plans.forget(key)
            self._rooms.forget(key)
            self._memories.forget(key)
            deployment_metrics.forget(key)
            return None
        start, result = time.monotonic(), "failed"
        try:
            next_look = await self._look(key, body)
            result = "done"
        except _DeletedError:  # meanwhile: its event is on its way
            next_look, result = None, "done"
        finally:
            metrics.RECONCILE_SECONDS.labels(result).observe(time.monotonic() - start)
        return next_look

    async def _look(self, key: Key, body: Mapping[str, Any]) -> float:
        resync = self._settings.resync_seconds
        try:
            td = parse(body)
        except InvalidObject as error:
            deployment_metrics.forget(key)  # nothing is looked at that they could follow
            await self._write_status(key, body, status.invalid(body, str(error), self._clock()))
            return resync
        refused = await revisions.restore(self._api, self._cache, key, td)
        why = refused.sentence if refused else None
        now = self._clock()
        edition = self.plans.edition(key)
        observed = build_snapshot(self._cache, self._ledger, key, td, now)
        plan = await self.plans.ask(key, td, observed, edition, now)
        memory = self._memories.of(key, td.metadata.uid)
        gains, judgement = canary.update_canary(
            td, observed, plan.served if plan else None, memory.gains, now
        )
        observed = canary.with_judged(observed, gains, judgement)
        step = await self._training(key, td, observed, plan, edition, now)
        history = memory.history or restored(td.status.scale_history)
        decision = decide(
            td, observed, self._settings, now, plan, history, memory.online, step, gains.trial, judgement
        )
        memory.history, memory.online = decision.scale.history, decision.online
        if judgement is not None and judgement.over:
            # told before pods are changed: who dies in between goes on from there
            await self._write_status(key, body, status_of(td, observed, decision, now, why))
            memory.gains = gains
            return 0.0
        memory.gains = gains
        if await self._announce(key, body, td, observed, decision, now, why):
            return 0.0
        if decision.takeover.rolled_back and decision.takeover.rollout != td.status.rollout:
            # why is written down before the pods that say so are gone
            await self._write_status(key, body, status_of(td, observed, decision, now, why))
            return 0.0
        if decision.training_job is not None:  # what it may cost is written down before it runs
            new = status_of(td, observed, decision, now, why)
            if new.training != td.status.training:
                await self._write_status(key, body, new)
                return 0.0
        return min(resync, await self._bring_about(key, body, td, observed, decision, now, refused))

    async def _training(
        self,
        key: Key,
        td: TurboDeployment,
        observed: Snapshot,
        plan: Plan | None,
        edition: int,
        now: float,
    ) -> training.TrainingDecision:
        """What the training of a draft comes to; only one that is due asks the planner."""
        step = training.decide(td, observed, plan, None, now)
        if step.asks is None or observed.model is None:
            self._rooms.forget(key)
            return step
        question = training.question(td, observed, observed.model.shape, step.asks)
        answer = await self._rooms.answered(key, question, edition, now)
        return training.decide(td, observed, plan, answer, now)

    async def _announce(
        self,
        key: Key,
        body: Mapping[str, Any],
        td: TurboDeployment,
        observed: Snapshot,
        decision: Decision,
        now: float,
        why: str | None,
    ) -> bool:
        """Write a new plan to the status before anything is made of it; whether that was to be done.

        What is made of it waits for the next look, at the end of the queue: of a thousand objects each is
        told its plan before the first has all its children. Where the status cannot be written, serving
        does not wait for it: the look that goes on writes it last, and raises.
        """
        told = td.status.plan.hash if td.status.plan else None
        memory = self._memories.of(key, td.metadata.uid)
        if decision.plan_hash in (None, told, memory.announced):
            return False
        memory.announced = decision.plan_hash
        new = status_of(td, observed, decision, now, why)
        try:
            await self._write_status(key, body, new)
        except KubeError as error:
            log.warning("the plan could not be announced: %s", error, extra={"object": str(key)})
            return False
        return True

    def _next_look(self, td: TurboDeployment, observed: Snapshot, decision: Decision, now: float) -> float:
        """Seconds until something may be different that no event tells of."""
        if observed.model is None:
            return INSPECTING_SECONDS
        deadline = td.spec.rollout.progress_deadline_seconds
        left = seconds_left(decision.takeover.rollout, now, deadline)
        looks = [LIVE_SECONDS, *(due for due in (next_look(td, observed.pods, now), left) if due is not None)]
        rollout = decision.takeover.rollout
        if decision.takeover.waits is not None or (rollout is not None and rollout.reason is None):
            looks.append(ROLLOUT_SECONDS)
        # loads grow old, and windows pass
        if td.spec.scaling_policy == ScalingPolicy.METRICS or decision.trial is not None:
            looks.append(self._settings.scrape_seconds)
        return min(looks)

    async def _bring_about(
        self,
        key: Key,
        body: Mapping[str, Any],
        td: TurboDeployment,
        observed: Snapshot,
        decision: Decision,
        now: float,
        refused: RefusedError | None,
    ) -> float:
        """Write what was decided; the seconds until the next look. Raises what only time can mend.

        `refused` is what the API server has refused before.
        """
        broken: KubeError | None = None
        try:
            await self._writer.write_children(key, td, decision.children)
            decision = await self._writer.write_trial(key, td, decision)
            wanted = (*decision.children, *decision.trial_children)
            await self._writer.prune(key, td, wanted, {*decision.kept, decision.step.keep or ""})
            decision = await self._writer.write_training(key, td, decision)
        except RefusedError as error:  # a matter for the user: shown, and tried again now and then
            refused = error
        except KubeError as error:  # a matter of time: the status is written all the same
            broken = error
        if refused is not None:
            log.warning("refused: %s", refused.message, extra={"object": str(key)})
        new = status_of(td, observed, decision, now, refused.sentence if refused else None)
        deployment_metrics.show(key, observed, decision.plan, decision.scale, now)
        deployment_metrics.show_training(key, new.training, observed.trainings)
        await self._write_status(key, body, new)
        if broken is not None:
            raise broken
        if refused is not None:
            again = STRANGER_SECONDS if isinstance(refused, StrangerError) else REFUSED_SECONDS
            return min(again, self._next_look(td, observed, decision, now))
        return self._next_look(td, observed, decision, now)

    async def _write_status(self, key: Key, body: Mapping[str, Any], new: TurboDeploymentStatus) -> None:
        document = new.dump()
        if document == body.get("status"):
            return
        identity = {"name": key.name, "namespace": key.namespace, "uid": body["metadata"]["uid"]}
        wanted = {
            "apiVersion": API_VERSION,
            "kind": TURBODEPLOYMENT,
            "metadata": identity,
            "status": document,
        }
        try:
            self._cache.put_deployment(await self._api.apply_status(DEPLOYMENTS, wanted))
        except GoneError as error:
            raise _DeletedError(key) from error
        deployment_metrics.count_training(key, (body.get("status") or {}).get("training"), new.training)
        ready = new.condition(ConditionType.READY)
        if ready is not None:
            said = {"ready": ready.status, "reason": ready.reason, "why": ready.message}
            log.info("status", extra={"object": str(key), **said})


class _DeletedError(Exception):
    """The TurboDeployment is gone, says the API server."""
