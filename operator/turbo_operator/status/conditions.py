"""The conditions of a status: what holds, and where it does not, whose words say why. Pure."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from decimal import Decimal
from typing import Literal

from turbo_operator.api import (
    AvailableReason,
    BudgetReason,
    ConditionType,
    ModelInspectedReason,
    PlanReason,
    ReadyReason,
    ScalingMode,
    ScalingReason,
    TurboDeployment,
)
from turbo_operator.api.conditions import ConditionState, sentence
from turbo_operator.autoscaler import ScalingDecision
from turbo_operator.drafts.training import is_training_job
from turbo_operator.plan import Plan
from turbo_operator.planner import money
from turbo_operator.render import url
from turbo_operator.snapshot import ENDED_PHASES, PodView, Snapshot
from turbo_operator.status.cost import cost_per_hour
from turbo_operator.status.outcome import Outcome

# What Kubernetes says of a pod, and what it means for the user.
POD_REASONS: Mapping[str, AvailableReason] = {
    reason: meaning
    for meaning, reasons in {
        AvailableReason.WAITING_FOR_ACCELERATOR: "Unschedulable SchedulingGated",
        AvailableReason.IMAGE_PULL_BACK_OFF: "ErrImagePull ImagePullBackOff ImageInspectError "
        "InvalidImageName ErrImageNeverPull RegistryUnavailable",
        AvailableReason.OOM_KILLED: "OOMKilled",
        AvailableReason.CRASH_LOOP_BACK_OFF: "CrashLoopBackOff CreateContainerConfigError "
        "CreateContainerError RunContainerError StartError ContainerCannotRun Error Evicted",
    }.items()
    for reason in reasons.split()
}


def verdicts(
    td: TurboDeployment, observed: Snapshot, outcome: Outcome, refused: str | None
) -> dict[ConditionType, ConditionState]:
    """Return each condition but Reconciling and Stalled; the outcome's scale is the one in force."""
    serving = [pod for pod in observed.pods if pod.is_serving]
    canary_hash = outcome.verdict.variant if outcome.verdict is not None else None
    plan_hash = outcome.plan_hash or outcome.takeover.target
    current = [pod for pod in serving if plan_hash is None or pod.plan_hash in (plan_hash, canary_hash)]
    inspected = _inspected(td, observed)
    feasible = _feasible(outcome.plan, inspected)
    available = _available(outcome, observed, serving, current, feasible)
    return {
        ConditionType.READY: _ready(td, outcome, current, inspected, feasible, available, observed, refused),
        ConditionType.PLAN_FEASIBLE: feasible,
        ConditionType.MODEL_INSPECTED: inspected,
        ConditionType.AVAILABLE: available,
        ConditionType.WITHIN_BUDGET: _within_budget(
            observed, td.spec.cost.max_per_hour if td.spec.cost else None
        ),
        ConditionType.SCALING_ACTIVE: _scaling(td, outcome.scale),
    }


def in_force(td: TurboDeployment, scale: ScalingDecision, plan_hash: str | None) -> ScalingDecision:
    """Return what pods are measured against: the spec, or while it has no plan the last feasible one.

    A suspension is no such plan.
    """
    last = td.status.serving_plan or td.status.plan
    if plan_hash is None and last is not None and last.hash and last.replicas is not None:
        wanted = td.status.desired_replicas or last.replicas
        return dataclasses.replace(scale, replicas=min(scale.replicas, wanted))
    return scale


def _inspected(td: TurboDeployment, observed: Snapshot) -> ConditionState:
    facts = observed.model
    if facts is not None:
        shape = facts.shape
        message = f"{shape.architecture} of {shape.parameters / 1e6:.1f} million parameters, {facts.digest}."
        return ConditionState("True", ModelInspectedReason.INSPECTED, message)
    jobs = [child for child in observed.children if child.kind == "Job"]
    job = next((child for child in jobs if not is_training_job(td, child.name)), None)
    error = sentence(observed.model_error or (job.message if job else None))
    if job is not None and (job.failed or (job.complete and error)):
        message = f"The model could not be read. {error or 'The Job left no message.'}"
        remedy = f" Correct spec.model, or delete the Job {job.name} to try again."
        return ConditionState("False", ModelInspectedReason.INSPECT_FAILED, message + remedy)
    message = "The inspect Job reads the model's shape."
    if error:
        message = f"{message} Its last attempt said: {error}"
    return ConditionState("Unknown", ModelInspectedReason.INSPECTING, message)


