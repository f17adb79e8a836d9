"""A mixture of accelerators for one demand, told where it would cost less. Pure."""

from __future__ import annotations

from decimal import Decimal

import numpy as np

from turbo_operator.api import Objective, PlanReason
from turbo_operator.plan import Rejected
from turbo_operator.planner import mixture
from turbo_operator.planner.availability import MICRO
from turbo_operator.planner.evaluation import PlanEvaluation
from turbo_operator.planner.explanation import messages


def together(of: PlanEvaluation, best: int) -> Rejected | None:
    """A mixture of accelerators that would cost less than the chosen one: no route weighs two kinds yet."""
    asked, terms = of.request, of.stock
    demand, serves = asked.demand.rate, of.speeds.requests_per_second
    if asked.demand.concurrency is not None:
        demand, serves = float(asked.demand.concurrency), of.speeds.concurrency
    bounded = asked.max_total is not None or asked.demand.tokens_per_second is not None
    if demand is None or asked.external or asked.objective != Objective.COST or bounded:
        return None
    if any(each.price_per_node for each in of.it.accelerators):
        return None
    one = terms.cost(np.ones(len(terms.price)))
    rate = serves[terms.candidate]
    able = (~of.lacking & of.room.fits & of.profiled)[terms.candidate] & (rate > 0.0) & ~np.isnan(one)
    kinds: dict[str, tuple[int, mixture.Kind]] = {}
    pairs = np.flatnonzero(able)
    for pair in pairs[np.argsort(one[pairs] / rate[pairs], kind="stable")].tolist():
        name = of.it.accelerator_of(int(terms.candidate[pair])).name
        most = int(min(terms.room[pair], asked.most))
        kinds.setdefault(name, (pair, mixture.Kind(name, float(rate[pair]), float(one[pair]), most)))
    offered = list(kinds.values())
    counts = mixture.cheapest([kind for _, kind in offered], demand, float(of.verdict.cost[best]))
    if counts is None or not asked.fewest <= sum(counts) <= asked.most or sum(map(bool, counts)) < 2:
        return None
    parts = [(number, kind, pair) for number, (pair, kind) in zip(counts, offered, strict=True) if number]
    cost = sum(number * kind.price for number, kind, _ in parts) / MICRO
    said = messages.joined(
        [f"{messages.count(number, 'replica')} of {kind.name}" for number, kind, _ in parts]
    )
    _, kind, pair = parts[0]
    return Rejected(
        accelerator=kind.name,
        tensor=1,
        method=of.it.draft_of(int(terms.candidate[pair])).method,
        reason=PlanReason.NOT_YET_SUPPORTED,
        detail=(
            f"Together {said} would do for {messages.money(Decimal(str(round(cost, 6))))} $/h, but serving "
            "one TurboDeployment on more than one class is not supported yet."
        ),
        replicas=sum(counts),
    )
