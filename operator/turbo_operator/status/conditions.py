"""The outcome of a reconcile, and the conditions that are computed from it. Pure.

Reconciling and Stalled are those of kstatus:
https://github.com/kubernetes-sigs/cli-utils/blob/master/pkg/kstatus/README.md
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from turbo_operator import api
from turbo_operator.api.condition_state import ConditionState, false, sentence, true, unknown
from turbo_operator.approval import NO_APPROVAL, Approval
from turbo_operator.autoscaler import ScalingDecision
from turbo_operator.drafts.canary import CanaryVerdict
from turbo_operator.drafts.training import NO_TRAINING, TrainingDecision
from turbo_operator.plan import Plan
from turbo_operator.planner import money
from turbo_operator.render import job_name, router, url
from turbo_operator.resources import WORKLOADS
from turbo_operator.snapshot import ENDED_PHASES, PodView, Snapshot
from turbo_operator.status.failures import (
    dropped_volume,
    first_failing,
    kept_by_finalizer,
)
from turbo_operator.status.fields import cost_per_hour
from turbo_operator.status.gateway import pool_accepted
from turbo_operator.status.inspection import model_inspected
from turbo_operator.status.model_cache import NO_CACHE, ModelCache
from turbo_operator.status.rollout_state import NO_ROLLOUT, RolloutState

NOT_FOLLOWED = "is not followed: that takes scaling.mode External."


def in_force(td: api.TurboDeployment, scale: ScalingDecision, plan_hash: str | None) -> ScalingDecision:
    """Return what pods are measured against: the spec, or while it has no plan the last feasible one.

    A suspension is no such plan.
    """
    last = td.status.serving_plan or td.status.plan
    if plan_hash is None and last is not None and last.hash and last.replicas is not None:
        wanted = td.status.desired_replicas or last.replicas
        return dataclasses.replace(scale, replicas=min(scale.replicas, wanted))
    return scale


@dataclass(frozen=True, slots=True)
class Outcome:
    """Everything that was decided, apart from the children."""

    scale: ScalingDecision
    plan: Plan | None = None  # None until the model is known
    plan_hash: str | None = None  # None while no plan is feasible
    rollout: RolloutState = NO_ROLLOUT  # how far the plan is in taking over from the one before
    calibrations: tuple[api.Calibrated, ...] = ()  # what pods have reported of their speed
    verdict: CanaryVerdict | None = None  # on the draft that is tried
    step: TrainingDecision = NO_TRAINING  # on the training of a draft
    routing_lack: str | None = None  # what is missing for the routing that is asked for, as a sentence
    inspects_anew: bool = False  # the inspect Job that is seen is of another spec, and goes
    cache: ModelCache = NO_CACHE  # the copy of the model on a claim
    awaited: ConditionState | None = None  # what there must be before a pod of the plan starts
    approval: Approval = NO_APPROVAL  # of the planner's plan
    best: Plan | None = None  # that plan, where it is not the one in force


class Conditions:
    """Computes the conditions of a TurboDeployment; the outcome's scale is the one in force."""

    def __init__(
        self,
        td: api.TurboDeployment,
        observed: Snapshot,
        outcome: Outcome,
        now: float,
        refused: str | None,
        passes: bool,
    ) -> None:
        self._td, self._outcome, self._now, self._refused = td, outcome, now, refused
        self._passes, self._awaited = passes, outcome.awaited
        if outcome.inspects_anew:
            others = tuple(child for child in observed.children if child.name != job_name(td))
            observed = dataclasses.replace(observed, children=others, model_error=None, inspecting=())
        self._observed = observed
        self._scale, self._plan_hash, self._rollout = outcome.scale, outcome.plan_hash, outcome.rollout
        self._target = outcome.plan_hash or outcome.rollout.target
        canary = outcome.verdict.variant if outcome.verdict is not None else None
        self._serving = [pod for pod in observed.pods if pod.is_serving]
        self._current = [
            pod for pod in self._serving if self._target is None or pod.plan_hash in (self._target, canary)
        ]

    def states(self) -> dict[api.ConditionType, ConditionState]:
        """Return all of them by type."""
        states = {
            api.ConditionType.READY: self._ready,
            api.ConditionType.PLAN_FEASIBLE: self.feasible,
            api.ConditionType.PLAN_APPROVED: self._outcome.approval.condition,
            api.ConditionType.MODEL_INSPECTED: self.inspected,
            api.ConditionType.MODEL_CACHED: self._outcome.cache.condition,
            api.ConditionType.AVAILABLE: self._available,
            api.ConditionType.POOL_ACCEPTED: pool_accepted(self._td, self._observed),
            api.ConditionType.WITHIN_BUDGET: self._within_budget(),
            api.ConditionType.SCALING_ACTIVE: self._scaling(),
            api.ConditionType.RECONCILING: self._reconciling(),
            api.ConditionType.STALLED: self.stalled,
        }
        return {kind: state for kind, state in states.items() if state is not None}

    @cached_property
    def inspected(self) -> ConditionState:
        """Whether the model is known."""
        return model_inspected(self._td, self._observed)

    @cached_property
    def feasible(self) -> ConditionState:
        """Whether there is a plan."""
        plan = self._outcome.plan
        if plan is None:
            return unknown(api.PlanReason.MODEL_UNKNOWN, "It is planned once the model is inspected.")
        return ConditionState("False" if plan.choice is None else "True", plan.reason, plan.detail)

    @cached_property
    def _available(self) -> ConditionState:
        """Whether enough pods answer, of whichever variant: all but the one that a node's drain may take."""
        scale, current = self._scale, self._current
        if scale.reason == api.ScalingReason.SUSPENDED:
            message, present = scale.detail, sum(pod.is_present for pod in self._observed.pods)
            if present:
                message += f" {'1 pod has' if present == 1 else f'{present} pods have'} yet to end."
            return false(api.AvailableReason.SUSPENDED, message)
        ready = min(sum(pod.ready for pod in self._serving), scale.replicas)
        answering = f"{ready} of {scale.replicas} replicas answer."
        if ready >= self._minimum:
            return true(api.AvailableReason.MINIMUM_REPLICAS_AVAILABLE, answering + self._missing(ready))
        if self._plan_hash is None and not self._serving:
            return false(api.AvailableReason.NO_PLAN, f"{answering} There is no plan: PlanFeasible says why.")
        if silent := self._silent():
            return false(api.AvailableReason.MODEL_LOADING, f"{answering} {silent}")
        if self._awaited is not None:
            return false(self._awaited.reason, f"{answering} {self._awaited.message}")
        cause = self._held_up(current or self._serving, self._target, ready)
        waits = None if self._rollout.is_outdated else self._rollout.waits
        if waits and cause.reason == api.AvailableReason.MODEL_LOADING and all(pod.ready for pod in current):
            return false(api.AvailableReason.WAITING_FOR_ACCELERATOR, f"{answering} {waits}")
        return cause

    def _silent(self) -> str | None:
        """Say in a sentence which pod of the plan that serves, while another is to take over, is silent."""
        serving = self._rollout.serving
        if serving in (None, self._target):
            return None
        pods = [pod for pod in self._serving if pod.plan_hash == serving and not pod.ready]
        placed = sorted(pod.name for pod in pods if pod.pending_since is None)
        return f"Pod {placed[0]} of plan {serving}, which serves, does not answer." if placed else None

    @property
    def _minimum(self) -> int:
        replicas = self._scale.replicas
        return replicas if replicas <= 1 else replicas - 1

    def _missing(self, ready: int) -> str:
        """Say what holds up those that do not answer yet, after how many do; nothing where all do."""
        if ready >= self._scale.replicas:
            return ""
        failing = first_failing(self._current)
        why = failing.message if failing else self._rollout.waits
        return f" {why}" if why else ""

    def _held_up(self, pods: Sequence[PodView], plan_hash: str | None, ready: int) -> ConditionState:
        """Say what the first failing pod says, else why its ReplicaSet makes none, else that the model loads.

        A pod that has ended is quoted only where there is no other.
        """
        if dropped := dropped_volume(self._observed, plan_hash):
            return false(api.AvailableReason.FAILED_CREATE, dropped)
        if failing := first_failing(pods):
            return failing
        for child in self._observed.children:
            if child.kind not in WORKLOADS or plan_hash not in (None, child.plan_hash):
                continue
            reason, message = api.AvailableReason.FAILED_CREATE, sentence(child.message)
            if kept := kept_by_finalizer(child):
                message = kept
            elif child.terminating:
                name = f"{child.kind} {child.name}"
                message = f"{name} was deleted, and is made again when its pods have ended."
            elif child.is_over_quota:
                reason = api.AvailableReason.QUOTA_EXCEEDED
            if message:
                return false(reason, f"No pod can be made: {message}")
        ended = (pod for pod in self._observed.pods if pod.phase in ENDED_PHASES)
        if not pods and (failed := first_failing(p for p in ended if plan_hash in (None, p.plan_hash))):
            return failed
        answering = f"{ready} of {self._scale.replicas} replicas answer; the others"
        workloads = (child for child in self._observed.children if child.kind in WORKLOADS)
        kept = next(filter(None, map(kept_by_finalizer, workloads)), None)
        if kept and not self._rollout.waits and all(pod.ready for pod in pods):
            return false(api.AvailableReason.WAITING_FOR_ACCELERATOR, f"{answering} wait. {kept}")
        ending = [pod.name for pod in self._observed.pods if pod.terminating and pod.is_present]
        if ending and all(pod.ready for pod in pods):
            message = f"{answering} wait until pod {ending[0]} has ended, whose accelerators they take."
            return false(api.AvailableReason.WAITING_FOR_PODS, message)
        return false(api.AvailableReason.MODEL_LOADING, f"{answering} start or load the model.")

    @cached_property
    def _ready(self) -> ConditionState:
        """Whether what runs serves the spec; else what holds it up first."""
        replicas, plan_hash, rollout = self._scale.replicas, self._plan_hash, self._rollout
        if self._refused:
            return false(api.ReadyReason.APPLY_REJECTED, sentence(self._refused))
        if self._scale.reason == api.ScalingReason.SUSPENDED:
            return false(api.ReadyReason.SUSPENDED, self._available.message)
        if self.inspected.status == "Unknown":  # whether the new spec can be served is not known yet
            return false(self.inspected.reason, self._serves_on + self.inspected.message)
        ready, address = min(sum(pod.ready for pod in self._current), replicas), url(self._td)
        if replicas == 0 and plan_hash is not None:
            if self._scale.reason == api.ScalingReason.IDLE:
                if self._routed is not None:  # nobody would notice a request
                    return self._routed
                return true(api.ReadyReason.SCALED_TO_ZERO, self._scale.detail)
            message = f"Nothing answers at {address}: 0 replicas are asked for, and the plan is feasible."
            if rollout.rolled_back:
                message = f"Nothing answers at {address}: 0 replicas are asked for. Plan {plan_hash} was "
                message += f"rolled back: with replicas, plan {rollout.serving} serves."
            return true(api.ReadyReason.SCALED_TO_ZERO, message)
        if rollout.rolled_back:
            return false(api.ReadyReason.ROLLED_BACK, self.stalled.message)
        if plan_hash is None:
            cause = self.inspected if self.inspected.status != "True" else self.feasible
            return false(cause.reason, self._serves_on + cause.message)
        if self._awaited is not None:
            return false(self._awaited.reason, self._serves_on + self._awaited.message)
        if self._available.status != "True":
            return false(self._available.reason, self._available.message)
        if self.stalled.status == "True":
            return false(self.stalled.reason, self._serves_on + self.stalled.message)
        takes_over = rollout.status is not None
        if self._routed is not None:
            return dataclasses.replace(self._routed, message=self._serves_on + self._routed.message)
        if ready >= self._minimum and not takes_over:
            message = f"{ready} of {replicas} replicas serve {self._td.served_name} at {address}."
            return true(api.ReadyReason.SERVING, message + self._missing(ready))
        # the old variant answers while the new one comes up
        if progress := rollout.step or (rollout.is_outdated and rollout.waits):
            return false(api.ReconcilingReason.PROGRESSING, self._serves_on + progress)
        if rollout.waits:
            return false(api.AvailableReason.WAITING_FOR_ACCELERATOR, self._serves_on + rollout.waits)
        if ready >= replicas:
            seconds = self._td.spec.rollout.min_ready_seconds
            whose = " of the new plan" if self._serves_on else ""
            since = f"but not for {seconds} s yet" if seconds else "and have yet to be counted"
            message = f"{ready} of {replicas} replicas{whose} answer, {since}."
            return false(api.ReconcilingReason.PROGRESSING, self._serves_on + message)
        cause = self._held_up(self._current, plan_hash, ready)
        whose = "Of the new plan: " if self._serves_on else ""
        return false(cause.reason, f"{self._serves_on}{whose}{cause.message}")

    @cached_property
    def _routed(self) -> ConditionState | None:
        """Why requests do not take the way that is asked for; None where they do, or may."""
        if self._outcome.routing_lack is not None:
            return false(api.ReadyReason.USER_ACTION_REQUIRED, self._outcome.routing_lack)
        if self._td.spec.routing != api.Routing.ROUTER or router.answers(self._td, self._observed.children):
            return None
        starts = "The router starts. Until it answers, requests reach the pods without it."
        return first_failing(self._observed.routers) or false(api.ReconcilingReason.PROGRESSING, starts)

    @property
    def _serves_on(self) -> str:
        """Say that pods of another plan than that of the spec answer, where some do."""
        verdict = self._outcome.verdict
        own = {self._plan_hash, verdict.variant if verdict is not None else None}
        answers = any(pod.ready and pod.plan_hash not in own for pod in self._serving)
        return "The earlier plan serves on. " if answers else ""

    def _scaling(self) -> ConditionState:
        spec, message = self._td.spec, self._scale.detail
        # as a HorizontalPodAutoscaler says it
        idle = self._scale.reason in (api.ScalingReason.SUSPENDED, api.ScalingReason.METRICS_UNAVAILABLE)
        if spec.scaling_mode != api.ScalingMode.EXTERNAL and spec.replicas != 1 and not spec.suspend:
            message += f" spec.replicas of {spec.replicas} {NOT_FOLLOWED}"
        return ConditionState("False" if idle else "True", self._scale.reason, message)

    def _within_budget(self) -> ConditionState:
        """Whether what runs now costs no more than spec.cost.maxPerHour and TurboBudgets allow."""
        allowance = self._observed.allowance
        if (broken := allowance.broken) is not None:
            reason, clause = broken
            state = false if reason == api.WithinBudgetReason.BUDGET_EXCEEDED else unknown
            return state(reason, f"{clause}: nothing more starts in the namespace.")
        ceiling = self._td.spec.cost.max_per_hour if self._td.spec.cost else None
        if ceiling is None:
            if allowance.budgets:
                return true(api.WithinBudgetReason.WITHIN_BUDGET, "It is within each TurboBudget.")
            return true(api.WithinBudgetReason.NO_BUDGET, "spec.cost.maxPerHour sets no ceiling.")
        cost = cost_per_hour(self._observed)
        if cost is None:
            message = "What runs has no price: write spec.pricing.perAcceleratorHour on its TurboAccelerator."
            return unknown(api.WithinBudgetReason.PRICE_UNKNOWN, message)
        message = f"What runs costs {money(cost)} $/h, and spec.cost.maxPerHour is {money(ceiling)}."
        if cost <= ceiling:
            return true(api.WithinBudgetReason.WITHIN_BUDGET, message)
        return false(api.WithinBudgetReason.BUDGET_EXCEEDED, message)

    @cached_property
    def stalled(self) -> ConditionState:
        """Whether nothing will get better unless somebody changes something."""
        rollout = self._rollout
        if self._refused and not self._passes:
            return true(api.StalledReason.USER_ACTION_REQUIRED, sentence(self._refused))
        for reason in api.RolloutReason:
            if self._scale.replicas and rollout.is_over(reason):
                return true(api.StalledReason(reason), rollout.describe_failure(self._td, self._serving))
        for cause in (self.inspected, self.feasible):
            # but for capacity: nodes come, and pods go
            if cause.status == "False" and cause.reason != api.PlanReason.INSUFFICIENT_CAPACITY:
                return true(api.StalledReason.USER_ACTION_REQUIRED, cause.message)
        if self._awaited is not None and self._awaited.status == "False":
            return true(api.StalledReason.USER_ACTION_REQUIRED, self._awaited.message)
        lack = self._outcome.routing_lack or dropped_volume(self._observed, self._target)
        if lack:
            return true(api.StalledReason.USER_ACTION_REQUIRED, lack)
        if self._scale.replicas and rollout.waits and rollout.waits_for_spec:
            return true(api.StalledReason.USER_ACTION_REQUIRED, rollout.waits)
        placed = [pod.scheduled_since for pod in self._observed.inspecting if pod.scheduled_since is not None]
        deadline = self._td.spec.rollout.progress_deadline
        is_late = placed and self._now - min(placed) >= deadline.seconds
        if is_late and self.inspected.status == "Unknown":
            message = f"There is no answer after {deadline}. {self.inspected.message}"
            return true(api.StalledReason.PROGRESS_DEADLINE_EXCEEDED, message)
        message = "Nothing waits for a change of the spec."
        if self.inspected.reason == api.ModelInspectedReason.INSPECT_RETRYING:
            message = "The model is read again and again: ModelInspected says what is in the way."
        if (status := rollout.status) is not None and status.last_progress_time is not None:
            message = f"Plan {status.plan_hash} has {deadline} from its last progress to make some."
        if self._scale.reason == api.ScalingReason.SUSPENDED:
            message = "It rests, as the spec asks: write spec.suspend: false to serve."
        return false(api.StalledReason.NOT_STALLED, message)

    def _reconciling(self) -> ConditionState:
        """Whether the spec is not in force yet, though it may come to that by itself.

        Ready does not say it: it is True also while the last replica starts.
        """
        if self.stalled.status == "True":
            return false(self.stalled.reason, "It is stalled: Stalled says why.")
        for cause in (self._ready, self.feasible):
            if cause.status != "True":
                present = any(pod.is_present for pod in self._observed.pods)
                rests = cause.reason == api.ReadyReason.SUSPENDED and not present
                return ConditionState("False" if rests else "True", cause.reason, cause.message)
        if sum(pod.ready for pod in self._serving) < self._scale.replicas:
            return true(api.ReconcilingReason.PROGRESSING, self._available.message)
        if remaining := self._remaining():
            return true(api.ReconcilingReason.PROGRESSING, remaining)
        return false(api.ReconcilingReason.UP_TO_DATE, "What runs is what the spec asks for.")

    def _remaining(self) -> str | None:
        """Say in a sentence what there is beyond the wanted replicas, or has yet to end."""
        for child in self._observed.children:
            if kept := kept_by_finalizer(child):
                return kept
        target, replicas = self._rollout.target, self._scale.replicas
        present = [pod for pod in self._observed.pods if pod.is_present]
        others = [pod for pod in present if target is not None and pod.plan_hash != target]
        if surplus := others or (present if len(present) > replicas else []):
            number = len(others) or len(present) - replicas
            pods = "1 pod has" if number == 1 else f"{number} pods have"
            return f"{pods} yet to end, or to take the place of another: {surplus[0].name}."
        if (status := self._rollout.status) is not None:
            return f"The replicas of plan {status.plan_hash} have yet to prove themselves available."
        return None