def _feasible(plan: Plan | None, inspected: ConditionState) -> ConditionState:
    if plan is None:
        return ConditionState(
            "Unknown", PlanReason.MODEL_UNKNOWN, f"There is nothing to plan yet. {inspected.message}"
        )
    return ConditionState("False" if plan.choice is None else "True", plan.reason, plan.detail)


def _available(
    outcome: Outcome,
    observed: Snapshot,
    serving: Sequence[PodView],
    current: Sequence[PodView],
    feasible: ConditionState,
) -> ConditionState:
    """Whether enough pods answer, of whichever variant: all but the one that a node's drain may take."""
    scale, plan_hash, takeover = outcome.scale, outcome.plan_hash, outcome.takeover
    if scale.reason == ScalingReason.SUSPENDED:
        message, present = scale.detail, sum(pod.is_present for pod in observed.pods)
        if present:
            message += f" {'1 pod has' if present == 1 else f'{present} pods have'} yet to end."
        return ConditionState("False", AvailableReason.SUSPENDED, message)
    ready = min(sum(pod.ready for pod in serving), scale.replicas)
    answering = f"{ready} of {scale.replicas} replicas answer."
    if ready >= _minimum(scale.replicas):
        message = answering + _missing(outcome, ready, current)
        return ConditionState("True", AvailableReason.MINIMUM_REPLICAS_AVAILABLE, message)
    if plan_hash is None and not serving:
        message = f"0 of {scale.replicas} replicas answer. {feasible.message}"
        return ConditionState("False", AvailableReason.NO_PLAN, message)
    cause = _held_up(scale, observed, current or serving, plan_hash or takeover.target, ready)
    if takeover.waits and cause.reason == AvailableReason.MODEL_LOADING and all(pod.ready for pod in current):
        message = f"{answering} {takeover.waits}"
        return ConditionState("False", AvailableReason.WAITING_FOR_ACCELERATOR, message)
    return cause


def _missing(outcome: Outcome, ready: int, pods: Sequence[PodView]) -> str:
    """Say what holds up those that do not answer yet, after how many do; nothing where all do."""
    if ready >= outcome.scale.replicas:
        return ""
    failing = _first_failing(pods)
    why = failing.message if failing else outcome.takeover.waits
    return f" {why}" if why else ""


def _minimum(replicas: int) -> int:
    return replicas if replicas <= 1 else replicas - 1


def _held_up(
    scale: ScalingDecision, observed: Snapshot, pods: Sequence[PodView], plan_hash: str | None, ready: int
) -> ConditionState:
    """Say what the first failing pod says, else why its ReplicaSet makes none, else that the model loads.

    A pod that has ended is quoted only where there is no other.
    """
    if failing := _first_failing(pods):
        return failing
    for child in observed.children:
        if child.kind == "Deployment" and child.message and plan_hash in (None, child.plan_hash):
            why = AvailableReason.QUOTA_EXCEEDED if child.is_over_quota else ReadyReason.APPLY_REJECTED
            return ConditionState("False", why, f"No pod can be made: {sentence(child.message)}")
    ended = [pod for pod in observed.pods if pod.phase in ENDED_PHASES and plan_hash in (None, pod.plan_hash)]
    if not pods and (failed := _first_failing(ended)):
        return failed
    message = f"{ready} of {scale.replicas} replicas answer; others start or load."
    return ConditionState("False", AvailableReason.MODEL_LOADING, message)


def failure(observed: Snapshot, plan_hash: str) -> str:
    """Say what holds up the pods of a variant, in a sentence; empty where they say nothing."""
    pods = [pod for pod in observed.pods if pod.plan_hash == plan_hash and not pod.terminating]
    # else one that has ended
    failing = _first_failing(pod for pod in pods if pod.is_serving) or _first_failing(pods)
    if failing:
        return failing.message
    messages = (child.message for child in observed.children if child.plan_hash == plan_hash)
    return next((sentence(message) for message in messages if message), "")


