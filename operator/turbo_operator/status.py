"""From what is wanted, planned and seen to the status of a TurboDeployment. Pure: the time is a parameter.

Conditions are positive (True is good) but for Stalled. A transition time moves only when its status flips, so
computing the status again from the same facts changes nothing, and a status that equals the old one need not
be written.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, Literal

from pydantic import ValidationError

from turbo_operator.api import (
    AvailableReason,
    Condition,
    ConditionType,
    ModelInspectedReason,
    ModelStatus,
    PlanReason,
    PlanStatus,
    Predicted,
    ReadyReason,
    RejectedPlan,
    ScalingReason,
    ShapeStatus,
    StalledReason,
    TurboDeployment,
    TurboDeploymentStatus,
)
from turbo_operator.observed import Observed, PodView
from turbo_operator.planned import Plan
from turbo_operator.planner import money
from turbo_operator.render import url
from turbo_operator.render.identity import serving_selector
from turbo_operator.scaler import Scale

MAX_REJECTED = 5
MAX_QUOTED = 500  # characters of another program's message
ENGINE = "Turbo"

# What a pod says, and what it means for the user.
POD_REASONS: Mapping[str, AvailableReason] = {
    "Unschedulable": AvailableReason.WAITING_FOR_ACCELERATOR,
    "SchedulingGated": AvailableReason.WAITING_FOR_ACCELERATOR,
    "ErrImagePull": AvailableReason.IMAGE_PULL,
    "ImagePullBackOff": AvailableReason.IMAGE_PULL,
    "ImageInspectError": AvailableReason.IMAGE_PULL,
    "InvalidImageName": AvailableReason.IMAGE_PULL,
    "ErrImageNeverPull": AvailableReason.IMAGE_PULL,
    "RegistryUnavailable": AvailableReason.IMAGE_PULL,
    "OOMKilled": AvailableReason.OUT_OF_MEMORY,
    "CrashLoopBackOff": AvailableReason.CRASH_LOOP,
    "CreateContainerConfigError": AvailableReason.CRASH_LOOP,
    "CreateContainerError": AvailableReason.CRASH_LOOP,
    "RunContainerError": AvailableReason.CRASH_LOOP,
    "StartError": AvailableReason.CRASH_LOOP,
    "ContainerCannotRun": AvailableReason.CRASH_LOOP,
    "Error": AvailableReason.CRASH_LOOP,
    "Evicted": AvailableReason.CRASH_LOOP,
}
ENDED = frozenset({"Failed", "Succeeded"})  # phases of a pod that runs no more and that a new one replaces


@dataclass(frozen=True, slots=True)
class _Verdict:
    """A condition without its bookkeeping."""

    status: Literal["True", "False", "Unknown"]
    reason: StrEnum | str
    message: str


def compute(
    td: TurboDeployment,
    observed: Observed,
    scale: Scale,
    plan: Plan | None,
    plan_hash: str | None,
    now: float,
    refused: str | None = None,
) -> TurboDeploymentStatus:
    """The whole status. `plan` is None until the model is known, `plan_hash` while no plan is feasible.

    `refused` is what the API server said when it took a child of ours not; `now` is in seconds since the
    epoch.
    """
    there = [pod for pod in observed.pods if pod.plan_hash and pod.phase not in ENDED]
    serving = [pod for pod in there if not pod.terminating]
    scale = _in_force(td, scale, plan_hash, len(there))
    current = [pod for pod in serving if plan_hash is None or pod.plan_hash == plan_hash]
    inspected = _inspected(observed)
    feasible = _feasible(plan, inspected)
    available = _available(scale, observed, serving, current, feasible, plan_hash)
    verdicts = {
        ConditionType.READY: _ready(
            td, scale, current, inspected, feasible, available, observed, plan_hash, refused
        ),
        ConditionType.PLAN_FEASIBLE: feasible,
        ConditionType.MODEL_INSPECTED: inspected,
        ConditionType.AVAILABLE: available,
        ConditionType.SCALING_ACTIVE: _scaling(scale),
        ConditionType.STALLED: _stalled(inspected, feasible, refused),
    }
    return TurboDeploymentStatus(
        observed_generation=td.metadata.generation,
        url=url(td),
        replicas=len(serving),
        ready_replicas=sum(pod.ready for pod in serving),
        selector=",".join(f"{key}={value}" for key, value in sorted(serving_selector(td).items())),
        model=_model(observed),
        plan=_plan(td.status.plan, plan, plan_hash),
        conditions=_conditions(verdicts, td.status.conditions, td.metadata.generation, now),
    )


def invalid(document: Mapping[str, Any], problem: str, now: float) -> TurboDeploymentStatus:
    """The status of an object that is none of the API's (stored before a rule was): what runs keeps running.

    `document` is the object as the API server holds it, `problem` a sentence that names the wrong field.
    """
    old = _old_status(document.get("status"))
    generation = document["metadata"].get("generation", 0)
    message = f"The spec cannot be read: {problem}."
    verdicts = {
        ConditionType.READY: _Verdict("False", ReadyReason.INVALID_SPEC, message),
        ConditionType.STALLED: _Verdict("True", StalledReason.NEEDS_CHANGE, message),
    }
    new = _conditions(verdicts, old.conditions, generation, now)
    kept = tuple(each for each in old.conditions if each.type not in verdicts)
    return old.model_copy(update={"observed_generation": generation, "conditions": (*new, *kept)})


def _old_status(raw: Any) -> TurboDeploymentStatus:
    try:
        return TurboDeploymentStatus.model_validate(raw or {})
    except ValidationError:  # unreadable like the rest of the object: then it is written anew
        return TurboDeploymentStatus()


def _in_force(td: TurboDeployment, scale: Scale, plan_hash: str | None, num_there: int) -> Scale:
    """What the pods are measured against: the spec, or while it has no plan what the last feasible one took.

    A suspension says how many pods are still to end.
    """
    if scale.reason == ScalingReason.SUSPENDED and num_there:
        pods = "1 pod has" if num_there == 1 else f"{num_there} pods have"
        return dataclasses.replace(scale, detail=f"{scale.detail} {pods} yet to end.")
    last = td.status.plan
    if plan_hash is None and last is not None and last.hash and last.replicas is not None:
        return dataclasses.replace(scale, replicas=min(scale.replicas, last.replicas))
    return scale


def _inspected(observed: Observed) -> _Verdict:
    facts = observed.model
    if facts is not None:
        shape = facts.shape
        message = f"{shape.architecture} of {shape.parameters / 1e6:.1f} million parameters, {facts.digest}."
        return _Verdict("True", ModelInspectedReason.INSPECTED, message)
    job = next((child for child in observed.children if child.kind == "Job"), None)
    error = _sentence(observed.model_error or (job.message if job else None))
    if job is not None and (job.failed or (job.complete and error)):
        message = f"The model could not be read. {error or 'The Job left no message.'}"
        remedy = f" Correct spec.model, or delete the Job {job.name} to try again."
        return _Verdict("False", ModelInspectedReason.INSPECT_FAILED, message + remedy)
    message = "The inspect Job reads the model's shape."
    if error:
        message = f"{message} Its last attempt said: {error}"
    return _Verdict("Unknown", ModelInspectedReason.INSPECTING, message)


def _feasible(plan: Plan | None, inspected: _Verdict) -> _Verdict:
    if plan is None:
        return _Verdict(
            "Unknown", PlanReason.MODEL_UNKNOWN, f"There is nothing to plan yet. {inspected.message}"
        )
    return _Verdict("False" if plan.choice is None else "True", plan.reason, plan.detail)


def _available(
    scale: Scale,
    observed: Observed,
    serving: Sequence[PodView],
    current: Sequence[PodView],
    feasible: _Verdict,
    plan_hash: str | None,
) -> _Verdict:
    """Whether enough pods answer, of whichever variant: all but the one that a node's drain may take."""
    if scale.reason == ScalingReason.SUSPENDED:
        return _Verdict("False", AvailableReason.SUSPENDED, scale.detail)
    ready = sum(pod.ready for pod in serving)
    if ready >= _minimum(scale.replicas):
        return _Verdict(
            "True", AvailableReason.MINIMUM_REPLICAS, f"{ready} of {scale.replicas} replicas answer."
        )
    if plan_hash is None and not serving:
        return _Verdict("False", AvailableReason.NO_PLAN, f"Nothing runs. {feasible.message}")
    return _held_up(scale, observed, current or serving, plan_hash)


