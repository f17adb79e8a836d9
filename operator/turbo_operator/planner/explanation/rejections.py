"""The rejected candidates worth reporting, and the one that comes nearest to the demands. Pure.

One row for each accelerator, capacity type and reason: a second candidate that fails alike says nothing new.
What is not supported yet is reported where it would do better than the plan, or where nothing else does.
"""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal

import numpy as np

from turbo_operator.api import Objective, PlanReason
from turbo_operator.plan import Predicted, Rejected
from turbo_operator.planner.arrays import Indices, Numbers
from turbo_operator.planner.evaluation import PlanEvaluation, could_cost_less, reevaluate
from turbo_operator.planner.explanation import messages
from turbo_operator.planner.explanation.rejection_messages import explain
from turbo_operator.planner.feasibility import CODES, bucket
from turbo_operator.planner.performance.prediction import predict, unloaded_latency
from turbo_operator.planner.requirements import Bound, Demand

# Which rejection comes closest to a plan, so that the condition names the one worth acting on.
NEAREST = (
    PlanReason.HIGHER_COST,
    PlanReason.NOT_PREFERRED,
    PlanReason.BUDGET_EXCEEDED,
    PlanReason.INSUFFICIENT_CAPACITY,
    PlanReason.TARGET_UNREACHABLE,
    PlanReason.PRICE_UNKNOWN,
    PlanReason.NOT_YET_SUPPORTED,
    PlanReason.INSUFFICIENT_MEMORY,
    PlanReason.INVALID_PARALLELISM,
    PlanReason.PERFORMANCE_UNKNOWN,
)
EVERYWHERE = (PlanReason.INSUFFICIENT_MEMORY, PlanReason.PERFORMANCE_UNKNOWN)  # whatever the capacity type

Key = tuple[int, int, PlanReason]  # accelerator, capacity type, reason


def list_rejected(
    evaluation: PlanEvaluation, best: int | None, count: int
) -> tuple[tuple[Rejected, ...], Predicted | None]:
    """List the rejected rows, the first ones worth reading, and predict what `count` replicas of `best` do.

    Predicts all of them together, since a call has a cost of its own.
    """
    rank = np.empty(len(evaluation.order))
    rank[evaluation.order] = np.arange(len(evaluation.order))
    indices = _worth_reporting(evaluation, best, rank)
    chosen = np.array([] if best is None else [best], np.int64)
    replicas = np.append(evaluation.verdict.reported[indices], np.full(len(chosen), float(count)))
    predictions = predict(evaluation, np.append(indices, chosen), replicas)
    rows = [
        (index, reject(evaluation, index, best, predicted))
        for index, predicted in zip(indices.tolist(), predictions, strict=False)
    ]
    rows.sort(key=lambda row: (_distance(evaluation, row[1], row[0]), rank[row[0]]))
    return tuple(row for _, row in rows), None if best is None else predictions[-1]


def reject(evaluation: PlanEvaluation, index: int, best: int | None, predicted: Predicted | None) -> Rejected:
    """Reject one pair with its reason; `predicted` is what its replicas do."""
    replicas = int(evaluation.verdict.reported[index])
    return evaluation.pair(index).reject(*explain(evaluation, index, best), replicas, predicted)


def _distance(evaluation: PlanEvaluation, row: Rejected, index: int) -> tuple[int, bool]:
    """How far from a plan: what is not supported yet and fails as well is further than what only waits."""
    near, waits = NEAREST.index(PlanReason(row.reason)), NEAREST.index(PlanReason.NOT_YET_SUPPORTED)
    fails = _is_lacking(evaluation, index) and near != waits
    return max(near, waits) if fails else near, fails


def _is_lacking(evaluation: PlanEvaluation, index: int) -> bool:
    return bool(evaluation.lacking[evaluation.availability.candidate[index]])


def _worth_reporting(evaluation: PlanEvaluation, best: int | None, rank: Numbers) -> Indices:
    candidates, availability, verdict = evaluation.candidates, evaluation.availability, evaluation.verdict
    # Of those that fail alike reports the one that misses by least: what may be chosen before what may not,
    # and what was computed before what rests on an assumed acceptance.
    lacking = evaluation.lacking[availability.candidate] & ~verdict.has_reason(PlanReason.NOT_YET_SUPPORTED)
    with np.errstate(invalid="ignore"):
        near = np.floor(np.log(np.maximum(verdict.miss, 1.0)) / 0.05)
    assumed = candidates.by_draft(lambda draft: draft.gains, bool)[availability.candidate]
    first: dict[Key, int] = {}
    for index in np.lexsort((rank, near, assumed, lacking)).tolist():
        if index == best:
            continue
        reason = CODES[verdict.code[index]]
        kind = 0 if reason in EVERYWHERE else int(availability.capacity_type[index])
        accelerator = int(candidates.accelerator[availability.candidate[index]])
        first.setdefault((accelerator, kind, reason), index)
    reported = [
        index for key, index in first.items() if _is_worth_reporting(evaluation, key, first, best, rank)
    ]
    return np.array(reported, np.int64)


