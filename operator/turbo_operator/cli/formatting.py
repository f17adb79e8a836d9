"""Candidates and figures in the words of tables, plots and documents. Pure."""

from __future__ import annotations

from decimal import Decimal

from turbo_operator.api import CapacityType, EngineName, Training
from turbo_operator.api.conditions import ConditionState
from turbo_operator.drafts.training import chosen
from turbo_operator.plan import Choice, EvaluatedCandidate, Plan, Rejected
from turbo_operator.planner import money

UNKNOWN = "-"
_USUAL = {EngineName.TURBO, CapacityType.ON_DEMAND}


def candidate(row: Choice | Rejected | EvaluatedCandidate) -> str:
    """Name the accelerators of a replica and what is unusual, like `h100 x8, VLLM, Spot`, or `h100 2 x 8` on
    two nodes.
    """
    name = row.accelerator if isinstance(row.accelerator, str) else row.accelerator.name
    if row.nodes > 1:
        name += f" {row.nodes} x {row.tensor}"
    elif row.tensor > 1:
        name += f" x{row.tensor}"
    return ", ".join([name, *(str(word) for word in (row.engine, row.capacity_type) if word not in _USUAL)])


def trained_on(spec: Training, answer: Plan) -> str:
    """Say what a draft is trained on and what that costs at most, or why it is not."""
    choice = chosen(spec, answer)
    if isinstance(choice, ConditionState):
        return choice.message
    price, limit = choice.predicted.cost_per_hour, spec.max_cost
    cost = "" if price is None else f" for {money(price)} $/h"
    bound = "" if limit is None or not price else f", for {money(limit)} $ or {limit / price:.3g} h at most"
    return f"A draft is trained on {choice.accelerator.name}{cost}{bound}."


def duration(seconds: float | None) -> str:
    """Format seconds to three digits, like 23.4 ms or 1.25 s."""
    if seconds is None:
        return UNKNOWN
    return f"{seconds * 1000:.3g} ms" if seconds < 0.9995 else f"{seconds:.3g} s"


def rate(per_second: float | None) -> str:
    """Format tokens per second, whole from ten on."""
    if per_second is None:
        return UNKNOWN
    return f"{per_second:,.0f}" if per_second >= 10 else f"{per_second:.2g}"


def dollars(amount: Decimal | None) -> str:
    """Format money; a dash where it is unknown."""
    return UNKNOWN if amount is None else money(amount)


def signed(amount: Decimal) -> str:
    """Format a difference of money with its sign, like +1.25, -0.40 or 0.00."""
    sign = "+" if amount > 0 else "-" if amount < 0 else ""
    return f"{sign}{money(abs(amount))}"
