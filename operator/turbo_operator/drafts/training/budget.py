"""The money of a training: what is left of it, and what is told when it is spent. Pure."""

from __future__ import annotations

from decimal import Decimal

from turbo_operator.api import Training, TrainingReason, TrainingStatus, rfc3339
from turbo_operator.api.conditions import ConditionState
from turbo_operator.drafts.training.progress import counted, spent
from turbo_operator.drafts.training.step import TrainingDecision

LEAST_SECONDS = 60  # that a Job must have: what is left of the money buys no less


def bought_seconds(training: Training, state: TrainingStatus, now: float) -> int | None:
    """What the money that is left buys; None where nothing bounds it."""
    if training.max_cost is None or state.cost_per_hour is None or not Decimal(state.cost_per_hour):
        return None
    left = max(Decimal(0), training.max_cost - spent(state, now))
    return min(int(left / Decimal(state.cost_per_hour) * 3600), 2**31 - 1)


def over_budget(training: Training, state: TrainingStatus, now: float) -> TrainingDecision:
    """The money is spent."""
    paid = f"{spent(state, now):.2f}"
    message = (
        f"Training {state.number} on {state.accelerator} has cost {paid} $ of maxCost {training.max_cost}, "
        "and what is left buys no minute more: raise spec.speculation.training.maxCost, and it goes on where "
        "it is."
    )
    return ended(state, TrainingReason.OVER_BUDGET, message, now)


def ended(state: TrainingStatus, reason: TrainingReason, message: str, now: float) -> TrainingDecision:
    """It ended badly."""
    update = {"result": reason, "message": message, "ended": rfc3339(now), "progress": None, "left": None}
    return TrainingDecision(
        ConditionState("False", reason, message), counted(state, now).model_copy(update=update)
    )
