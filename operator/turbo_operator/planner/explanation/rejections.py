"""The rejected candidates worth reporting, and the one that comes nearest to the demands. Pure.

One row for each accelerator, capacity type and reason: a second candidate that fails alike says nothing new.
What is not supported yet is reported where it would do better than the plan, or where nothing else does.
"""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal

import numpy as np

from turbo_operator.api import Objective, PlanReason
from turbo_operator.plan import EvaluatedCandidate, Predicted
from turbo_operator.planner.arrays import Indices, Mask
from turbo_operator.planner.evaluation import PlanEvaluation
from turbo_operator.planner.explanation import messages
from turbo_operator.planner.explanation.rejection_messages import explain
from turbo_operator.planner.feasibility import CODES, bucket
from turbo_operator.planner.performance.capacity import unloaded_latency

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
LITTLE = Decimal("1.25")  # a candidate misses by little where all bounds times this would take it

Key = tuple[int, int, PlanReason]  # accelerator, capacity type, reason


def list_rejected(
    evaluation: PlanEvaluation, best: int | None, count: int
) -> tuple[tuple[EvaluatedCandidate, ...], Predicted | None]:
    """List the rejected rows, the first ones worth reading, and predict what `count` replicas of `best` do.

    Predicts all of them together, since a call has a cost of its own.
    """
    rank = np.argsort(evaluation.order)
    indices = _worth_reporting(evaluation, best, rank)
    chosen = np.array([] if best is None else [best], np.int64)
    replicas = np.append(evaluation.verdict.reported[indices], np.full(len(chosen), float(count)))
    predictions = evaluation.predict(np.append(indices, chosen), replicas)
    lacking, waits = _lacking(evaluation), NEAREST.index(PlanReason.NOT_YET_SUPPORTED)

    def distance(row: tuple[int, EvaluatedCandidate]) -> tuple[int, bool, int]:
        """What is not supported yet and fails as well is further from a plan than what only waits."""
        near = NEAREST.index(PlanReason(row[1].reason))
        fails = bool(lacking[row[0]]) and near != waits
        return max(near, waits) if fails else near, fails, int(rank[row[0]])

    pairs = zip(indices.tolist(), predictions, strict=False)
    rows = [(index, _reject(evaluation, index, best, predicted)) for index, predicted in pairs]
    rejected = tuple(row for _, row in sorted(rows, key=distance))
    return rejected, None if best is None else predictions[-1]


def _reject(
    evaluation: PlanEvaluation, index: int, best: int | None, predicted: Predicted | None
) -> EvaluatedCandidate:
    replicas = int(evaluation.verdict.reported[index])
    return evaluation.pair(index).describe(*explain(evaluation, index, best), replicas, predicted)


def _lacking(evaluation: PlanEvaluation) -> Mask:
    return evaluation.lacking[evaluation.availability.candidate]


def _worth_reporting(evaluation: PlanEvaluation, best: int | None, rank: Indices) -> Indices:
    candidates, availability, verdict = evaluation.candidates, evaluation.availability, evaluation.verdict
    lacking, accelerators = _lacking(evaluation), candidates.accelerator[availability.candidate]
    # Of those that fail alike reports the one that misses by least: what may be chosen before what may not,
    # and what was computed before what rests on an assumed acceptance.
    waits = lacking & ~verdict.has_reason(PlanReason.NOT_YET_SUPPORTED)
    with np.errstate(invalid="ignore"):
        near = np.floor(np.log(np.maximum(verdict.miss, 1.0)) / 0.05)
    assumed = candidates.by_draft(lambda draft: draft.gains, bool)[availability.candidate]
    first: dict[Key, int] = {}
    for index in np.lexsort((rank, near, assumed, waits)).tolist():
        reason = CODES[verdict.code[index]]
        kind = 0 if reason in EVERYWHERE else int(availability.capacity_type[index])
        if index != best:
            first.setdefault((int(accelerators[index]), kind, reason), index)

    def is_better(index: int, best: int) -> bool:
        """Whether a pair would be worth more than the chosen one, were it supported."""
        if evaluation.requirements.objective == Objective.COST:
            return bool(evaluation.compared_cost[index] < evaluation.compared_cost[best])
        return bool(rank[index] < rank[best])

    def is_worth_reporting(key: Key) -> bool:
        accelerator, kind, reason = key
        others = [other for other in first if other[0] == accelerator and other != key]
        is_chosen = best is not None and accelerators[best] == accelerator
        # Of what may be chosen and comes further than memory and profile.
        supported = [other for other in others if other[2] not in EVERYWHERE and not lacking[first[other]]]
        if reason == PlanReason.NOT_YET_SUPPORTED:
            return best is None or is_better(first[key], best) or not (is_chosen or supported)
        if reason in EVERYWHERE:
            return not (is_chosen or {other[2] for other in others} - {PlanReason.INSUFFICIENT_MEMORY})
        is_outdone = is_chosen or any(other[1] == kind for other in supported)
        return not (lacking[first[key]] and is_outdone)

    return np.array([index for key, index in first.items() if is_worth_reporting(key)], np.int64)