def _is_worth_reporting(
    evaluation: PlanEvaluation, key: Key, first: dict[Key, int], best: int | None, rank: Numbers
) -> bool:
    accelerator, kind, reason = key
    others = [other for other in first if other[0] == accelerator and other != key]
    chosen = evaluation.availability.candidate[best] if best is not None else None
    is_chosen = chosen is not None and evaluation.candidates.accelerator[chosen] == accelerator
    # Of what may be chosen and comes further than memory and profile.
    supported = [
        other for other in others if other[2] not in EVERYWHERE and not _is_lacking(evaluation, first[other])
    ]
    if reason == PlanReason.NOT_YET_SUPPORTED:
        return best is None or _is_better(evaluation, first[key], best, rank) or not (is_chosen or supported)
    if reason in EVERYWHERE:
        return not (is_chosen or {other[2] for other in others} - {PlanReason.INSUFFICIENT_MEMORY})
    if _is_lacking(evaluation, first[key]):
        return not (is_chosen or any(other[1] == kind for other in supported))
    return True


def _is_better(evaluation: PlanEvaluation, index: int, best: int, rank: Numbers) -> bool:
    """Whether a pair would be worth more than the chosen one, were it supported."""
    if evaluation.requirements.objective == Objective.COST:
        return bool(evaluation.compared_cost[index] < evaluation.compared_cost[best])
    return bool(rank[index] < rank[best])


LITTLE = Decimal("1.25")  # a candidate misses by little where all bounds times this would take it


def find_near_miss(evaluation: PlanEvaluation, best: int | None) -> Rejected | None:
    """Find the cheapest that misses by little: the best one were every bound a quarter wider."""
    requirements = evaluation.requirements
    per_hour, per_million = requirements.max_per_hour, requirements.max_per_million
    if not (requirements.demand.has_latency or per_hour or per_million):
        return None
    able = ~evaluation.lacking & evaluation.memory_use.fits
    if best is not None:
        able &= could_cost_less(evaluation, evaluation.compared_cost[best])
    if not able.any():
        return None
    wider = replace(
        requirements,
        demand=_relax(requirements.demand),
        max_per_hour=per_hour and per_hour * LITTLE,
        max_per_million=per_million and per_million * LITTLE,
        objective=Objective.COST,
    )
    relaxed = reevaluate(evaluation, wider, np.flatnonzero(able))
    index = relaxed.first_feasible
    if index is None:
        return None
    if best is not None and not relaxed.compared_cost[index] < evaluation.compared_cost[best]:
        return None
    # As many as the load needs, whoever decides on them: with fewer it would miss by more than a little.
    replicas = np.maximum(relaxed.verdict.replicas, relaxed.verdict.compared)[[index]]
    (predicted,) = predict(relaxed, np.array([index]), replicas)
    missed = messages.misses(requirements, predicted) if predicted is not None else []
    if predicted is None or not missed:
        return None
    pair, count, price = relaxed.pair(index), int(replicas[0]), predicted.cost_per_hour
    paid = "" if price is None else f"cost {messages.money(price)} $/h and "
    pods = f"{messages.count(count, 'replica')} of {pair.hardware}"
    is_budget = all("spec.cost" in part for part in missed)
    reason = PlanReason.BUDGET_EXCEEDED if is_budget else PlanReason.TARGET_UNREACHABLE
    return pair.reject(reason, f"{pods} would {paid}{messages.join(missed)}.", count, predicted)


def find_smallest_miss(evaluation: PlanEvaluation) -> Rejected | None:
    """Find the candidate that with one request alone is nearest to its worst latency bound."""
    demand, candidate = evaluation.requirements.demand, evaluation.availability.candidate
    if not demand.has_latency:
        return None
    unreached = evaluation.verdict.has_reason(PlanReason.TARGET_UNREACHABLE) & ~evaluation.lacking[candidate]
    pairs = np.flatnonzero(unreached & ~(evaluation.speeds.requests_per_second > 0.0)[candidate])
    if not len(pairs):
        return None
    bounds = (demand.time_to_first_token, demand.time_per_output_token)
    latencies = unloaded_latency(evaluation.engines(candidate[pairs]), demand)
    ratios = [
        value / bound.seconds for bound, value in zip(bounds, latencies, strict=True) if bound is not None
    ]
    cost = np.nan_to_num(evaluation.compared_cost[pairs], nan=np.inf)
    index = int(pairs[np.lexsort((cost, bucket(np.max(ratios, axis=0))))[0]])
    (predicted,) = predict(evaluation, np.array([index]), evaluation.verdict.reported[[index]])
    return reject(evaluation, index, None, predicted)


def _relax(demand: Demand) -> Demand:
    """Make every latency bound a quarter wider."""

    def relax(bound: Bound | None) -> Bound | None:
        return bound and replace(bound, seconds=bound.seconds * float(LITTLE))

    return replace(
        demand,
        time_to_first_token=relax(demand.time_to_first_token),
        time_per_output_token=relax(demand.time_per_output_token),
    )
