"""What happened between one status and the next, for Events. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from turbo_operator.api import (
    AvailableReason,
    CanaryReason,
    ConditionType,
    DraftReason,
    ModelCachedReason,
    ModelInspectedReason,
    ReadyReason,
    ReconcilingReason,
    ScalingReason,
    TrainingReason,
)
from turbo_operator.status.conditions import NOT_FOLLOWED

# Conditions whose every change is an Event, and others for which only a turn for the worse or back is one.
STEPS = (
    ConditionType.READY,
    ConditionType.PLAN_APPROVED,
    ConditionType.DRAFT_TRAINED,
    ConditionType.DRAFT_PROMOTED,
)
ALARMS = (
    ConditionType.WITHIN_BUDGET,
    ConditionType.DRAFT_READY,
    ConditionType.POOL_ACCEPTED,
    ConditionType.TARGETS_MET,
)
# What is no failure although it is not there yet; one of these after another is no news.
EXPECTED = frozenset[str](
    {
        ModelInspectedReason.INSPECTING,
        ModelCachedReason.FETCHING,
        ModelCachedReason.WAITING_FOR_MODEL,
        AvailableReason.MODEL_LOADING,
        AvailableReason.WAITING_FOR_PODS,
        ReconcilingReason.PROGRESSING,
        ReadyReason.SUSPENDED,
        DraftReason.SPECULATION_DISABLED,
        TrainingReason.TRAINING,
        TrainingReason.WAITING_FOR_PLAN,
        TrainingReason.WAITING_FOR_PROMPTS,
        TrainingReason.WAITING_FOR_PODS,
        CanaryReason.STARTING,
        CanaryReason.EVALUATING,
    }
)
_CAUSES: Mapping[str, str] = {
    ScalingReason.PLANNED: ", as planned",
    ScalingReason.SCALING: ", as the load asks",
    ScalingReason.SCALING_LIMITED: ", as far as the limits of the spec go",
    ScalingReason.EXTERNALLY_MANAGED: ", as spec.replicas asks",
    ScalingReason.IDLE: ", as no request came for long",
    ScalingReason.SUSPENDED: ", as spec.suspend asks",
}


@dataclass(frozen=True, slots=True)
class Transition:
    """One thing that happened, as an Event reports it."""

    is_warning: bool
    reason: str  # one word
    message: str  # a sentence


def transitions(old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[Transition]:
    """Yield what happened between two statuses as the API server holds them; nothing where they agree."""
    plan = new.get("plan") or {}
    if plan.get("hash") not in (None, (old.get("plan") or {}).get("hash")):
        yield Transition(False, "Planned", _describe_plan(plan, old.get("plan") or {}))
    before = old.get("scaleHistory") or []
    for event in new.get("scaleHistory") or []:
        if event not in before:
            reason = "ScaledUp" if event["to"] > event["from"] else "ScaledDown"
            cause = _CAUSES.get(event["reason"], "")
            yield Transition(False, reason, f"From {event['from']} to {event['to']} replicas{cause}.")
    conditions, reported = (_by_type(old), _by_type(new)), set[str]()
    last_text, text = (
        (found.get(ConditionType.SCALING_ACTIVE) or {}).get("message", "") for found in conditions
    )
    if NOT_FOLLOWED in text and NOT_FOLLOWED not in last_text:  # whoever scaled it sees no other answer
        yield Transition(True, "ReplicasNotFollowed", text)
    for kind in (*STEPS, *ALARMS, ConditionType.STALLED):
        last, condition = (found.get(kind) for found in conditions)
        if condition is not None and condition["reason"] not in reported and _is_news(kind, last, condition):
            reported.add(condition["reason"])  # of two conditions for one cause, the first
            is_warning = kind == ConditionType.STALLED or not _is_well(condition)
            yield Transition(is_warning, condition["reason"], condition["message"])


def _is_news(kind: ConditionType, last: Mapping[str, Any] | None, new: Mapping[str, Any]) -> bool:
    """Whether a condition has changed so that a person would want to read of it."""
    if last is not None and (last["status"], last["reason"]) == (new["status"], new["reason"]):
        return False
    if kind == ConditionType.STALLED:
        return bool(new["status"] == "True")
    if kind in ALARMS:
        return new["status"] == "False" or (last is not None and last["status"] == "False")
    return last is None or last["status"] != new["status"] or new["reason"] not in EXPECTED


def _is_well(condition: Mapping[str, Any]) -> bool:
    return condition["status"] == "True" or condition["reason"] in EXPECTED


def _describe_plan(plan: Mapping[str, Any], last: Mapping[str, Any]) -> str:
    """Say what pods are made of now, and what has changed where the plan itself has not."""
    names = ("engine", "accelerator", "capacityType", "acceleratorsPerReplica", "method", "maxDraftTokens")
    count, cost = plan.get("acceleratorsPerReplica") or 1, (plan.get("predicted") or {}).get("costPerHour")
    pods = f"{count} x {plan.get('accelerator')}" if count > 1 else plan.get("accelerator")
    replicas = plan.get("replicas") or 0
    message = (
        f"Plan {plan.get('hash')}: {replicas} {'replica' if replicas == 1 else 'replicas'} of engine "
        f"{plan.get('engine')} on {pods}, drafts {plan.get('method')}"
    )
    message += f", {cost} $/h." if cost else "."
    if last.get("hash") and all(plan.get(name) == last.get(name) for name in names):
        message += " All this is as before; the model, image, arguments or pod template differ."
    return message


def _by_type(status: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    return {condition["type"]: condition for condition in status.get("conditions") or ()}