def find_near_miss(evaluation: PlanEvaluation, best: int | None) -> EvaluatedCandidate | None:
    """Find the cheapest that misses by little: the best one were every bound a quarter wider."""
    requirements = evaluation.requirements
    demand, cost = requirements.demand, requirements.cost
    per_hour, per_million = cost.max_per_hour, cost.max_per_million_tokens
    if not (demand.has_latency or per_hour or per_million):
        return None
    able = ~evaluation.lacking & evaluation.memory_use.fits
    if best is not None:
        able &= evaluation.could_cost_less(evaluation.compared_cost[best])
    if not able.any():
        return None
    budget = {
        "max_per_hour": per_hour and per_hour * LITTLE,
        "max_per_million_tokens": per_million and per_million * LITTLE,
        "objective": Objective.COST,
    }
    first, token = (
        bound and replace(bound, seconds=bound.seconds * float(LITTLE))
        for bound in (demand.time_to_first_token, demand.time_per_output_token)
    )
    wider = replace(
        requirements,
        demand=replace(demand, time_to_first_token=first, time_per_output_token=token),
        cost=cost.model_copy(update=budget),
    )
    relaxed = evaluation.reevaluate(wider, np.flatnonzero(able))
    index = relaxed.first_feasible
    if index is None:
        return None
    if best is not None and not relaxed.compared_cost[index] < evaluation.compared_cost[best]:
        return None
    # As many as the load needs, whoever decides on them: with fewer it would miss by more than a little.
    replicas = np.maximum(relaxed.verdict.replicas, relaxed.verdict.compared)[[index]]
    (predicted,) = relaxed.predict(np.array([index]), replicas)
    missed = messages.misses(requirements, predicted) if predicted is not None else []
    if predicted is None or not missed:
        return None
    pair, count, price = relaxed.pair(index), int(replicas[0]), predicted.cost_per_hour
    paid = "" if price is None else f"cost {messages.money(price)} $/h and "
    pods = f"{messages.count(count, 'replica')} of {pair.hardware}"
    is_budget = all("spec.cost" in part for part in missed)
    reason = PlanReason.BUDGET_EXCEEDED if is_budget else PlanReason.TARGET_UNREACHABLE
    return pair.describe(reason, f"{pods} would {paid}{messages.join(missed)}.", count, predicted)


def find_smallest_miss(evaluation: PlanEvaluation) -> EvaluatedCandidate | None:
    """Find the candidate that with one request alone is nearest to its worst latency bound."""
    demand, candidate = evaluation.requirements.demand, evaluation.availability.candidate
    if not demand.has_latency:
        return None
    unreached = evaluation.verdict.has_reason(PlanReason.TARGET_UNREACHABLE) & ~_lacking(evaluation)
    pairs = np.flatnonzero(unreached & ~(evaluation.speeds.requests_per_second > 0.0)[candidate])
    if not len(pairs):
        return None
    bounds = (demand.time_to_first_token, demand.time_per_output_token)
    latencies = zip(bounds, unloaded_latency(evaluation.engines(candidate[pairs]), demand), strict=True)
    ratios = [value / bound.seconds for bound, value in latencies if bound is not None]
    cost = np.nan_to_num(evaluation.compared_cost[pairs], nan=np.inf)
    index = int(pairs[np.lexsort((cost, bucket(np.max(ratios, axis=0))))[0]])
    (predicted,) = evaluation.predict(np.array([index]), evaluation.verdict.reported[[index]])
    return _reject(evaluation, index, None, predicted)