def _first_failing(pods: Iterable[PodView]) -> ConditionState | None:
    failing = sorted((pod for pod in pods if not pod.ready and pod.reason), key=lambda pod: pod.name)
    failing.sort(key=lambda pod: pod.reason not in POD_REASONS)  # stable: by name among equals
    if not failing:
        return None
    pod = failing[0]
    reason = POD_REASONS.get(pod.reason or "", AvailableReason.MODEL_LOADING)
    message = sentence(pod.message) or "it left no message."
    return ConditionState("False", reason, f"Pod {pod.name}: {pod.reason}: {message}")


def _ready(
    td: TurboDeployment,
    outcome: Outcome,
    current: Sequence[PodView],
    inspected: ConditionState,
    feasible: ConditionState,
    available: ConditionState,
    observed: Snapshot,
    refused: str | None,
) -> ConditionState:
    """Whether what runs serves the spec, or its last feasible plan; else the first thing that holds it up."""
    replicas, plan_hash, takeover = outcome.scale.replicas, outcome.plan_hash, outcome.takeover
    if refused:
        return ConditionState("False", ReadyReason.APPLY_REJECTED, sentence(refused))
    if outcome.scale.reason == ScalingReason.SUSPENDED:
        return ConditionState("False", ReadyReason.SUSPENDED, available.message)
    if inspected.status == "Unknown":  # whether the new spec can be served is not known yet
        return ConditionState("False", inspected.reason, inspected.message)
    if takeover.rolled_back:
        return ConditionState("False", ReadyReason.ROLLED_BACK, takeover.describe_failure(td))
    ready = min(sum(pod.ready for pod in current), replicas)
    if replicas == 0 and plan_hash is not None:
        message = f"Nothing answers at {url(td)}: 0 replicas are asked for, and the plan is feasible."
        return ConditionState("True", ReadyReason.SCALED_TO_ZERO, message)
    if ready >= _minimum(replicas) and (plan_hash is not None or ready):
        message = f"{ready} of {replicas} replicas serve {td.served_name} at {url(td)}."
        message += _missing(outcome, ready, current)
        if plan_hash is None:
            message += f" It is the last feasible plan that serves. {feasible.message}"
        return ConditionState("True", ReadyReason.SERVING, message)
    if plan_hash is None:
        cause = inspected if inspected.status != "True" else feasible
        return ConditionState("False", cause.reason, cause.message)
    if available.status == "True":  # the old variant answers while the new one comes up
        if takeover.waits:
            message = f"The plan before it serves on. {takeover.waits}"
            by_spec = takeover.waits_for_spec
            why = ReadyReason.USER_ACTION_REQUIRED if by_spec else AvailableReason.WAITING_FOR_ACCELERATOR
            return ConditionState("False", why, message)
        cause = _held_up(outcome.scale, observed, current, plan_hash, ready)
        message = f"The plan before it serves on. Of the new plan: {cause.message}"
        return ConditionState("False", cause.reason, message)
    return ConditionState("False", available.reason, available.message)


def _scaling(td: TurboDeployment, scale: ScalingDecision) -> ConditionState:
    idle = (
        ScalingReason.SUSPENDED,
        ScalingReason.METRICS_UNAVAILABLE,
    )  # as a HorizontalPodAutoscaler says it
    active: Literal["True", "False"] = "False" if scale.reason in idle else "True"
    message = scale.detail
    if td.spec.scaling_mode != ScalingMode.EXTERNAL and td.spec.replicas != 1 and not td.spec.suspend:
        message += (
            f" spec.replicas of {td.spec.replicas} is not followed: kubectl scale and other autoscalers "
            "decide under spec.scaling.mode External alone."
        )
    return ConditionState(active, scale.reason, message)


def _within_budget(observed: Snapshot, ceiling: Decimal | None) -> ConditionState:
    """Whether what runs now, of whichever variant, costs no more than spec.cost.maxPerHour."""
    if ceiling is None:
        return ConditionState("True", BudgetReason.NO_BUDGET, "spec.cost.maxPerHour sets no ceiling.")
    cost = cost_per_hour(observed)
    if cost is None:
        message = "What runs has no price: write spec.pricing.perAcceleratorHour on its TurboAccelerator."
        return ConditionState("Unknown", BudgetReason.PRICE_UNKNOWN, message)
    message = f"What runs costs {money(cost)} $/h, and spec.cost.maxPerHour is {money(ceiling)}."
    if cost <= ceiling:
        return ConditionState("True", BudgetReason.WITHIN_BUDGET, message)
    return ConditionState("False", BudgetReason.BUDGET_EXCEEDED, message)