def _minimum(replicas: int) -> int:
    return replicas if replicas <= 1 else replicas - 1


def _held_up(scale: Scale, observed: Observed, pods: Sequence[PodView], plan_hash: str | None) -> _Verdict:
    """What the first failing pod says, else why its ReplicaSet makes none, else that the model loads.

    A pod that has ended is quoted only where there is no other.
    """
    if failing := _first_failing(pods):
        return failing
    for child in observed.children:
        if child.kind == "Deployment" and child.message and plan_hash in (None, child.plan_hash):
            quota = "quota" in child.message.lower()
            why = AvailableReason.QUOTA_EXCEEDED if quota else ReadyReason.REFUSED
            return _Verdict("False", why, f"No pod can be made: {_sentence(child.message)}")
    ended = [pod for pod in observed.pods if pod.phase in ENDED and plan_hash in (None, pod.plan_hash)]
    if not pods and (failed := _first_failing(ended)):
        return failed
    message = f"{sum(pod.ready for pod in pods)} of {scale.replicas} replicas answer; others start or load."
    return _Verdict("False", AvailableReason.MODEL_LOADING, message)


def _first_failing(pods: Iterable[PodView]) -> _Verdict | None:
    failing = sorted((pod for pod in pods if not pod.ready and pod.reason), key=lambda pod: pod.name)
    failing.sort(key=lambda pod: pod.reason not in POD_REASONS)  # stable: by name among equals
    if not failing:
        return None
    pod = failing[0]
    reason = POD_REASONS.get(pod.reason or "", AvailableReason.MODEL_LOADING)
    said = _sentence(pod.message) or "it left no message."
    return _Verdict("False", reason, f"Pod {pod.name}: {pod.reason}: {said}")


