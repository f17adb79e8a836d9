"""Order only: one read phase, one decision, one write phase.

Level-triggered: nothing is remembered between two looks that the cluster does not hold, so a process that
dies anywhere is continued by the next one. Deletion is the garbage collector's work, by owner references.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from turbo_operator import metrics, render, status
from turbo_operator.api import (
    ConditionType,
    InvalidObject,
    TurboDeployment,
    TurboDeploymentStatus,
    parse,
)
from turbo_operator.approval import is_approved
from turbo_operator.controller import deployment_metrics
from turbo_operator.controller.budgets.reservations import Reservations
from turbo_operator.controller.cache.store import Cache, Key
from turbo_operator.controller.child_writer import ChildWriter
from turbo_operator.controller.decision import (
    INSPECTING_SECONDS,
    LIVE_SECONDS,
    Decision,
    decide,
    next_look,
    plan_hash_of,
    restore_history,
)
from turbo_operator.controller.event_recorder import EventRecorder
from turbo_operator.controller.inspections import Inspections
from turbo_operator.controller.kube import (
    GoneError,
    Kube,
    KubeError,
    NotOwnedError,
    OutdatedError,
    RefusedError,
    WebhookError,
)
from turbo_operator.controller.memo import Memo, Memos, Planner
from turbo_operator.controller.pod_labels import restore_labels
from turbo_operator.controller.snapshot_builder import build_snapshot
from turbo_operator.drafts import canary, training
from turbo_operator.inventory.store import InventoryStore
from turbo_operator.plan import Choice, Plan
from turbo_operator.planner import build_inputs, pin, with_measured_load, without_speculation
from turbo_operator.resources import TURBODEPLOYMENT
from turbo_operator.settings import Settings
from turbo_operator.snapshot import Snapshot
from turbo_operator.status import is_saving_asked
from turbo_operator.status.recommendation import describe_reference, recommend
from turbo_operator.status.transitions import transitions

NOT_OWNED_SECONDS = (
    3.0  # between two looks while an object of somebody else's is in the way: no watch shows it
)
REFUSED_SECONDS = 30.0  # and while the API server refuses a child, which the spec alone may not mend
OUTDATED_SECONDS = 1.0  # and where what was seen was too old to act on

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Look:
    """The input of one reconcile."""

    key: Key
    body: Mapping[str, Any]
    td: TurboDeployment
    memo: Memo
    edition: int  # of the memo, before the rest was read
    observed: Snapshot
    now: float  # seconds since the epoch

    @property
    def last_refusal(self) -> RefusedError | None:
        """What the last look at this spec was refused: it stands until it is tried again."""
        generation, refusal = self.memo.refusal
        return refusal if generation == self.td.metadata.generation else None

    def status(self, decision: Decision, refusal: RefusedError | None) -> TurboDeploymentStatus:
        """Compute the status that tells of a decision, and of what the API server has refused."""
        why, passes = (refusal.sentence, not refusal.is_final) if refusal else (None, False)
        memo, seen = self.memo, (self.td, self.observed, decision, self.now)
        undrafted = memo.undrafted_plan.plan if memo.undrafted_plan is not None else None
        return status.compute(
            *seen,
            why,
            passes=passes,
            tracker=memo.targets,
            undrafted=undrafted,
            rate_changed=memo.rate_changed,
        )


@dataclass(eq=False)
class Reconciler:
    """Brings one TurboDeployment at a time to what its spec says. `clock` gives seconds since the epoch."""

    cache: Cache
    inventory: InventoryStore
    api: Kube
    settings: Settings
    clock: Callable[[], float]
    reservations: Reservations
    inspections: Inspections = field(default_factory=lambda: Inspections(lambda _: None))
    _memos: Memos = field(default_factory=Memos)

    def __post_init__(self) -> None:
        self._planner = Planner(self.settings.resync_seconds)
        self.events = EventRecorder(self.api)

    def plans_of(self, key: Key) -> list[Plan]:
        """Return what another count of the cluster may outdate: the plan, and that of a waiting training."""
        memo = self._memos.get(key)
        cached = memo.plans if memo else ()
        return [each.plan for each in cached if each]

    def outdate(self, key: Key) -> None:
        """Record that the cluster has another count of accelerators, which may give this one another plan."""
        if key in self._memos:
            self._memos[key].edition += 1

    async def reconcile(self, key: Key) -> float | None:
        """Reconcile once; the seconds until the next look. Raises KubeError for what only time can mend."""
        body = self.cache.deployments.get(key)
        if body is None or "deletionTimestamp" in body["metadata"]:
            self._memos.pop(key, None)
            self.inspections.forget(key)
            deployment_metrics.forget(key)
            # A pod whose node is lost is given up at a time of which no event tells.
            return LIVE_SECONDS if self.reservations.enter_held(key, self.clock()) else None
        start, result = time.monotonic(), "failed"
        try:
            seconds = await self._reconcile(key, body)
            result = "done"
        except _DeletedError:  # meanwhile: its event is on its way
            seconds, result = None, "done"
        finally:
            metrics.RECONCILE_SECONDS.labels(result).observe(time.monotonic() - start)
        return seconds

    async def _reconcile(self, key: Key, body: Mapping[str, Any]) -> float:
        resync = self.settings.resync_seconds
        try:
            td = parse(body)
        except InvalidObject as error:
            deployment_metrics.forget(key)  # nothing is looked at that they could follow
            self.inspections.forget(key)
            self.reservations.enter_held(key, self.clock())
            await self._write_status(key, body, status.invalid(body, str(error), self.clock()))
            return resync
        # Read
        memo = self._memos.of(key, td.metadata.uid)
        writer = ChildWriter(key, td, self.cache, self.api, memo.noop_applies)
        await writer.restore_variants()
        now, edition = self.clock(), memo.edition
        observed = self._observe(key, td, now)
        look = _Look(key, body, td, memo, edition, observed, now)
        if td.spec.plan_policy.recommends:
            return await self._recommend(look, writer)
        # Decide
        last = memo.plans
        best = await self._plan(look)
        plan = await self._plan_in_force(look, best)
        await self._plan_undrafted(look, plan)
        choice = plan.served if plan is not None else None
        trial = await self._plan_trial(look, choice)
        tried = canary.update_canary(td, observed, choice, memo.speedups, now, trial)
        await self._plan_training(replace(look, observed=canary.add_verdict(observed, *tried)), plan)
        if any(one is not other for one, other in zip(memo.plans, last, strict=True)):
            # The planner was waited for: what pods and spec were before it is nothing to lower a replica by.
            if self.cache.deployments.get(key) is not body:
                return 0.0
            now = self.clock()
            observed = self._observe(key, td, now)
            tried = canary.update_canary(td, observed, choice, memo.speedups, now, trial)
        speedups, verdict = tried
        observed = canary.add_verdict(observed, speedups, verdict)
        writer.seen_time = time.monotonic() - (self.clock() - now)
        # From here to the entry nothing is awaited: what is left of a budget is not another's meanwhile.
        observed = replace(observed, allowance=self.reservations.allowance(key, td.metadata.uid, now))
        look = replace(look, observed=observed, now=now)
        question = memo.training_plan.plan if memo.training_plan is not None else None
        step = training.decide(td, observed, plan, question, now)
        history = memo.history or restore_history(td.status.scale_history)
        run, settings = speedups.run, self.settings
        decision = decide(td, observed, settings, now, plan, history, memo.online, step, run, verdict, best)
        self.reservations.enter(key, decision.entry, now)
        memo.history, memo.online = decision.scale.history, decision.online
        memo.targets = memo.targets.update(td.spec.targets, observed.pods, now)
        # Write
        if verdict is None or not verdict.is_over:  # else it is forgotten once the status tells of it
            memo.speedups = speedups
        if await self._write_status_first(look, decision, writer.refusal):
            memo.speedups = speedups
            return 0.0
        return await self._write(look, decision, writer)

    def _observe(self, key: Key, td: TurboDeployment, now: float) -> Snapshot:
        allowance = self.reservations.allowance(key, td.metadata.uid, now)
        observed = build_snapshot(self.cache, self.inventory, key, td, now)
        observed = self.inspections.share(key, td, observed, self.settings, now)
        return replace(observed, allowance=allowance)

    async def _plan(self, look: _Look) -> Plan | None:
        """Plan for what was observed; None while the model is unknown."""
        if look.observed.model is None:
            return None
        inputs = build_inputs(look.td, look.observed.model.shape, look.observed)
        look.memo.plan = await self._planner.plan(look.memo.plan, inputs, look.edition, look.now)
        return look.memo.plan.plan

    async def _recommend(self, look: _Look, writer: ChildWriter) -> float:
        """Recommend a plan for what a Deployment does: of its own there is no more than the model's facts."""
        td, observed, memo, seen = look.td, look.observed, look.memo, self.cache.references.get(look.key)
        self.reservations.enter_held(look.key, look.now)
        reference = describe_reference(td, seen, observed)
        td = td.model_copy(update={"status": td.status.model_copy(update={"reference": reference})})
        look, best = replace(look, td=td), None
        if with_measured_load(td).has_load and not td.spec.suspend:
            best = await self._plan(look)
            await self._plan_undrafted(look, best, is_recommended=True)
        undrafted = memo.undrafted_plan.plan if memo.undrafted_plan is not None else None
        failure: KubeError | None = None
        manifests = [] if td.spec.suspend else render.inspection(td, observed, self.settings)
        try:
            await writer.write_children(manifests)
            await writer.prune(manifests, set())
        except RefusedError as error:
            writer.refusals.setdefault(("", ""), error)
        except KubeError as error:
            failure = error
        refusal = writer.refusal
        if refusal is not None:
            self.inspections.fail(look.key)
        why, passes = (refusal.sentence, not refusal.is_final) if refusal else (None, False)
        plans = best, plan_hash_of(td, observed, best), undrafted
        new = recommend(td, seen, observed, *plans, look.now, why, passes=passes)
        await self._write_status(look.key, look.body, new)
        if failure is not None:
            raise failure
        return INSPECTING_SECONDS if observed.model is None else LIVE_SECONDS

    async def _plan_undrafted(self, look: _Look, plan: Plan | None, *, is_recommended: bool = False) -> None:
        """Plan the same targets without speculation, where a plan saves by that what is known."""
        memo, last = look.memo, look.td.status.observed
        is_measured = is_recommended or (last is not None and last.speedup is not None)
        if memo.plan is None or not is_measured or not is_saving_asked(look.td, plan):
            memo.undrafted_plan = None
            return
        inputs = without_speculation(memo.plan.inputs)
        memo.undrafted_plan = await self._planner.plan(memo.undrafted_plan, inputs, look.edition, look.now)

    async def _plan_in_force(self, look: _Look, best: Plan | None) -> Plan | None:
        """Return the best plan, or while it waits for approval that of what runs, where that still does."""
        memo, observed = look.memo, look.observed
        plan_hash = plan_hash_of(look.td, observed, best)
        pinned = None
        if memo.plan is not None and plan_hash is not None and not is_approved(look.td, plan_hash):
            pinned = pin(memo.plan.inputs)
        if pinned is None:
            memo.pinned_plan = None
            return best
        memo.pinned_plan = await self._planner.plan(memo.pinned_plan, pinned, look.edition, look.now)
        plan = memo.pinned_plan.plan
        return best if plan.served is None else plan

    async def _plan_trial(self, look: _Look, choice: Choice | None) -> Plan | None:
        """Plan the pods that try a draft, where they load it as they start."""
        inputs, memo = canary.trial(look.td, look.observed, choice), look.memo
        if inputs is None:
            memo.trial_plan = None
            return None
        memo.trial_plan = await self._planner.plan(memo.trial_plan, inputs, look.edition, look.now)
        return memo.trial_plan.plan

    async def _plan_training(self, look: _Look, plan: Plan | None) -> None:
        """Plan the training of a draft, where one is due."""
        td, observed, memo = look.td, look.observed, look.memo
        query = training.decide(td, observed, plan, None, look.now).query
        if query is None or observed.model is None:
            memo.training_plan = None
            return
        inputs = training.question(td, observed, observed.model.shape, query)
        memo.training_plan = await self._planner.plan(memo.training_plan, inputs, look.edition, look.now)

    async def _write_status_first(
        self, look: _Look, decision: Decision, refusal: RefusedError | None
    ) -> bool:
        """Write the status where it has to be there before children change; whether it was written.

        What is made of the decision waits for the next look then. Who dies in between goes on from the
        verdict on a draft, from why a plan was given up, before the pods that say so are gone, and from what
        a training may cost, before it runs. A new plan is announced once: its children are made at the end of
        the queue, so that of a thousand objects each is told its plan before the first has all its children.
        Where only that cannot be written, serving does not wait for it: the look that goes on writes it last,
        and raises.
        """
        verdict, last = decision.verdict, look.td.status
        is_required = (
            (verdict is not None and verdict.is_over)
            or (decision.rollout.rolled_back and decision.rollout.status != last.rollout)
            or (decision.training_job is not None and decision.step.state != last.training)
        )
        is_new = decision.plan_hash not in (None, last.plan.hash if last.plan else None, look.memo.announced)
        if not is_required and not is_new:
            return False
        if is_new:
            look.memo.announced = decision.plan_hash
        try:
            refusal = refusal or look.last_refusal
            await self._write_status(look.key, look.body, look.status(decision, refusal))
        except KubeError as error:
            if is_required:
                raise
            log.warning("the plan could not be announced: %s", error, extra={"object": str(look.key)})
            return False
        return True

    async def _write(self, look: _Look, decision: Decision, writer: ChildWriter) -> float:
        """Write what was decided; the seconds until the next look. Raises what only time can mend."""
        seconds = [self.settings.resync_seconds]
        failure: KubeError | None = None
        untried: RefusedError | None = None  # where not everything was written
        try:
            ends = decision.scale.replicas == 0
            await writer.write_children(decision.children, decision.rollout.serving, ends=ends)
            manifests = (*decision.children, *decision.canary_children)
            await writer.prune(manifests, {*decision.kept, decision.step.kept_job or ""})
            decision = await writer.write_canary(decision)
            decision = await writer.write_training(decision)
        except RefusedError as error:  # to look for what has a name of ours
            writer.refusals.setdefault(("", ""), error)
        except OutdatedError as error:  # no failure: what was written counts
            waits = decision.rollout.waits or error.message
            rollout = replace(decision.rollout, waits=waits, is_outdated=waits == error.message)
            decision = replace(decision, rollout=rollout)
            seconds.append(OUTDATED_SECONDS)
            untried = look.last_refusal
        except KubeError as error:  # a matter of time: the status is written all the same
            failure, untried = error, look.last_refusal
            self.reservations.doubt(look.key, look.now)
        place, attempts = (look.key, look.td.metadata.uid), look.memo.relabels
        try:  # whatever has failed; last, since a slow webhook on pods would make old what was seen
            seconds.append(await restore_labels(self.api, self.cache, *place, attempts, writer.refusals))
        except KubeError as error:
            failure = failure or error
        # What is refused is a matter for the user: shown, and tried again now and then; the rest goes on.
        if (refusal := writer.refusal or untried) is not None:
            log.warning("refused: %s", refusal.message, extra={"object": str(look.key)})
            self.inspections.fail(look.key)
        look.memo.refusal = look.td.metadata.generation, refusal
        new = look.status(decision, refusal)
        deployment_metrics.show(look.key, look.observed, decision.plan, decision.scale, look.now)
        deployment_metrics.show_startup(look.key, new.startup)
        deployment_metrics.show_training(look.key, new.training, look.observed.trainings)
        await self._write_status(look.key, look.body, new)
        if failure is not None:
            raise failure
        if refusal is not None:
            is_soon = isinstance(refusal, (NotOwnedError, WebhookError))
            seconds.append(NOT_OWNED_SECONDS if is_soon else REFUSED_SECONDS)
        return min(
            *seconds, next_look(look.td, look.observed, decision, look.now, self.settings.scrape_seconds)
        )

    async def _write_status(self, key: Key, body: Mapping[str, Any], new: TurboDeploymentStatus) -> None:
        deployment_metrics.show_conditions(key, new.conditions)
        document = new.dump()
        if document == body.get("status"):
            return
        identity = {"name": key.name, "namespace": key.namespace, "uid": body["metadata"]["uid"]}
        wanted = {"metadata": identity, "status": document}
        try:
            self.cache.put_deployment(await self.api.apply_status(TURBODEPLOYMENT, wanted))
        except GoneError as error:
            raise _DeletedError(key) from error
        old = body.get("status") or {}
        memo = self._memos.of(key, identity["uid"])
        memo.follow_rate(old, document, self.clock())
        self.events.record(body, transitions(old, document), memo.events, self.clock())
        deployment_metrics.count_training(key, old.get("training"), new.training)
        ready = new.condition(ConditionType.READY)
        if ready is not None:
            details = {"ready": ready.status, "reason": ready.reason, "why": ready.message}
            log.info("status", extra={"object": str(key), **details})


class _DeletedError(Exception):
    """The TurboDeployment is gone, says the API server."""
