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
    ModelInspectedReason,
    ReadyReason,
    ReconcilingReason,
    TrainingReason,
)

# Conditions of which every step is told, and others that are told where they turn bad or good again.
STEPS = (ConditionType.READY, ConditionType.DRAFT_TRAINED, ConditionType.DRAFT_PROMOTED)
ALARMS = (ConditionType.WITHIN_BUDGET, ConditionType.DRAFT_READY)
# What is no failure although it is not there yet.
EXPECTED = frozenset[str](
    {
        ModelInspectedReason.INSPECTING,
        AvailableReason.MODEL_LOADING,
        ReconcilingReason.PROGRESSING,
        ReadyReason.SUSPENDED,
        DraftReason.SPECULATION_DISABLED,
        TrainingReason.TRAINING,
        TrainingReason.WAITING_FOR_PLAN,
        TrainingReason.WAITING_FOR_PROMPTS,
        CanaryReason.STARTING,
        CanaryReason.EVALUATING,
    }
)


@dataclass(frozen=True, slots=True)
class Transition:
    """One thing that happened, as an Event tells it."""

    is_warning: bool
    reason: str  # one word
    message: str  # a sentence


def transitions(old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[Transition]:
    """Yield what happened between two statuses as the API server holds them; nothing where they agree."""
    plan = new.get("plan") or {}
    if plan.get("hash") not in (None, (old.get("plan") or {}).get("hash")):
        yield Transition(False, "Planned", plan.get("message", ""))
    conditions = _by_type(old), _by_type(new)
    before = old.get("scaleHistory") or []
    for event in new.get("scaleHistory") or []:
        if event not in before:
            scaling = conditions[1].get(ConditionType.SCALING_ACTIVE) or {}
            reason = "ScaledUp" if event["to"] > event["from"] else "ScaledDown"
            why = f" {scaling['message']}" if scaling.get("reason") == event["reason"] else ""
            yield Transition(False, reason, f"From {event['from']} to {event['to']} replicas.{why}")
    for kind in (*STEPS, *ALARMS):
        last, condition = (found.get(kind) for found in conditions)
        if condition is None or (last is not None and _step(last) == _step(condition)):
            continue
        status, reason = _step(condition)
        if kind in ALARMS and status != "False" and (last is None or last["status"] != "False"):
            continue
        yield Transition(status != "True" and reason not in EXPECTED, reason, condition["message"])


def _by_type(status: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    return {condition["type"]: condition for condition in status.get("conditions") or ()}


def _step(condition: Mapping[str, Any]) -> tuple[str, str]:
    return condition["status"], condition["reason"]
