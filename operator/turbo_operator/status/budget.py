"""The status of a TurboBudget. Pure."""

from __future__ import annotations

from collections.abc import Mapping

from turbo_operator import api
from turbo_operator.api import ConditionType, WithinBudgetReason
from turbo_operator.api.condition_state import ConditionState, false, true, unknown
from turbo_operator.commitments import Amount, Budget, Entry
from turbo_operator.planner import money
from turbo_operator.status.timestamps import stamp

MAX_DEPLOYMENTS = 100  # that a status names


def budget_status(
    budget: Budget, held: Amount, committed: Amount, entries: Mapping[str, Entry], now: float
) -> api.TurboBudgetStatus:
    """Return what is taken of a budget: the sums of its namespace, and its entries by TurboDeployment."""
    largest = sorted(
        ((name, entry.committed) for name, entry in entries.items() if entry.committed.total),
        key=lambda row: (-row[1].per_hour, -row[1].total, row[0]),
    )
    return api.TurboBudgetStatus(
        observed_generation=budget.generation,
        in_use=_use(held),
        committed=_use(committed),
        deployments=tuple(
            api.DeploymentUse(name=name, per_hour=money(amount.per_hour), accelerators=amount.total)
            for name, amount in largest[:MAX_DEPLOYMENTS]
        ),
        conditions=stamp(
            {ConditionType.WITHIN_BUDGET: _within(budget, committed)},
            budget.conditions,
            budget.generation,
            now,
        ),
    )


def _use(amount: Amount) -> api.BudgetUse:
    return api.BudgetUse(per_hour=money(amount.per_hour), accelerators=amount.total)


def _within(budget: Budget, committed: Amount) -> ConditionState:
    """Whether all that is committed is within every limit."""
    reason, clause = budget.check(committed)
    if reason == WithinBudgetReason.WITHIN_BUDGET:
        return true(reason, "All that is committed is within the limits.")
    if reason == WithinBudgetReason.BUDGET_EXCEEDED:
        return false(reason, f"{clause}, and more is taken: nothing starts until there is room again.")
    remedy = {
        WithinBudgetReason.PRICE_UNKNOWN: "write spec.pricing.perAcceleratorHour on that TurboAccelerator",
        WithinBudgetReason.BUDGET_UNREADABLE: "apply it again as the API of this version has it",
    }[reason]
    return unknown(reason, f"{clause}: {remedy}. Nothing starts till then.")
