"""The serving plan of an object's status, where it is not the plan of the spec. Pure."""

from __future__ import annotations

from typing import Any

from turbo_operator.api import ConditionType, PlanStatus, RolloutReason, TurboDeployment
from turbo_operator.api.conditions import sentence


def is_apart(td: TurboDeployment) -> bool:
    """Whether the serving plan is not the plan of the spec."""
    plan, serving = td.status.plan, td.status.serving_plan
    return serving is not None and plan is not None and plan.hash != serving.hash


def sentences(td: TurboDeployment) -> tuple[str, ...]:
    """Describe both plans with hash, reason and predictions; empty where they are the same."""
    plan, serving, rollout = td.status.plan, td.status.serving_plan, td.status.rollout
    if plan is None or serving is None or not is_apart(td):
        return ()
    stalled = td.status.condition(ConditionType.STALLED)
    state = "waits to take over" if stalled is not None and stalled.status == "True" else "takes over"
    if rollout is not None and rollout.reason == RolloutReason.ROLLED_BACK:
        state = f"was rolled back ({sentence(rollout.message) or 'its pods did not become ready.'})"
    return (
        f"Plan {plan.hash} {state}: {_described(plan)}",
        f"Plan {serving.hash} serves: {_described(serving)}",
    )


def as_document(td: TurboDeployment) -> dict[str, Any]:
    """Return the same as plain data."""
    return {
        "tried": td.status.plan and _plain(td.status.plan),
        "serving": td.status.serving_plan and _plain(td.status.serving_plan),
        "rollout": td.status.rollout and td.status.rollout.dump(),
    }


def _described(plan: PlanStatus) -> str:
    predicted = plan.predicted
    figures = [
        f"{value} {what}"
        for what, value in (
            ("per output token", predicted.time_per_output_token if predicted else None),
            ("to the first", predicted.time_to_first_token if predicted else None),
            ("$/h", predicted.cost_per_hour if predicted else None),
        )
        if value is not None
    ]
    what = f"{plan.accelerator or 'an unknown accelerator'} with {plan.method or 'unknown'} drafts"
    why = plan.reason or "unknown"
    return f"{what}, as {why}; predicted {', '.join(figures) or 'nothing'}."


def _plain(plan: PlanStatus) -> dict[str, Any]:
    return {name: value for name, value in plan.dump().items() if name != "rejected"}
