"""A new draft comes to a part of the traffic first: tried on a variant of its own, then taken by all pods or
rejected. Pure and stateless but for what is counted: a process that dies begins the canary's count again.

Pods of Turbo take a draft up as they run. Those of vLLM load it as they start: there the pod that tries one
is of the plan to come, and promotion is a rollout from the plan without it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from turbo_operator import api, render, rollout
from turbo_operator.api import OFF, CanaryReason, EngineName, Method, ScalingMode, TurboDeployment
from turbo_operator.api.status import MAX_REJECTED_DRAFTS
from turbo_operator.autoscaler import limits
from turbo_operator.drafts.speedup import (
    MIN_BLOCKS,
    MIN_SECONDS,
    CanaryRun,
    SpeedupTracker,
)
from turbo_operator.drafts.training import fitting
from turbo_operator.plan import Choice, Plan
from turbo_operator.planner import PlannerInputs, build_inputs
from turbo_operator.planner.explanation import messages
from turbo_operator.planner.inputs import on_the_same
from turbo_operator.resources import WORKLOADS
from turbo_operator.snapshot import ENDED_PHASES, ChildView, DraftView, PodView, Snapshot, identity

# What ends a canary whatever was measured: pods of the same template but for the draft do not fail so.
_FAILING = frozenset({"CrashLoopBackOff", "OOMKilled"})
_REFUSING_SECONDS = 60.0  # that a pod must refuse a draft for: it tries again by itself
_WAITS = (
    CanaryReason.STARTING,
    CanaryReason.WAITING_FOR_BUDGET,
    CanaryReason.WAITING_FOR_PLAN,
    CanaryReason.APPLY_REJECTED,
)
_UNDER_WAY = frozenset({CanaryReason.EVALUATING, *_WAITS})
GIVE_UP_SECONDS = 24 * 3600.0  # of a pod that a node has, after which a canary without a verdict is over
# Standard errors that decide: eight blocks tell an error only roughly, and the end of each further one may be
# the end of the canary. With as many, fewer than one in twenty drafts that are no better is promoted.
CONFIDENCE = 3.5
LONGEST = 10  # times the shortest canary, after which what is not better beyond chance is no improvement


@dataclass(frozen=True, slots=True)
class CanaryVerdict:
    """The state of a canary run."""

    draft: DraftView
    variant: str  # plan hash of the pods that try it
    reason: CanaryReason
    detail: str  # a sentence
    choice: Choice | None = None  # what those pods are made of; None: there can be none

    @property
    def is_over(self) -> bool:
        """Whether there is nothing more to measure."""
        return self.reason not in _UNDER_WAY

    def held_up(
        self,
        rolled_back: bool,
        takes_over: bool,
        is_short: bool,
        lacks_model: bool,
        is_unapproved: bool = False,
    ) -> CanaryVerdict:
        """Tell what the pod that tries it waits for, where it may not be made yet."""
        if self.reason != CanaryReason.STARTING:
            return self
        waits = "room for a pod beside the replicas that serve"
        if is_unapproved:
            waits = "the approval of the plan, of which PlanApproved tells"
        elif rolled_back:
            waits = "a change of the spec, whose plan was rolled back"
        elif takes_over:
            waits = "the end of the rollout"
        elif lacks_model:
            waits = "all of the model on the claim, of which ModelCached tells"
        elif is_short:
            waits = "all replicas to answer"
        return replace(self, detail=f"The canary of {self.draft.version} waits for {waits}.")

    def refused(self, message: str) -> CanaryVerdict:
        """Tell that what it is tried on was not taken, for what `message` says: all else goes on."""
        return replace(self, reason=CanaryReason.APPLY_REJECTED, detail=message)


def candidate(td: TurboDeployment, observed: Snapshot) -> DraftView | None:
    """Return the newest draft that fits, is neither used nor older than what is, and was not rejected.

    None where a draft is named by hand: that one is taken by all pods at once.
    """
    speculation = td.spec.speculation
    if speculation.draft_ref is not None or observed.model is None or speculation.mode == "Disabled":
        return None
    is_other = speculation.method not in (Method.AUTO, Method.EAGLE3) or speculation.draft_model is not None
    if td.spec.draft_method == Method.EAGLE3 and is_other:
        return None
    drafts, used = fitting(td, observed), td.status.draft
    known = {identity(draft) for draft in (*td.status.rejected_drafts, used) if draft is not None}
    names = [draft.name for draft in drafts]
    first = names.index(used.name) if used is not None and used.name in names else 0
    # more of them than are remembered would be tried in turn, again and again
    latest = drafts[first:][-MAX_REJECTED_DRAFTS:]
    return next((draft for draft in reversed(latest) if identity(draft) not in known), None)


def trial(td: TurboDeployment, observed: Snapshot, choice: Choice | None) -> PlannerInputs | None:
    """Ask for the plan of pods that load the candidate as they start, on the accelerators that serve now;
    None where there is no candidate, or pods take it up as they run.
    """
    draft, spec = candidate(td, observed), td.spec
    if draft is None or observed.model is None or choice is None or choice.engine != EngineName.VLLM:
        return None
    drafts = {"mode": "Required", "method": Method.EAGLE3}
    spec = on_the_same(spec, choice.accelerator.name, choice.capacity_type, choice.tensor, choice.nodes)
    spec = spec.model_copy(update={"speculation": spec.speculation.model_copy(update=drafts)})
    seen = replace(observed, draft=draft)
    return build_inputs(td.model_copy(update={"spec": spec}), observed.model.shape, seen)


def update_canary(
    td: TurboDeployment,
    observed: Snapshot,
    choice: Choice | None,
    speedups: SpeedupTracker,
    now: float,
    trial_plan: Plan | None = None,
) -> tuple[SpeedupTracker, CanaryVerdict | None]:
    """Return the speedup of the pods, and what has become of the draft that is tried; None while none is.

    The tracker holds a run for as long as its variant shall exist. `choice` is what serves, `trial_plan` the
    planner's answer to `trial`.
    """
    draft, verdict, run = None, None, None
    is_external = td.spec.scaling_mode == ScalingMode.EXTERNAL
    is_asleep = td.spec.scaling.min_replicas == 0 and td.status.desired_replicas == 0
    is_scaled_to_zero = td.spec.replicas == 0 if is_external else is_asleep
    drafts = choice is not None and (choice.method != OFF or trial_plan is not None)
    is_by_restart = choice is not None and choice.engine == EngineName.VLLM
    if drafts and not td.spec.suspend and not is_scaled_to_zero and is_by_restart == (trial_plan is not None):
        draft = candidate(td, observed)
    if trial_plan is not None:
        choice = trial_plan.served
    if draft is not None and choice is None and trial_plan is not None:
        message = f"{draft.version} cannot be tried on what serves. {trial_plan.detail}"
        verdict = CanaryVerdict(draft, "", CanaryReason.WAITING_FOR_PLAN, message)
    elif draft is not None and choice is not None and observed.model is not None:
        variant = render.plan_hash(td, choice, observed.model, draft, canary=True)
        verdict = _unaffordable(td, observed, choice, draft, variant)
        if verdict is None:
            last = speedups.run
            block_seconds = td.spec.rollout.canary.min_duration.seconds / MIN_BLOCKS
            new = CanaryRun(variant, now, by_token=is_by_restart, block_seconds=block_seconds)
            run = last if last is not None and last.variant == variant else new
    warm_seconds = td.spec.rollout.canary.min_generation_duration.seconds
    speedups = replace(speedups, run=run).update(observed.pods, now, warm_seconds)
    if draft is None or speedups.run is None:
        return speedups, verdict
    run = _timed(speedups.run, draft, _pods(observed, speedups.run.variant), now)
    verdict = CanaryVerdict(draft, run.variant, *_evaluate(td, observed, draft, run, now), choice)
    return replace(speedups, run=None if verdict.is_over else run), verdict


def makes_room(
    td: TurboDeployment,
    observed: Snapshot,
    choice: Choice | None,
    run: CanaryRun | None,
    replicas: int,
    now: float,
) -> bool:
    """Whether one of several replicas goes before the pod that tries answers: where money, a quota or the
    nodes have no place for one more. Where one has gone, the pod that tries is one of them.
    """
    if run is None or choice is None or replicas < 2:
        return False
    pods = [pod for pod in _pods(observed, run.variant) if pod.phase not in ENDED_PHASES]
    if not pods:
        deployment = deployment_of(observed, run.variant)
        return deployment is not None and deployment.is_over_quota
    limit = limits.bought(td.spec, choice, observed.allowance)
    others = [child for child in observed.children if child.plan_hash not in (None, run.variant)]
    has_gone = sum(child.replicas or 0 for child in others) < replicas
    is_dear = limit is not None and limit.replicas <= replicas
    return has_gone or is_dear or bool(limits.stuck_pods(td.spec, pods, now))


def _pods(observed: Snapshot, variant: str) -> list[PodView]:
    """Return the pods that try, but for those that go."""
    return [pod for pod in observed.pods if pod.plan_hash == variant and not pod.terminating]


def deployment_of(observed: Snapshot, variant: str) -> ChildView | None:
    """Return the Deployment of a variant; None while there is none."""
    of_variant = (child for child in observed.children if child.plan_hash == variant)
    return next((child for child in of_variant if child.kind in WORKLOADS), None)


def _unaffordable(
    td: TurboDeployment, observed: Snapshot, choice: Choice, draft: DraftView, variant: str
) -> CanaryVerdict | None:
    """Say why a single replica gets no pod in addition; of several, one makes room."""
    limit = limits.bought(td.spec, choice, observed.allowance)
    if (td.status.desired_replicas or 1) > 1 or limit is None or limit.replicas > 1:
        return None
    message = f"{draft.version} is tried on a pod beside the only one, and {limit.sentence}: raise it."
    return CanaryVerdict(draft, variant, CanaryReason.WAITING_FOR_BUDGET, message)


def _timed(run: CanaryRun, draft: DraftView, pods: Sequence[PodView], now: float) -> CanaryRun:
    """Begin the day when a node has the run's pod and that finds all of the model, and the window when a pod
    first uses the draft.
    """
    if run.began is not None:
        return run
    can_start = [pod for pod in pods if pod.lacks is None and pod.phase not in ENDED_PHASES]
    is_placed = any(pod.pending_since is None for pod in can_start)
    return replace(run, since=run.since if is_placed else now, began=now if _is_used(draft, pods) else None)


def _is_used(draft: DraftView, pods: Sequence[PodView]) -> bool:
    return any(pod.drafts_with(draft.version) for pod in pods)


def add_verdict(observed: Snapshot, speedups: SpeedupTracker, verdict: CanaryVerdict | None) -> Snapshot:
    """Add to what was seen the speedup of all pods, and the draft that they are to use from now on."""
    promoted = verdict is not None and verdict.reason == CanaryReason.PROMOTED
    draft = verdict.draft if promoted and verdict is not None else observed.draft
    return replace(observed, draft=draft, speedup=speedups.overall)


def _evaluate(
    td: TurboDeployment, observed: Snapshot, draft: DraftView, run: CanaryRun, now: float
) -> tuple[CanaryReason, str]:
    """Decide what becomes of a draft, from its run, the pods that try it and the others."""
    version, pods = draft.version, _pods(observed, run.variant)
    for pod in pods:
        # One that does not find all of the model starts once that is fetched again.
        if pod.reason in _FAILING and pod.phase not in ENDED_PHASES and pod.lacks is None:
            return CanaryReason.POD_FAILED, f"Pod {pod.name} with {version}: {pod.reason}."
        problem = pod.load.load.draft_error if pod.load else None
        ready = now - pod.ready_since if pod.ready_since is not None else 0.0
        if problem and not _is_used(draft, [pod]) and ready >= _REFUSING_SECONDS:
            return CanaryReason.LOAD_FAILED, f"Pod {pod.name}: {problem.rstrip('.')}."
    total = run.warmup + run.canary
    others = rollout.Reports.of(pod for pod in observed.pods if pod.plan_hash != run.variant)
    audited = replace(rollout.Reports.of(pods), audits=total.audits, mismatches=total.mismatches)
    if total.mismatches and not rollout.is_by_rounding(audited, others):
        message = f"{total.mismatches} of {total.audits} answers with {version} differ without drafts."
        return CanaryReason.AUDIT_MISMATCH, message
    if _is_used(draft, pods):
        reason, message = _compare(td.spec.rollout.canary, version, run, now)
    else:
        reason, message = CanaryReason.STARTING, f"A pod with {version} starts beside the others."
        deployment = deployment_of(observed, run.variant)
        if deployment is not None and deployment.message and not pods:
            message += f" No pod can be made: {deployment.message}"
        elif waiting := next((pod for pod in pods if pod.reason), None):
            message += f" {waiting.reason}: {waiting.message or ''}".rstrip()
    if reason in _UNDER_WAY and now - run.since >= GIVE_UP_SECONDS:
        return CanaryReason.INCONCLUSIVE, f"After a day there is no verdict. {message}"
    return reason, message


def _compare(settings: api.Canary, version: str, run: CanaryRun, now: float) -> tuple[CanaryReason, str]:
    needed, total = settings.min_generation_duration.seconds, run.warmup + run.canary
    seconds = min(run.seconds(run.canary), run.seconds(run.baseline))
    compared = f"{version} is compared with what the other pods use"
    if run.began is None or not run.is_warm(now, needed):
        return CanaryReason.EVALUATING, f"The pod that tries {version} warms up on live traffic."
    if seconds < max(needed, MIN_SECONDS):
        done = 10 * int(10 * seconds / max(needed, MIN_SECONDS))
        return CanaryReason.EVALUATING, f"{compared}: {done} % of the answers needed are there."
    if now - run.began < settings.min_duration.seconds:
        return CanaryReason.EVALUATING, f"{version} is tried for at least {settings.min_duration}."
    (new, old), chance = run.speeds, CONFIDENCE * run.relative_error
    may_be_chance = CanaryReason.EVALUATING, f"{compared}: the difference may still be chance."
    if new is None or old is None or math.isinf(chance):
        return may_be_chance
    gain = math.log(new / old / float(settings.min_speedup_ratio))
    is_long = now - run.began >= LONGEST * settings.min_duration.seconds and seconds >= LONGEST * needed
    if abs(gain) < chance and not is_long:
        return may_be_chance
    if run.by_token:
        return _by_token(version, run, new, float(settings.min_speedup_ratio), chance <= gain)
    if not total.audits:
        message = f"None of the answers with {version} was audited yet: pods do that while they are idle."
        return CanaryReason.EVALUATING, message
    measured = f"{version} makes answers {new:.2f} times as fast as no drafts, and what was there {old:.2f}"
    if gain >= chance:
        differ = f"{total.mismatches} of them differ" if total.mismatches else "none differs"
        return CanaryReason.PROMOTED, f"{measured}; {total.audits} answers audited, {differ}."
    needs = f"it has to be at least {settings.min_speedup_ratio} of that"
    if gain >= 0:
        needs += f", by more than the {100 * chance:.0f} % that chance alone may make"
    return CanaryReason.NO_IMPROVEMENT, f"{measured}: {needs}."


def _by_token(
    version: str, run: CanaryRun, ratio: float, needed: float, is_better: bool
) -> tuple[CanaryReason, str]:
    """Decide on pods of vLLM, which verifies every draft and audits none."""
    new, old = run.whole.canary.seconds_per_token, run.whole.baseline.seconds_per_token
    assert new is not None  # else there is no ratio
    assert old is not None
    measured = (
        f"A token took {messages.time(new)} on the pod with {version}, and {messages.time(old)} on the "
        f"others in the same time: {ratio:.2f} times as fast"
    )
    if is_better:
        return CanaryReason.PROMOTED, f"{measured}. From now on the planner counts on it."
    more = ", by more than chance alone may make" if ratio >= needed else ""
    return CanaryReason.NO_IMPROVEMENT, f"{measured}, and it has to be at least {needed:g}{more}."
