"""The best candidate as a plan's choice; what runs stays unless another is worth the move. Pure."""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal

import numpy as np

from turbo_operator.api import Objective, PlanReason, Provenance
from turbo_operator.plan import Capacity, Choice, Predicted, Running
from turbo_operator.planner import feasibility
from turbo_operator.planner.arrays import take
from turbo_operator.planner.evaluation import PlanEvaluation
from turbo_operator.planner.feasibility import MICRO
from turbo_operator.planner.performance import capacity, memory


def select_best(
    evaluation: PlanEvaluation, min_saving_fraction: Decimal, running: Running | None
) -> int | None:
    """Select the pair to run: the first feasible one, unless what runs is nearly as good."""
    best, current = evaluation.first_feasible, _find_running(evaluation, running)
    if best is None or current is None or not evaluation.verdict.has_reason(PlanReason.FEASIBLE)[current]:
        return best
    share = 1.0 - float(min_saving_fraction)
    before, after = _measure(evaluation, current), _measure(evaluation, best)
    return current if after > before * share or after == before else best


def select_partial(evaluation: PlanEvaluation, running: Running | None) -> tuple[int, int] | None:
    """Select the pair that lacks nothing but capacity, and how many of its replicas fit.

    What runs stays, even where no replica fits any more; where nothing runs it is the one that comes closest.
    """
    requirements, availability = evaluation.requirements, evaluation.availability
    candidate, replicas = availability.candidate, np.maximum(evaluation.verdict.replicas, 1.0)
    fitting = np.minimum(np.minimum(availability.room, availability.within_total), availability.affordable)
    short = evaluation.verdict.has_reason(PlanReason.INSUFFICIENT_CAPACITY) & ~evaluation.lacking[candidate]
    short &= ~np.isnan(availability.price) | requirements.only_one
    if requirements.max_per_million is not None:
        per_million = feasibility.per_million_tokens(
            requirements, evaluation.speeds, candidate, replicas, availability.cost(replicas)
        )
        short &= per_million <= float(requirements.max_per_million * MICRO)
    current = _find_running(evaluation, running)
    if current is not None:
        return (current, int(fitting[current])) if short[current] else None
    share = np.where(short & (fitting >= 1.0), fitting / replicas, 0.0)[evaluation.order]
    if running is not None or not share.any():
        return None
    index = int(evaluation.order[int(np.argmax(share))])
    return index, int(fitting[index])


def _find_running(evaluation: PlanEvaluation, running: Running | None) -> int | None:
    if running is None:
        return None
    order = evaluation.order.tolist()
    return next((index for index in order if evaluation.pair(index).is_running(running)), None)


def _measure(evaluation: PlanEvaluation, index: int) -> float:
    """Return what the objective makes small."""
    requirements, availability = evaluation.requirements, evaluation.availability
    replicas, place = evaluation.verdict.compared, availability.candidate[index]
    if requirements.objective == Objective.THROUGHPUT:
        count = 1.0 if requirements.external else float(replicas[index])
        return 1.0 / max(1e-12, count * float(evaluation.speeds.tokens_per_second[place]))
    if requirements.objective == Objective.LATENCY:
        performance = evaluation.performance(np.array([place]), replicas[[index]])
        return float(performance.time_per_output_token[0])
    cost = float(availability.cost(replicas)[index])
    return float(availability.paid(replicas)[index]) if np.isnan(cost) else cost


def count_replicas(evaluation: PlanEvaluation, index: int) -> int:
    """Count the replicas of the pair; for the fastest tokens no more than make them faster."""
    requirements, limit = evaluation.requirements, int(evaluation.verdict.replicas[index])
    if not requirements.expands or requirements.objective != Objective.LATENCY:
        return limit
    place = evaluation.availability.candidate[[index]]
    needed = int(feasibility.needed_replicas(requirements, evaluation.speeds, place)[0])
    counts = np.arange(needed, limit + 1, dtype=float)
    performance = evaluation.performance(np.repeat(place, len(counts)), counts)
    token = feasibility.bucket(performance.time_per_output_token)
    return int(counts[np.flatnonzero(token <= token.min())[0]])


def build_choice(
    evaluation: PlanEvaluation, index: int, replicas: int, predicted: Predicted | None
) -> Choice:
    """Build a plan's choice of so many replicas; `predicted` is what they do, where it is known."""
    requirements, use, pair = evaluation.requirements, evaluation.memory_use, evaluation.pair(index)
    cost = pair.cost_per_hour(replicas)
    if predicted is None:
        predicted = Predicted(None, None, None, None, cost, None, Provenance.ASSUMED)
    return Choice(
        engine=pair.engine.name,
        accelerator=pair.accelerator,
        capacity_type=pair.capacity_type,
        tensor=pair.tensor,
        nodes=pair.nodes,
        accelerators_per_replica=pair.per_replica,
        method=pair.draft.method,
        placement=pair.draft.placement,
        max_draft_tokens=pair.draft.max_draft_tokens,
        dtype=requirements.dtype_on(pair.accelerator),
        memory_bytes=int(use.held[pair.place]) + memory.reserve(pair.accelerator),
        max_model_len=requirements.max_model_len,
        kv_cache_bytes=int(use.pool[pair.place]),
        host_memory_bytes=requirements.host_memory_bytes(pair.accelerator),
        capacity=_capacity(evaluation, pair.place),
        predicted=replace(predicted, cost_per_hour=cost),
    )


def _capacity(evaluation: PlanEvaluation, place: int) -> Capacity | None:
    """What one replica does while the targets hold; None without a profile."""
    if not evaluation.profiled[place]:
        return None
    demand, places = evaluation.requirements.demand, np.array([place])
    engines, speed = evaluation.engines(places), take(evaluation.speeds, places)
    if np.isnan(speed.tokens_per_second[0]):
        speed = feasibility.compute_speed(engines, evaluation.requirements)
    together = speed.concurrency
    if demand.concurrency is None:
        together = capacity.concurrency(engines, demand, speed.requests_per_second)
    running = max(1, round(float(together[0])))
    return Capacity(
        requests_per_second=float(speed.requests_per_second[0]),
        concurrency=running,
        tokens=round(running * demand.held),
        tokens_per_second=float(speed.tokens_per_second[0]),
    )