def _ready(
    td: TurboDeployment,
    scale: Scale,
    current: Sequence[PodView],
    inspected: _Verdict,
    feasible: _Verdict,
    available: _Verdict,
    observed: Observed,
    plan_hash: str | None,
    refused: str | None,
) -> _Verdict:
    """Whether what runs serves the spec, or its last feasible plan; else the first thing that holds it up."""
    if refused:
        return _Verdict("False", ReadyReason.REFUSED, f"The API server refused: {_sentence(refused)}")
    if scale.reason == ScalingReason.SUSPENDED:
        return _Verdict("False", ReadyReason.SUSPENDED, scale.detail)
    if inspected.status == "Unknown":  # whether the new spec can be served is not known yet
        return _Verdict("False", inspected.reason, inspected.message)
    ready = sum(pod.ready for pod in current)
    if scale.replicas == 0 and plan_hash is not None:
        message = f"Nothing answers at {url(td)}: 0 replicas are asked for, and the plan is feasible."
        return _Verdict("True", ReadyReason.SCALED_TO_ZERO, message)
    if ready >= _minimum(scale.replicas) and (plan_hash is not None or ready):
        still = (
            "" if plan_hash is not None else f" It is the last feasible plan that serves. {feasible.message}"
        )
        message = f"{ready} of {scale.replicas} replicas serve {td.served_name} at {url(td)}.{still}"
        return _Verdict("True", ReadyReason.SERVING, message)
    if plan_hash is None:
        cause = inspected if inspected.status != "True" else feasible
        return _Verdict("False", cause.reason, cause.message)
    if available.status == "True":  # the old variant answers while the new one comes up
        cause = _held_up(scale, observed, current, plan_hash)
        return _Verdict("False", cause.reason, f"The plan before it serves on. {cause.message}")
    return _Verdict("False", available.reason, available.message)


def _scaling(scale: Scale) -> _Verdict:
    active: Literal["True", "False"] = "False" if scale.reason == ScalingReason.SUSPENDED else "True"
    return _Verdict(active, scale.reason, scale.detail)


def _stalled(inspected: _Verdict, feasible: _Verdict, refused: str | None) -> _Verdict:
    """In kstatus' sense: whether nothing will get better unless somebody changes something."""
    if refused:
        return _Verdict("True", StalledReason.NEEDS_CHANGE, f"The API server refused: {_sentence(refused)}")
    for cause in (inspected, feasible):
        if cause.status == "False":
            return _Verdict("True", StalledReason.NEEDS_CHANGE, cause.message)
    return _Verdict("False", StalledReason.PROGRESSING, "Nothing waits for a change of the spec.")


def _model(observed: Observed) -> ModelStatus | None:
    facts = observed.model
    if facts is None:
        return None
    shape = ShapeStatus(**dataclasses.asdict(facts.shape))
    return ModelStatus(resolved_revision=facts.revision, digest=facts.digest, shape=shape)


def _plan(old: PlanStatus | None, plan: Plan | None, plan_hash: str | None) -> PlanStatus | None:
    """The plan in force; while a new one is infeasible, the old one with the reason why it stays."""
    if plan is None:
        return old
    rejected = tuple(
        RejectedPlan(
            accelerator=row.accelerator,
            tensor=row.tensor,
            method=row.method,
            reason=row.reason,
            detail=row.detail,
        )
        for row in plan.rejected[:MAX_REJECTED]
    )
    choice = plan.choice
    if choice is None:
        kept = old or PlanStatus()
        return kept.model_copy(update={"reason": plan.reason, "detail": plan.detail, "rejected": rejected})
    cost = choice.predicted.cost_per_hour
    return PlanStatus(
        hash=plan_hash,
        engine=ENGINE,
        accelerator=choice.accelerator.name,
        tensor=choice.tensor,
        accelerators_per_replica=choice.accelerators_per_replica,
        method=choice.method,
        max_draft_tokens=choice.max_draft_tokens,
        replicas=plan.replicas,
        predicted=None if cost is None else Predicted(cost_per_hour=money(cost)),
        reason=plan.reason,
        detail=plan.detail,
        rejected=rejected,
    )


def _conditions(
    verdicts: Mapping[ConditionType, _Verdict], old: Sequence[Condition], generation: int, now: float
) -> tuple[Condition, ...]:
    before = {condition.type: condition for condition in old}
    stamp = datetime.fromtimestamp(now, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    conditions = []
    for kind, verdict in verdicts.items():
        last = before.get(kind)
        flipped = last is None or last.status != verdict.status
        conditions.append(
            Condition(
                type=kind,
                status=verdict.status,
                reason=verdict.reason,
                message=verdict.message,
                last_transition_time=stamp if flipped or last is None else last.last_transition_time,
                observed_generation=generation,
            )
        )
    return tuple(conditions)


def _sentence(text: str | None) -> str:
    """Another program's message on one line, bounded, with a full stop; empty stays empty."""
    line = " ".join((text or "").split())
    if len(line) > MAX_QUOTED:
        line = line[: MAX_QUOTED - 3] + "..."
    return line if not line or line[-1] in ".!?" else f"{line}."
