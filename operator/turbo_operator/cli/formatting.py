"""Candidates and figures in few words, as tables, plots and documents show them. Pure."""

from __future__ import annotations

from decimal import Decimal

from turbo_operator.api import CapacityType, EngineName, Training
from turbo_operator.api.conditions import ConditionState
from turbo_operator.drafts.training import chosen
from turbo_operator.plan import Plan
from turbo_operator.planner import money

UNKNOWN = "-"
_USUAL = {EngineName.TURBO, CapacityType.ON_DEMAND}


def candidate(accelerator: str, tensor: int, nodes: int, engine: str, capacity_type: str) -> str:
    """An accelerator, how many make a replica, and what is unusual, like `h100 x8, VLLM, Spot`, or
    `h100 2 x 8` where they are on two nodes.
    """
    together = accelerator if tensor == 1 else f"{accelerator} x{tensor}"
    if nodes > 1:
        together = f"{accelerator} {nodes} x {tensor}"
    return ", ".join([together, *(str(word) for word in (engine, capacity_type) if word not in _USUAL)])


def trained_on(wanted: Training, answer: Plan) -> str:
    """What a draft is trained on and what that costs at most, or why on nothing."""
    found = chosen(wanted, answer)
    if isinstance(found, ConditionState):
        return found.message
    price, most = found.predicted.cost_per_hour, wanted.max_cost
    cost = "" if price is None else f" for {money(price)} $/h"
    bound = "" if most is None or not price else f", for {money(most)} $ or {most / price:.3g} h at most"
    return f"A draft is trained on {found.accelerator.name}{cost}{bound}."


def duration(seconds: float | None) -> str:
    """Seconds to three digits, like 23.4 ms or 1.25 s."""
    if seconds is None:
        return UNKNOWN
    return f"{seconds * 1000:.3g} ms" if seconds < 0.9995 else f"{seconds:.3g} s"


def rate(per_second: float | None) -> str:
    """A number of tokens per second, whole from ten on."""
    if per_second is None:
        return UNKNOWN
    return f"{per_second:,.0f}" if per_second >= 10 else f"{per_second:.2g}"


def dollars(amount: Decimal | None) -> str:
    """Money; a dash where it is unknown."""
    return UNKNOWN if amount is None else money(amount)


def signed(amount: Decimal) -> str:
    """A difference of money with its sign, like +1.25, -0.40 or 0.00."""
    sign = "+" if amount > 0 else "-" if amount < 0 else ""
    return f"{sign}{money(abs(amount))}"
