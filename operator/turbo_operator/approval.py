"""Which plans may take effect: with spec.planPolicy.apply Manual, those that somebody has approved. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from turbo_operator import api
from turbo_operator.api.condition_state import ConditionState, false, true, unknown
from turbo_operator.plan import Plan


@dataclass(frozen=True, slots=True)
class Approval:
    """What is made of the planner's plan; `condition` is None where plans take effect by themselves."""

    condition: ConditionState | None = None
    pending: str | None = None  # hash of the plan that waits
    holds: bool = False  # it waits, and what runs is not of the spec as it is


NO_APPROVAL = Approval()


def is_approved(td: api.TurboDeployment, plan_hash: str) -> bool:
    """Whether a plan may take effect: one that has, or that somebody has approved by its hash."""
    if td.spec.plan_policy.apply != "Manual":
        return True
    serving = td.status.serving_plan
    approved = td.metadata.annotations.get(api.ANNOTATION_APPROVED_PLAN)
    return plan_hash in (approved, serving.hash if serving is not None else None)


def decide_approval(
    td: api.TurboDeployment, plan_hash: str | None, best: Plan | None, best_hash: str | None
) -> Approval:
    """Decide on `best`, the planner's plan; `plan_hash` is that of the plan in force, for what runs."""
    if td.spec.plan_policy.apply != "Manual":
        return NO_APPROVAL
    if best is None or best.served is None or best_hash is None:
        message = "There is no feasible plan to approve."
        return Approval(unknown(api.PlanApprovedReason.WAITING_FOR_PLAN, message))
    if is_approved(td, best_hash):
        return Approval(true(api.PlanApprovedReason.APPROVED, f"Plan {best_hash} is approved."))
    name = td.metadata.name
    message = f"Plan {best_hash} waits for `turbo approve {name}`. {best.detail}"
    condition = false(api.PlanApprovedReason.WAITING_FOR_APPROVAL, message)
    return Approval(condition, best_hash, plan_hash is None or not is_approved(td, plan_hash))
