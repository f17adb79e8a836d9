"""The cheapest candidate that misses the demands by little, or the one that misses by least. Pure."""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal

import numpy as np

from turbo_operator.api import Objective, PlanReason
from turbo_operator.plan import Rejected
from turbo_operator.planner.candidates import Indices
from turbo_operator.planner.demand import Bound, Demand
from turbo_operator.planner.evaluation import PlanEvaluation, reconsidered
from turbo_operator.planner.explanation import messages
from turbo_operator.planner.explanation.rejection_messages import words
from turbo_operator.planner.explanation.rejections import row
from turbo_operator.planner.feasibility import bucket
from turbo_operator.planner.performance.prediction import alone, predicted

LITTLE = Decimal("1.25")  # a candidate misses by little where all bounds times this would take it


def nearest(of: PlanEvaluation, best: int | None) -> Rejected | None:
    """The cheapest that misses by little: the best one were every bound a quarter wider."""
    asked = of.request
    wider = replace(
        asked,
        demand=_relaxed(asked.demand),
        max_per_hour=asked.max_per_hour and asked.max_per_hour * LITTLE,
        max_per_million=asked.max_per_million and asked.max_per_million * LITTLE,
        objective=Objective.COST,
    )
    if not (asked.targets or asked.max_per_hour or asked.max_per_million):
        return None
    places = _promising(of, best)
    if not len(places):
        return None
    loose = reconsidered(of, wider, places)
    found = loose.first_feasible()
    if found is None:
        return None
    if best is not None and not loose.compared[found] < of.compared[best]:
        return None
    # As many as the load needs, whoever decides on them: with fewer it would miss by more than a little.
    replicas = np.maximum(loose.verdict.replicas, loose.verdict.wanted)[[found]]
    (does,) = predicted(loose, np.array([found]), replicas)
    if does is None:
        return None
    missed = messages.misses(asked, does)
    if not missed:
        return None
    place = int(loose.stock.candidate[found])
    count, price = int(replicas[0]), does.cost_per_hour
    pods = messages.count(count, "replica")
    paid = "" if price is None else f"cost {messages.money(price)} $/h and "
    detail = f"{pods} of {words(loose.it, place)} would {paid}{messages.joined(missed)}."
    over = all("spec.cost" in each for each in missed)
    return Rejected(
        accelerator=loose.it.accelerator_of(place).name,
        tensor=int(loose.it.tensor[place]),
        method=loose.it.draft_of(place).method,
        reason=PlanReason.OVER_BUDGET if over else PlanReason.TARGET_UNREACHABLE,
        detail=detail,
        engine=loose.it.engine_of(place).name,
        capacity_type=asked.capacity_types[loose.stock.capacity_type[found]],
        nodes=int(loose.it.nodes[place]),
        replicas=count,
        predicted=does,
    )


def least_missed(of: PlanEvaluation) -> Rejected | None:
    """The candidate that alone with one request is least above its worst latency bound; None if none is."""
    asked = of.request
    bounds = (asked.demand.time_to_first_token, asked.demand.time_per_output_token)
    if not asked.targets:
        return None
    unreached = of.verdict.is_(PlanReason.TARGET_UNREACHABLE) & ~of.lacking[of.stock.candidate]
    pairs = np.flatnonzero(unreached & ~(of.speeds.requests_per_second > 0.0)[of.stock.candidate])
    if not len(pairs):
        return None
    engines, _ = of.engines(of.stock.candidate[pairs])
    first, token = alone(engines, asked.demand)
    ratio = np.max(
        [
            value / bound.seconds
            for bound, value in zip(bounds, (first, token), strict=True)
            if bound is not None
        ],
        axis=0,
    )
    cost = np.nan_to_num(of.compared[pairs], nan=np.inf)
    found = int(pairs[np.lexsort((cost, bucket(ratio)))[0]])
    replicas = of.verdict.told[[found]]
    (does,) = predicted(of, np.array([found]), replicas)
    return row(of, found, None, does)


def _promising(of: PlanEvaluation, best: int | None) -> Indices:
    """Candidates that may be chosen and could cost less than the best one."""
    able = ~of.lacking & of.room.fits
    if best is not None:
        fewest = np.full(len(of.stock.price), float(of.request.fewest))
        cheaper = of.stock.cost(fewest) < of.compared[best]
        might = np.zeros(len(of.it), bool)
        might[of.stock.candidate[cheaper]] = True
        able &= might
    return np.flatnonzero(able)


def _relaxed(demand: Demand) -> Demand:
    """With every latency bound a quarter wider."""

    def wider(bound: Bound | None) -> Bound | None:
        return bound and replace(bound, seconds=bound.seconds * float(LITTLE))

    return replace(
        demand,
        time_to_first_token=wider(demand.time_to_first_token),
        time_per_output_token=wider(demand.time_per_output_token),
    )
