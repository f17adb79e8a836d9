"""The rejected candidates worth reporting, and the one that comes nearest to the demands. Pure.

One row for each accelerator, capacity type and reason: a second candidate that fails alike says nothing new.
What is not supported yet is reported where it would do better than the plan, or where nothing else does. The
sentence of each says what would help.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from decimal import Decimal

import numpy as np

from turbo_operator.api import (
    MAX_REPLICAS,
    OFF,
    CapacityType,
    EngineName,
    Method,
    Objective,
    PlanReason,
    Provenance,
)
from turbo_operator.plan import EvaluatedCandidate, Predicted
from turbo_operator.planner.arrays import Indices
from turbo_operator.planner.capabilities import UNDIVIDED
from turbo_operator.planner.evaluation import PlanEvaluation
from turbo_operator.planner.explanation import messages
from turbo_operator.planner.explanation.memory_shortages import describe_out_of_memory
from turbo_operator.planner.explanation.shortages import describe_shortage
from turbo_operator.planner.feasibility import CODES, MICRO, bucket
from turbo_operator.planner.offering import Offering
from turbo_operator.planner.performance import memory, speculation
from turbo_operator.planner.performance.capacity import unloaded_latency

# Which rejection comes closest to a plan, so that the condition names the one worth acting on.
NEAREST = (
    PlanReason.HIGHER_COST,
    PlanReason.NOT_PREFERRED,
    PlanReason.BUDGET_EXCEEDED,
    PlanReason.INSUFFICIENT_CAPACITY,
    PlanReason.PRICE_UNKNOWN,  # which meets all that is asked but a price
    PlanReason.TARGET_UNREACHABLE,
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
    """List the rejected rows, the first ones worth reading, and predict `count` replicas of `best`."""
    rank = np.argsort(evaluation.order)
    indices = _worth_reporting(evaluation, best, rank)
    chosen = np.array([] if best is None else [best], np.int64)
    replicas = np.append(evaluation.verdict.reported[indices], np.full(len(chosen), float(count)))
    # All of them together, since a call has a cost of its own.
    predictions = evaluation.predict(np.append(indices, chosen), replicas)
    lacking, candidate = evaluation.lacking, evaluation.availability.candidate
    waits = NEAREST.index(PlanReason.NOT_YET_SUPPORTED)

    def distance(row: tuple[int, EvaluatedCandidate]) -> tuple[int, bool, int]:
        """What is not supported yet and fails as well is further from a plan than what only waits."""
        near = NEAREST.index(PlanReason(row[1].reason))
        fails = bool(lacking[candidate[row[0]]]) and near != waits
        return max(near, waits) if fails else near, fails, int(rank[row[0]])

    offerings = zip(indices.tolist(), predictions, strict=False)
    rows = [(index, reject(evaluation, index, best, predicted)) for index, predicted in offerings]
    rejected = tuple(row for _, row in sorted(rows, key=distance))
    return rejected, None if best is None else predictions[-1]


def reject(
    evaluation: PlanEvaluation, index: int, best: int | None, predicted: Predicted | None
) -> EvaluatedCandidate:
    """Return the row of an offering that lost to `best`, or failed."""
    offering, reason = evaluation.offering(index), CODES[evaluation.verdict.code[index]]
    if reason == PlanReason.FEASIBLE:
        assert best is not None  # what is feasible loses only to another
        reason, detail = _compare(evaluation, index, best)
    else:
        detail = _DETAILS[reason](evaluation, index, offering)
        is_further = reason != PlanReason.NOT_YET_SUPPORTED and evaluation.lacking[offering.place]
        if is_further and (lack := evaluation.lacks[offering.place]):
            detail = f"{detail} Besides, {lack}."
    return offering.describe(reason, detail, int(evaluation.verdict.reported[index]), predicted)


def _worth_reporting(evaluation: PlanEvaluation, best: int | None, rank: Indices) -> Indices:
    candidates, availability, verdict = evaluation.candidates, evaluation.availability, evaluation.verdict
    lacking = evaluation.lacking[availability.candidate]
    accelerators = candidates.accelerator[availability.candidate]
    # Of those that fail alike reports the one that misses by least: what may be chosen before what may not,
    # what was measured of the engine before what was not, and what was computed before what rests on an
    # assumed acceptance.
    waits = lacking & ~verdict.has_reason(PlanReason.NOT_YET_SUPPORTED)
    with np.errstate(invalid="ignore"):
        near = np.floor(np.log(np.maximum(verdict.miss, 1.0)) / 0.05)
    assumed = candidates.by_draft(lambda draft: draft.is_assumed, bool)[availability.candidate]
    unmeasured = candidates.by_engine(lambda engine: engine.name == EngineName.TURBO, bool)
    unmeasured &= ~candidates.by_accelerator(memory.on_cpu, bool)
    order = np.lexsort((rank, near, assumed, unmeasured[availability.candidate], waits))
    order = order[order != best]
    kinds = np.where(np.logical_or(*map(verdict.has_reason, EVERYWHERE)), 0, availability.capacity_type)
    packed = (accelerators * len(CapacityType) + kinds) * len(CODES) + verdict.code
    _, places = np.unique(packed[order], return_index=True)
    first: dict[Key, int] = {
        (int(accelerators[index]), int(kinds[index]), CODES[verdict.code[index]]): index
        for index in order[np.sort(places)].tolist()
    }

    def is_better(index: int, best: int) -> bool:
        """Whether an offering would be worth more than the chosen one, were it supported."""
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

    reported = [index for key, index in first.items() if is_worth_reporting(key)]
    if best is not None and (silent := _passed_over(evaluation, [best, *reported])) is not None:
        reported.append(silent)
    return np.array(reported, np.int64)


def _passed_over(evaluation: PlanEvaluation, reported: Sequence[int]) -> int | None:
    """Return the best offering of the method that the spec names, where neither plan nor rows have one: who
    names a draft wants to know why it is not taken.
    """
    named = evaluation.requirements.inputs.spec.speculation.method
    if named == Method.AUTO:
        return None
    by_draft = evaluation.candidates.by_draft(lambda draft: draft.method == named, bool)
    is_named = by_draft[evaluation.availability.candidate]
    if is_named[list(reported)].any():
        return None
    return next(iter(evaluation.order[is_named[evaluation.order]].tolist()), None)


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
    if (index := relaxed.first_feasible) is None:
        return None
    if best is not None and not relaxed.compared_cost[index] < evaluation.compared_cost[best]:
        return None
    # As many as the load needs, whoever decides on them: with fewer it would miss by more than a little.
    replicas = np.maximum(relaxed.verdict.replicas, relaxed.verdict.compared)[[index]]
    (predicted,) = relaxed.predict(np.array([index]), replicas)
    missed = messages.misses(requirements, predicted) if predicted is not None else []
    if predicted is None or not missed:
        return None
    offering, count, price = relaxed.offering(index), int(replicas[0]), predicted.cost_per_hour
    paid = "" if price is None else f"cost {messages.money(price)} $/h and "
    pods = f"{messages.count(count, 'replica')} of {offering.hardware}"
    is_budget = all("spec.cost" in part for part in missed)
    reason = PlanReason.BUDGET_EXCEEDED if is_budget else PlanReason.TARGET_UNREACHABLE
    return offering.describe(reason, f"{pods} would {paid}{messages.join(missed)}.", count, predicted)


def find_smallest_miss(evaluation: PlanEvaluation) -> EvaluatedCandidate | None:
    """Find the candidate that with one request alone is nearest to its worst latency bound."""
    demand, candidate = evaluation.requirements.demand, evaluation.availability.candidate
    if not demand.has_latency:
        return None
    unreached = evaluation.verdict.has_reason(PlanReason.TARGET_UNREACHABLE) & ~evaluation.lacking[candidate]
    offerings = np.flatnonzero(unreached & ~(evaluation.speeds.requests_per_second > 0.0)[candidate])
    if not len(offerings):
        return None
    bounds = (demand.time_to_first_token, demand.time_per_output_token)
    latencies = zip(bounds, unloaded_latency(evaluation.engines(candidate[offerings]), demand), strict=True)
    ratios = [value / bound.seconds for bound, value in latencies if bound is not None]
    cost = np.nan_to_num(evaluation.compared_cost[offerings], nan=np.inf)
    index = int(offerings[np.lexsort((cost, bucket(np.max(ratios, axis=0))))[0]])
    (predicted,) = evaluation.predict(np.array([index]), evaluation.verdict.reported[[index]])
    return reject(evaluation, index, None, predicted)


def _compare(evaluation: PlanEvaluation, index: int, best: int) -> tuple[PlanReason, str]:
    """Return why a feasible offering is not the plan: the reason and its sentence."""
    offering, winner = evaluation.offering(index), evaluation.offering(best)
    name, winner_name = (one.hardware + messages.paid_as(one.capacity_type) for one in (offering, winner))
    objective = evaluation.requirements.objective
    extra = (evaluation.compared_cost[index] - evaluation.compared_cost[best]) / MICRO
    lead, best_lead = evaluation.leading[index], evaluation.leading[best]
    reason = PlanReason.NOT_PREFERRED
    if offering.nodes > winner.nodes == 1 and (lead, extra) < (best_lead, 0):
        less = f" for {_dollars(-extra)} $/h less" if extra < 0 else ""
        detail = f"{name} fits{less}, but several nodes are planned only where one does not do, or where "
        detail += "spec.parallelism.pipeline says so."
    elif lead < best_lead or (extra < 0 and not lead > best_lead):
        by = f" by {_dollars(-extra)} $/h" if extra < 0 else ""
        detail = f"{name} would be better{by}, but not by spec.planPolicy.minSavingFraction: what runs stays."
    elif lead > best_lead:
        less = f" for {_dollars(-extra)} $/h less" if extra < 0 else ""
        detail = f"{name} fits{less}, but is not the {messages.BEST[objective]} of what is feasible."
    elif extra > 0:
        if name == winner_name:
            name, winner_name = (
                f"{name} {messages.drafting(one.draft.method)}" for one in (offering, winner)
            )
        count, best_count = (int(evaluation.verdict.compared[one]) for one in (index, best))
        if count == best_count:
            more = f"{_dollars(extra / count)} $/h more per replica"
            detail = f"{name} fits, and costs {more} than {winner_name}"
        else:
            pods = f"{messages.count(count, 'replica')} of {name}"
            detail = f"{pods} would serve it, and cost {_dollars(extra)} $/h more than {best_count} of "
            detail += winner_name
        if objective == Objective.COST:
            return PlanReason.HIGHER_COST, f"{detail}."
        detail = f"{detail}, and it is no better by spec.planPolicy.objective {objective}."
    elif winner.draft.method != OFF and winner.hardware == offering.hardware:
        method = winner.draft.method
        uncounted = "" if method in speculation.PRIORS else ", which depends on the text and is not counted"
        detail = f"{name} fits at the same cost, but gives up what {method} drafts gain{uncounted}."
        if winner.draft.placement == evaluation.requirements.inputs.spec.speculation.placement:
            detail = f"{name} fits at the same cost, but spec.speculation.placement names a place for drafts."
    elif offering.accelerator == winner.accelerator and winner.accelerator.price_per_node:
        is_less = evaluation.compared_tokens[index] < evaluation.compared_tokens[best]
        lacks = f"takes less load than {winner_name}" if is_less else "leaves less of it for more replicas"
        detail = f"{name} fits at the cost of the same node, but {lacks}."
    else:
        detail = f"{name} fits at the same cost; {winner_name} comes first in the order of choice."
    return reason, detail


def _dollars(amount: float) -> str:
    return messages.money(Decimal(str(round(amount, 6))))


def _no_profile(_: PlanEvaluation, __: int, offering: Offering) -> str:
    links = ", spec.interconnectGBps and spec.networkGBps" if offering.tensor > 1 else ""
    return (
        f"The speed of {offering.accelerator.name} is unknown: write spec.memoryBandwidthGBps and spec.tflops"
        f"{links} on the TurboAccelerator, or leave workload, latency and throughput targets out."
    )


def _price_unknown(_: PlanEvaluation, __: int, offering: Offering) -> str:
    name, kind = offering.accelerator.name, offering.capacity_type
    what, remedy = f"The {kind} price of {name}", ""
    if kind == CapacityType.ON_DEMAND:
        what, remedy = f"The price of {name}", ", or allow only this one and set no budget"
    return f"{what} is unknown: write {_price_field(kind)} on the TurboAccelerator{remedy}."


def _price_field(kind: str) -> str:
    return f"spec.pricing.perAcceleratorHour.{kind[0].lower()}{kind[1:]}"


def describe_unpriced(rejected: Sequence[EvaluatedCandidate]) -> str | None:
    """Say that prices are all that several accelerators lack, where none is nearer to a plan than another."""
    rows = [row for row in rejected if row.reason == PlanReason.PRICE_UNKNOWN]
    names = list(dict.fromkeys(row.accelerator for row in rows))
    if len(names) < 2 or rejected[0].reason != PlanReason.PRICE_UNKNOWN:
        return None
    kinds = list(dict.fromkeys(row.capacity_type for row in rows))
    fields, others = messages.join([*map(_price_field, kinds)], "or"), messages.join(names, "or")
    more = "" if CapacityType.ON_DEMAND in kinds else ", or OnDemand in spec.accelerators.capacityTypes"
    return (
        f"The {messages.join(kinds)} prices of all that would do are unknown: write {fields} on "
        f"TurboAccelerator {others}{more}."
    )


def _unreachable(evaluation: PlanEvaluation, index: int, offering: Offering) -> str:
    requirements, rate = evaluation.requirements, evaluation.speeds.requests_per_second[offering.place]
    has_latency = requirements.demand.has_latency
    if has_latency and not rate > 0.0:
        first, token = unloaded_latency(evaluation.engines(np.array([offering.place])), requirements.demand)
        alone = Predicted(float(first[0]), float(token[0]), None, None, None, None, Provenance.ROOFLINE)
        missed = messages.misses(requirements, alone)
        missed_text = messages.join(missed) if missed else "miss the latency targets under any load"
        return f"{offering.hardware} would {missed_text} even with nothing else to do."
    need = float(evaluation.verdict.miss[index]) * requirements.max_replicas
    if np.isinf(need):
        return f"{offering.hardware} never reaches the targets: allow a faster accelerator."
    takes = (
        f"{offering.hardware} takes {messages.rate(float(rate))} requests/s per replica"
        f"{' while the targets hold' if has_latency else ''}: the load needs {need:.0f}"
    )
    limit = messages.count(requirements.max_replicas, "replica")
    if requirements.max_replicas == MAX_REPLICAS:
        return f"{takes}, and a TurboDeployment has {limit} at most: allow a faster accelerator."
    return f"{takes}, and spec.scaling.maxReplicas allows {limit}: allow more, or a faster accelerator."


def _over_budget(evaluation: PlanEvaluation, index: int, offering: Offering) -> str:
    budget, replicas = evaluation.requirements.cost, int(evaluation.verdict.replicas[index])
    cost = offering.cost_per_hour(replicas) or Decimal(0)
    pods = messages.count(replicas, "replica")
    sentence = f"{offering.hardware} fits and costs {messages.money(cost)} $/h for {pods}"
    if budget.max_per_hour is not None and cost > budget.max_per_hour:
        return f"{sentence}, above spec.cost.maxPerHour of {messages.money(budget.max_per_hour)}."
    per_million = evaluation.per_million_tokens(evaluation.verdict.replicas)[index]
    limit = messages.money(budget.max_per_million_tokens or Decimal(0))
    return (
        f"{sentence}, {_dollars(float(per_million) / MICRO)} $ per million output tokens, "
        f"above spec.cost.maxPerMillionTokens of {limit}."
    )


def _not_yet(evaluation: PlanEvaluation, index: int, offering: Offering) -> str:
    lack = evaluation.lacks[offering.place]
    if lack is None:
        return evaluation.conflicts[offering.place] or ""
    if offering.tensor > 1 and offering.nodes == 1 and lack.startswith(UNDIVIDED):
        candidates, place = evaluation.candidates, offering.place
        # Where one accelerator of the offering's does not hold the model with the same engine and drafts.
        too_small = ~evaluation.memory_use.fits & (candidates.tensor == 1) & (candidates.nodes == 1)
        for column in (candidates.engine, candidates.accelerator, candidates.draft):
            too_small &= column == column[place]
        indices = np.flatnonzero(too_small[evaluation.availability.candidate])
        if len(indices):
            one = describe_out_of_memory(evaluation, 0, evaluation.offering(indices[0]))
            return f"{one} {offering.tensor} together would, but {lack}."
    replicas, method = int(evaluation.verdict.reported[index]), offering.draft.method
    cost = offering.cost_per_hour(replicas)
    price = "" if cost is None else f" for {messages.money(cost)} $/h"
    how = "" if method == OFF else f" with {method} drafts"
    pods = f"{messages.count(replicas, 'replica')} of {offering.engine.name} on {offering.hardware}"
    assumed = f" (assumed: {messages.prior(method)})" if offering.draft.is_assumed else ""
    return f"{pods}{how} would serve it{price}{assumed}, but {lack}."


_DETAILS = {
    PlanReason.INSUFFICIENT_MEMORY: describe_out_of_memory,
    PlanReason.PERFORMANCE_UNKNOWN: _no_profile,
    PlanReason.PRICE_UNKNOWN: _price_unknown,
    PlanReason.TARGET_UNREACHABLE: _unreachable,
    PlanReason.INSUFFICIENT_CAPACITY: describe_shortage,
    PlanReason.BUDGET_EXCEEDED: _over_budget,
    PlanReason.NOT_YET_SUPPORTED: _not_yet,
}
