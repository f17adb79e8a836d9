"""The cheapest mixture of accelerators for one demand, and its report where it would cost less. Pure.

    minimize sum of price_i n_i  with  sum of serves_i n_i >= demand,  0 <= n_i <= max_i whole

Branch and bound over single-accelerator plans, tried in the order of price for what they serve; the
relaxation that buys fractions of the best remaining kinds bounds what a branch can still reach.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal

import numpy as np

from turbo_operator.api import Objective, PlanReason
from turbo_operator.plan import Rejected
from turbo_operator.planner.evaluation import PlanEvaluation
from turbo_operator.planner.explanation import messages
from turbo_operator.planner.feasibility import MICRO

MAX_BRANCHES = 4000  # the best mixture by then is a mixture all the same
TOLERANCE = 1e-9  # fraction of the demand that may be missing for the last bits of floats


@dataclass(frozen=True, slots=True)
class Kind:
    """What one replica of a plan serves and costs."""

    name: str
    serves: float  # of the demand, in its unit
    price: float  # per hour, in any unit of money
    max_replicas: int


def find_cheapest(kinds: Sequence[Kind], demand: float, below: float = math.inf) -> tuple[int, ...] | None:
    """Find the replicas of each kind, in the order given; None where no mixture costs less than `below`."""
    order = sorted(
        (place for place, kind in enumerate(kinds) if kind.serves > 0 and kind.max_replicas > 0),
        key=lambda place: (kinds[place].price / kinds[place].serves, place),
    )
    search = _Search([kinds[place] for place in order], below)
    search.branch(0, demand, 0.0, [])
    if search.best is None:
        return None
    best = dict(zip(order, search.best, strict=False))
    return tuple(best.get(place, 0) for place in range(len(kinds)))


class _Search:
    def __init__(self, kinds: Sequence[Kind], below: float) -> None:
        self.kinds = kinds
        self.cost = below
        self.best: list[int] | None = None
        self.branches = MAX_BRANCHES

    def branch(self, depth: int, demand: float, spent: float, taken: list[int]) -> None:
        """Try every number of the kind at `depth`, the largest first."""
        if demand <= TOLERANCE:
            if spent < self.cost:
                self.cost, self.best = spent, list(taken)
            return
        if depth == len(self.kinds) or self.branches <= 0 or spent + self.bound(depth, demand) >= self.cost:
            return
        self.branches -= 1
        kind = self.kinds[depth]
        enough = min(kind.max_replicas, math.ceil(demand / kind.serves * (1.0 - TOLERANCE)))
        for number in range(enough, -1, -1):
            remaining = demand - number * kind.serves
            remaining = 0.0 if remaining <= TOLERANCE * max(1.0, demand) else remaining
            self.branch(depth + 1, remaining, spent + number * kind.price, [*taken, number])

    def bound(self, depth: int, demand: float) -> float:
        """Return the minimum that the rest can cost, were replicas divisible."""
        cost = 0.0
        for kind in self.kinds[depth:]:
            number = min(kind.max_replicas, demand / kind.serves)
            cost += number * kind.price
            demand -= number * kind.serves
            if demand <= TOLERANCE:
                return cost
        return math.inf


def suggest_mixture(evaluation: PlanEvaluation, best: int) -> Rejected | None:
    """Report a mixture that would cost less than the chosen pair: no route weights two accelerators yet."""
    requirements, availability = evaluation.requirements, evaluation.availability
    demand, serves = requirements.demand.rate, evaluation.speeds.requests_per_second
    if requirements.demand.concurrency is not None:
        demand, serves = float(requirements.demand.concurrency), evaluation.speeds.concurrency
    bounded = requirements.max_total is not None or requirements.demand.tokens_per_second is not None
    if demand is None or requirements.external or requirements.objective != Objective.COST or bounded:
        return None
    if any(row.price_per_node for row in evaluation.candidates.accelerators):
        return None
    price = availability.cost(np.ones(len(availability.price)))
    rate = serves[availability.candidate]
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
    cost = sum(number * kind.price for number, kind, _ in parts) / MICRO
    mixture = messages.join(
        [f"{messages.count(number, 'replica')} of {kind.name}" for number, kind, _ in parts]
    )
    _, first, method = parts[0]
    return Rejected(
        accelerator=first.name,
        tensor=1,
        method=method,
        reason=PlanReason.NOT_YET_SUPPORTED,
        detail=(
            f"Together {mixture} would do for {messages.money(Decimal(str(round(cost, 6))))} $/h, but "
            "serving one TurboDeployment on more than one class is not supported yet."
        ),
        replicas=sum(counts),
    )
