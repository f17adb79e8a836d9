"""The cheapest mixture of accelerators for one demand, and its report where it would cost less. Pure.

    minimize sum of price_i n_i  with  sum of serves_i n_i >= demand,  0 <= n_i <= max_i whole

Branch and bound over single-accelerator plans, tried in the order of price for what they serve; the
relaxation that buys fractions of the best remaining kinds bounds what a branch can still reach.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from decimal import Decimal
from typing import NamedTuple

import numpy as np

from turbo_operator.api import Objective, PlanReason
from turbo_operator.plan import EvaluatedCandidate
from turbo_operator.planner.evaluation import PlanEvaluation
from turbo_operator.planner.explanation import messages
from turbo_operator.planner.feasibility import MICRO

MAX_BRANCHES = 4000  # the best mixture by then is a mixture all the same
TOLERANCE = 1e-9  # fraction of the demand that may be missing for the last bits of floats


class Kind(NamedTuple):
    """What one replica of a plan serves and costs."""

    name: str
    serves: float  # of the demand, in its unit
    price: float  # per hour, in any unit of money
    max_replicas: int


def find_cheapest(kinds: Sequence[Kind], demand: float, below: float = math.inf) -> tuple[int, ...] | None:
    """Find the replicas of each kind, in the order given; None where no mixture costs less than `below`."""
    useful = [place for place, kind in enumerate(kinds) if kind.serves > 0 and kind.max_replicas > 0]
    order = sorted(useful, key=lambda place: (kinds[place].price / kinds[place].serves, place))
    best: tuple[int, ...] | None = None
    cheapest, branches = below, MAX_BRANCHES

    def bound(depth: int, demand: float) -> float:
        """Return the minimum that the rest can cost, were replicas divisible."""
        cost = 0.0
        for place in order[depth:]:
            number = min(kinds[place].max_replicas, demand / kinds[place].serves)
            cost += number * kinds[place].price
            demand -= number * kinds[place].serves
            if demand <= TOLERANCE:
                return cost
        return math.inf

    def branch(depth: int, demand: float, spent: float, taken: tuple[int, ...]) -> None:
        """Try every number of the kind at `depth`, the largest first."""
        nonlocal cheapest, best, branches
        if demand <= TOLERANCE:
            if spent < cheapest:
                cheapest, best = spent, taken
            return
        if depth == len(order) or branches <= 0 or spent + bound(depth, demand) >= cheapest:
            return
        branches -= 1
        kind = kinds[order[depth]]
        enough = min(kind.max_replicas, math.ceil(demand / kind.serves * (1.0 - TOLERANCE)))
        for number in range(enough, -1, -1):
            remaining = demand - number * kind.serves
            remaining = 0.0 if remaining <= TOLERANCE * max(1.0, demand) else remaining
            branch(depth + 1, remaining, spent + number * kind.price, (*taken, number))

    branch(0, demand, 0.0, ())
    if best is None:
        return None
    counts = dict(zip(order, best, strict=False))
    return tuple(counts.get(place, 0) for place in range(len(kinds)))


def suggest_mixture(evaluation: PlanEvaluation, best: int) -> EvaluatedCandidate | None:
    """Report a mixture that would cost less than the chosen pair: no route weights two accelerators yet."""
    requirements, availability = evaluation.requirements, evaluation.availability
    demand, serves = requirements.demand.rate, evaluation.speeds.requests_per_second
    if requirements.demand.concurrency is not None:
        demand, serves = float(requirements.demand.concurrency), evaluation.speeds.concurrency
    limits = (requirements.accelerators.max_total, requirements.demand.tokens_per_second)
    is_bounded = requirements.external or any(limit is not None for limit in limits)
    is_whole = any(row.price_per_node for row in evaluation.candidates.accelerators)
    if demand is None or is_bounded or is_whole or requirements.objective != Objective.COST:
        return None
    price, rate = availability.cost(np.ones(len(availability.price))), serves[availability.candidate]
    able = (~evaluation.lacking & evaluation.memory_use.fits & evaluation.profiled)[availability.candidate]
    indices = np.flatnonzero(able & (rate > 0.0) & ~np.isnan(price))
    kinds: dict[str, tuple[Kind, str]] = {}  # with its method
    for index in indices[np.argsort(price[indices] / rate[indices], kind="stable")].tolist():
        pair = evaluation.pair(index)
        limit = int(min(availability.room[index], requirements.max_replicas))
        kind = Kind(pair.accelerator.name, float(rate[index]), float(price[index]), limit)
        kinds.setdefault(kind.name, (kind, pair.draft.method))
    counts = find_cheapest([kind for kind, _ in kinds.values()], demand, float(evaluation.verdict.cost[best]))
    if counts is None or sum(map(bool, counts)) < 2:
        return None
    if not requirements.min_replicas <= sum(counts) <= requirements.max_replicas:
        return None
    parts = [(number, *kind) for number, kind in zip(counts, kinds.values(), strict=True) if number]
    cost = Decimal(str(round(sum(number * kind.price for number, kind, _ in parts) / MICRO, 6)))
    pods = [f"{messages.count(number, 'replica')} of {kind.name}" for number, kind, _ in parts]
    detail = (
        f"Together {messages.join(pods)} would do for {messages.money(cost)} $/h, but "
        "serving one TurboDeployment on more than one class is not supported yet."
    )
    _, first, method = parts[0]
    return EvaluatedCandidate(
        first.name, 1, method, reason=PlanReason.NOT_YET_SUPPORTED, detail=detail, replicas=sum(counts)
    )
