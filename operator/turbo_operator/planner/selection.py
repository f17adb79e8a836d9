"""The best candidate as a plan's choice; what runs stays unless another is worth the move. Pure."""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal

import numpy as np

from turbo_operator.api import Objective, PlanReason, Provenance
from turbo_operator.plan import Capacity, Choice, Predicted, Running
from turbo_operator.planner import feasibility
from turbo_operator.planner.availability import MICRO
from turbo_operator.planner.evaluation import PlanEvaluation, host_memory
from turbo_operator.planner.performance import capacity, memory
from turbo_operator.planner.performance.prediction import cost_per_hour
from turbo_operator.planner.request import computed_in, element_bytes


def best_pair(of: PlanEvaluation, min_saving_fraction: Decimal, running: Running | None) -> int | None:
    """The pair to run: the first feasible one, unless what runs is nearly as good; None without any."""
    best, stays = of.first_feasible(), _running(of, running)
    if best is None or stays is None or not of.verdict.is_(PlanReason.FEASIBLE)[stays]:
        return best
    share = 1.0 - float(min_saving_fraction)
    before, after = _measure(of, stays), _measure(of, best)
    return stays if after > before * share or after == before else best


def partial_pair(of: PlanEvaluation, running: Running | None) -> tuple[int, int] | None:
    """The pair that lacks nothing but room, and how many of its replicas fit; None without any.

    What runs stays, even where no replica fits any more; where nothing runs it is the one that comes closest.
    """
    stock, replicas = of.stock, np.maximum(of.verdict.replicas, 1.0)
    fitting = np.minimum(np.minimum(stock.room, stock.within_total), stock.affordable)
    short = of.verdict.is_(PlanReason.NO_CAPACITY) & ~of.lacking[stock.candidate]
    short &= ~np.isnan(stock.price) | of.request.only_one
    if of.request.max_per_million is not None:
        per_million = feasibility.per_million_tokens(
            of.request, of.speeds, stock.candidate, replicas, stock.cost(replicas)
        )
        short &= per_million <= float(of.request.max_per_million * MICRO)
    stays = _running(of, running)
    if stays is not None:
        return (stays, int(fitting[stays])) if short[stays] else None
    share = np.where(short & (fitting >= 1.0), fitting / replicas, 0.0)[of.order]
    if running is not None or not share.any():
        return None
    pair = int(of.order[int(np.argmax(share))])
    return pair, int(fitting[pair])


def _running(of: PlanEvaluation, running: Running | None) -> int | None:
    """The pair that runs now."""
    if running is None:
        return None
    for pair in of.order.tolist():
        place = int(of.stock.candidate[pair])
        draft = of.it.draft_of(place)
        kind = of.request.capacity_types[of.stock.capacity_type[pair]]
        if running == Running(
            of.it.engine_of(place).name,
            of.it.accelerator_of(place).name,
            kind,
            int(of.it.tensor[place]),
            int(of.it.nodes[place]),
            draft.method,
            draft.placement,
        ):
            return int(pair)
    return None


def _measure(of: PlanEvaluation, pair: int) -> float:
    """What the objective makes small."""
    replicas = of.verdict.wanted
    place = of.stock.candidate[pair]
    if of.request.objective == Objective.THROUGHPUT:
        count = 1.0 if of.request.external else float(replicas[pair])
        return 1.0 / max(1e-12, count * float(of.speeds.tokens_per_second[place]))
    if of.request.objective == Objective.LATENCY:
        served = of.served(np.array([place]), replicas[[pair]])
        return float(served.time_per_output_token[0])
    cost = float(of.stock.cost(replicas)[pair])
    return float(of.stock.paid(replicas)[pair]) if np.isnan(cost) else cost


def fewest_as_fast(of: PlanEvaluation, pair: int) -> int:
    """Replicas of the pair; for the fastest tokens no more than make them faster."""
    most = int(of.verdict.replicas[pair])
    if not of.request.expands or of.request.objective != Objective.LATENCY:
        return most
    place = of.stock.candidate[[pair]]
    least = int(feasibility.needed(of.request, of.speeds, place)[0])
    counts = np.arange(least, most + 1, dtype=float)
    served = of.served(np.repeat(place, len(counts)), counts)
    token = feasibility.bucket(served.time_per_output_token)
    return int(counts[np.flatnonzero(token <= token.min())[0]])


def choice_of(of: PlanEvaluation, pair: int, replicas: int, does: Predicted | None) -> Choice:
    """The pair with so many replicas as a plan's choice; `does` is what they do, where it can be told."""
    asked, it = of.request, of.it
    place = int(of.stock.candidate[pair])
    accelerator, draft, held = it.accelerator_of(place), it.draft_of(place), of.room
    dtype = computed_in(asked.dtype, asked.shape, memory.on_cpu(accelerator))
    cost = cost_per_hour(of, pair, replicas)
    if does is None:
        does = Predicted(None, None, None, None, cost, None, Provenance.ASSUMED)
    return Choice(
        engine=it.engine_of(place).name,
        accelerator=accelerator,
        capacity_type=asked.capacity_types[of.stock.capacity_type[pair]],
        tensor=int(it.tensor[place]),
        nodes=int(it.nodes[place]),
        accelerators_per_replica=int(it.per_replica[place]),
        method=draft.method,
        placement=draft.placement,
        max_draft_tokens=draft.max_draft_tokens,
        dtype=dtype,
        memory_bytes=int(held.held[place]) + memory.reserve(accelerator),
        max_model_len=asked.max_model_len,
        kv_cache_bytes=int(held.pool[place]),
        host_memory_bytes=host_memory(asked, accelerator, element_bytes(dtype)),
        capacity=_capacity(of, place),
        predicted=replace(does, cost_per_hour=cost),
    )


def _capacity(of: PlanEvaluation, place: int) -> Capacity | None:
    """What one replica does while the targets hold; None without a profile."""
    if not of.profiled[place]:
        return None
    speeds, engines = of.speed_of(place)
    rate, together = speeds.requests_per_second, speeds.concurrency
    if of.request.demand.concurrency is None:
        together = capacity.concurrency(engines, of.request.demand, rate)
    running = max(1, round(float(together[0])))
    return Capacity(
        requests_per_second=float(rate[0]),
        concurrency=running,
        tokens=round(running * of.request.demand.held),
        tokens_per_second=float(speeds.tokens_per_second[0]),
    )
