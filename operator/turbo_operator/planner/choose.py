"""The choice: of all that holds the demands the best by the objective; the others with a reason. Pure.

Ties are broken by the order of `capacityTypes`, of drafting methods (one before none), of
`accelerators.allowed`, then by name, so that the same input gives the same plan.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from decimal import Decimal

import numpy as np

from turbo_operator.api import Objective, PlanReason, Provenance, TurboDeploymentSpec
from turbo_operator.observed import Accelerator, Supply
from turbo_operator.planned import Capacity, Choice, Plan, Predicted, Rejected, Running, Weighed
from turbo_operator.planner import capacity, explain, judge, memory, mixture, rows
from turbo_operator.planner.abilities import NOW
from turbo_operator.planner.demand import Bound, Demand
from turbo_operator.planner.engines import OFF
from turbo_operator.planner.parallelism import contradiction, unfit
from turbo_operator.planner.performance import Calibrated, Factors
from turbo_operator.planner.request import Request, computed_in, element_bytes, request
from turbo_operator.planner.stock import MICRO
from turbo_operator.planner.weigh import Case, Weighing, host_memory, reconsidered, weigh
from turbo_runtime.contract import ModelShape

LITTLE = Decimal("1.25")  # a candidate misses by little where all bounds times this would take it


def plan(
    spec: TurboDeploymentSpec,
    shape: ModelShape,
    catalogue: Mapping[str, Accelerator],
    supply: Mapping[str, Supply] | None = None,
    *,
    now: float = 0.0,
    calibration: Factors | None = None,
    running: Running | None = None,
    draft: ModelShape | None = None,
) -> Plan:
    """The best feasible plan, or none with the reason of the nearest.

    `supply` is what the cluster has by accelerator; None holds nothing against a candidate. `now` is in
    seconds since the epoch. `calibration` speaks of the engine and accelerator of `running`, which stays
    unless another saves `planPolicy.minSavingFraction`. `draft` is the shape of `speculation.draftModel`.
    """
    asked = request(spec, shape, tuple(sorted(catalogue)))
    replicas = asked.fixed if asked.external else asked.fewest
    refusal = _refusal(asked)
    if refusal is not None:
        return Plan(None, replicas, *refusal)
    there = tuple(catalogue[name] for name in asked.names if name in catalogue)
    absent = tuple(_absent(name) for name in asked.names if name not in catalogue)
    invalid = tuple(
        Rejected(each.name, asked.tensor or 1, OFF, PlanReason.INVALID_PARALLELISM, detail)
        for each in there
        if (detail := unfit(asked, each, (supply or {}).get(each.name))) is not None
    )
    case = Case(supply, now, draft, _calibrated(calibration, running))
    of = weigh(spec, asked, there, case)
    best = _best(of, spec, running)
    nearest = _nearest(of, best)
    told = (*rows.rejected(of, best), *invalid, *absent)
    if best is None:
        return _infeasible(told, nearest, replicas, catalogue)
    mixed = _mixed(of, best)
    told = told if mixed is None else (*told, mixed)
    wanted = _fewest_as_fast(of, best)
    choice = _choice(of, best, wanted)
    others = sum(each.reason in (PlanReason.DEARER, PlanReason.NOT_PREFERRED) for each in told)
    elsewhere = others and any(each.accelerator != choice.accelerator.name for each in told[:others])
    count = asked.fixed if asked.external else wanted
    detail = explain.chosen(choice, count, int(bool(elsewhere)), asked)
    return Plan(choice, count, PlanReason.FEASIBLE, detail, told, nearest)


def frontier(
    spec: TurboDeploymentSpec,
    shape: ModelShape,
    catalogue: Mapping[str, Accelerator],
    supply: Mapping[str, Supply] | None = None,
    *,
    now: float = 0.0,
    calibration: Factors | None = None,
    running: Running | None = None,
    draft: ModelShape | None = None,
) -> tuple[Weighed, ...]:
    """Every candidate that could be predicted, the best one first; arguments are those of `plan`."""
    asked = request(spec, shape, tuple(sorted(catalogue)))
    if _refusal(asked) is not None:
        return ()
    there = tuple(catalogue[name] for name in asked.names if name in catalogue)
    of = weigh(spec, asked, there, Case(supply, now, draft, _calibrated(calibration, running)), every=True)
    replicas = np.maximum(of.verdict.replicas, 1.0)
    pairs = of.order
    found = []
    for pair, does in zip(pairs.tolist(), rows.predicted(of, pairs, replicas[pairs]), strict=True):
        if does is None:
            continue
        place = int(of.stock.candidate[pair])
        found.append(
            Weighed(
                engine=of.it.engine_of(place).name,
                accelerator=of.it.accelerator_of(place).name,
                capacity_type=asked.capacity_types[of.stock.capacity_type[pair]],
                tensor=int(of.it.tensor[place]),
                nodes=int(of.it.nodes[place]),
                method=of.it.draft_of(place).method,
                replicas=int(replicas[pair]),
                predicted=does,
                reason=judge.CODES[of.verdict.code[pair]],
            )
        )
    return tuple(found)


def _refusal(asked: Request) -> tuple[PlanReason, str] | None:
    """What no candidate can mend."""
    shape = asked.shape
    longest = NOW.longest(shape)
    if asked.max_model_len > longest:
        return PlanReason.NOT_YET_SUPPORTED, (
            f"spec.model.maxModelLen is {asked.max_model_len}, but the model is served for positions up to "
            f"{longest}: write at most that, or leave it out."
        )
    if not asked.names:
        return PlanReason.NO_PROFILE, "There is no TurboAccelerator: create one to choose from."
    said = contradiction(asked)
    return None if said is None else (PlanReason.INVALID_PARALLELISM, said)


def _absent(name: str) -> Rejected:
    detail = f"There is no TurboAccelerator {name}: create it, or correct spec.accelerators.allowed."
    return Rejected(name, 1, OFF, PlanReason.NO_PROFILE, detail)


def _calibrated(calibration: Factors | None, running: Running | None) -> Calibrated | None:
    if calibration is None or running is None:
        return None
    return Calibrated(running.engine, running.accelerator, calibration)


def _best(of: Weighing, spec: TurboDeploymentSpec, running: Running | None) -> int | None:
    """The pair to run: the first feasible one, unless what runs is nearly as good."""
    feasible = of.verdict.is_(PlanReason.FEASIBLE)[of.order]
    if not feasible.any():
        return None
    best = int(of.order[np.flatnonzero(feasible)[0]])
    stays = _running(of, running)
    if stays is None or not of.verdict.is_(PlanReason.FEASIBLE)[stays]:
        return best
    share = 1.0 - float(spec.plan_policy.min_saving_fraction)
    before, after = _measure(of, stays), _measure(of, best)
    return stays if after > before * share or after == before else best


def _running(of: Weighing, running: Running | None) -> int | None:
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


def _measure(of: Weighing, pair: int) -> float:
    """What the objective makes small."""
    replicas = np.maximum(of.verdict.replicas, 1.0)
    place = of.stock.candidate[pair]
    if of.request.objective == Objective.THROUGHPUT:
        return 1.0 / max(1e-12, float(replicas[pair] * of.speeds.tokens_per_second[place]))
    if of.request.objective == Objective.LATENCY:
        served = of.served(np.array([place]), replicas[[pair]])
        return float(served.time_per_output_token[0])
    cost = float(of.stock.cost(replicas)[pair])
    return float(of.stock.paid(replicas)[pair]) if np.isnan(cost) else cost


def _fewest_as_fast(of: Weighing, pair: int) -> int:
    """Replicas of the pair; for the fastest tokens no more than make them faster."""
    most = int(of.verdict.replicas[pair])
    if not of.request.expands or of.request.objective != Objective.LATENCY:
        return most
    place = of.stock.candidate[[pair]]
    least = int(judge.needed(of.request, of.speeds, place)[0])
    counts = np.arange(least, most + 1, dtype=float)
    served = of.served(np.repeat(place, len(counts)), counts)
    token = judge.bucket(served.time_per_output_token)
    return int(counts[np.flatnonzero(token <= token.min())[0]])


def _choice(of: Weighing, pair: int, replicas: int) -> Choice:
    asked, it = of.request, of.it
    place = int(of.stock.candidate[pair])
    accelerator, draft, held = it.accelerator_of(place), it.draft_of(place), of.room
    dtype = computed_in(asked.dtype, asked.shape, memory.on_cpu(accelerator))
    at = np.array([pair])
    (does,) = rows.predicted(of, at, np.array([float(max(replicas, 1))]))
    count = asked.fixed if asked.external else replicas
    cost = rows.cost_per_hour(of, pair, count)
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


def _capacity(of: Weighing, place: int) -> Capacity | None:
    """What one replica does while the targets hold; None without a profile."""
    if not of.profiled[place]:
        return None
    speeds = of.speed_of(place)
    engines, _ = of.engines(np.array([place]))
    rate = speeds.requests_per_second
    if of.request.demand.concurrency is not None:
        together = speeds.concurrency[0]
    else:
        together = capacity.concurrency(engines, of.request.demand, rate)[0]
    running = max(1, round(float(together)))
    return Capacity(
        requests_per_second=float(rate[0]),
        concurrency=running,
        tokens=round(running * of.request.demand.held),
        tokens_per_second=float(speeds.tokens_per_second[0]),
    )


def _nearest(of: Weighing, best: int | None) -> Rejected | None:
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
    loose = reconsidered(of, wider)
    found = _best_of(loose)
    if found is None:
        return None
    cost = loose.verdict.cost[found]
    if best is not None and not cost < of.verdict.cost[best]:
        return None
    replicas = loose.verdict.replicas[[found]]
    (does,) = rows.predicted(loose, np.array([found]), np.maximum(replicas, 1.0))
    if does is None:
        return None
    missed = explain.misses(asked, does)
    if not missed:
        return None
    place = int(loose.stock.candidate[found])
    count, price = int(replicas[0]), does.cost_per_hour
    pods = explain.count(count, "replica")
    paid = "" if price is None else f"cost {explain.money(price)} $/h and "
    detail = f"{pods} of {rows.words(loose.it, place)} would {paid}{explain.joined(missed)}."
    over = all("spec.cost" in each for each in missed)
    return Rejected(
        accelerator=loose.it.accelerator_of(place).name,
        tensor=int(loose.it.tensor[place]),
        method=loose.it.draft_of(place).method,
        reason=PlanReason.OVER_BUDGET if over else PlanReason.TARGET_UNREACHABLE,
        detail=detail,
        engine=loose.it.engine_of(place).name,
        capacity_type=asked.capacity_types[loose.stock.capacity_type[found]],
        replicas=count,
        predicted=does,
    )


def _relaxed(demand: Demand) -> Demand:
    """With every latency bound a quarter wider."""

    def wider(bound: Bound | None) -> Bound | None:
        return bound and replace(bound, seconds=bound.seconds * float(LITTLE))

    return replace(
        demand,
        time_to_first_token=wider(demand.time_to_first_token),
        time_per_output_token=wider(demand.time_per_output_token),
    )


def _best_of(of: Weighing) -> int | None:
    feasible = of.verdict.is_(PlanReason.FEASIBLE)[of.order]
    return int(of.order[np.flatnonzero(feasible)[0]]) if feasible.any() else None


def _infeasible(
    told: tuple[Rejected, ...],
    nearest: Rejected | None,
    replicas: int,
    catalogue: Mapping[str, Accelerator],
) -> Plan:
    ranked = tuple(sorted(told, key=lambda row: rows.NEAREST.index(PlanReason(row.reason))))
    if not ranked:
        detail = (
            "No candidate is left: spec.engine, spec.speculation, spec.parallelism and "
            "spec.accelerators.maxPerReplica leave nothing to choose from; leave one of them out."
        )
        return Plan(None, replicas, PlanReason.NOT_YET_SUPPORTED, detail)
    first = nearest or ranked[0]
    if first.reason == PlanReason.NO_PROFILE:
        there = ", ".join(sorted(catalogue)) or "none"
        detail = f"{first.detail} There are: {there}."
    else:
        detail = f"No plan is feasible. Nearest: {first.detail}"
    return Plan(None, replicas, first.reason, detail, ranked, first)


def _mixed(of: Weighing, best: int) -> Rejected | None:
    """A mixture of accelerators that would cost less than the chosen one: no route weighs two kinds yet."""
    asked, terms = of.request, of.stock
    demand, serves = asked.demand.rate, of.speeds.requests_per_second
    if asked.demand.concurrency is not None:
        demand, serves = float(asked.demand.concurrency), of.speeds.concurrency
    if demand is None or asked.external or asked.objective != Objective.COST or asked.max_total is not None:
        return None
    if any(each.price_per_node for each in of.it.accelerators):
        return None
    able = ~of.lacking & of.room.fits & of.profiled
    pairs = [
        pair
        for pair in np.flatnonzero(able[terms.candidate]).tolist()
        if serves[terms.candidate[pair]] > 0.0 and not np.isnan(terms.price[pair])
    ]
    kinds: dict[tuple[str, int], tuple[int, mixture.Kind]] = {}
    for pair in sorted(pairs, key=lambda pair: -serves[terms.candidate[pair]]):
        place = int(terms.candidate[pair])
        name = of.it.accelerator_of(place).name
        kind = mixture.Kind(
            name,
            float(serves[place]),
            float(terms.cost(np.ones(len(terms.price)))[pair]),
            int(min(terms.room[pair], asked.most)),
        )
        kinds.setdefault((name, int(terms.capacity_type[pair])), (pair, kind))
    offered = list(kinds.values())
    counts = mixture.cheapest([kind for _, kind in offered], demand, float(of.verdict.cost[best]))
    if counts is None or not asked.fewest <= sum(counts) <= asked.most or sum(map(bool, counts)) < 2:
        return None
    parts = [(number, kind, pair) for number, (pair, kind) in zip(counts, offered, strict=True) if number]
    cost = sum(number * kind.price for number, kind, _ in parts) / MICRO
    said = explain.joined([f"{explain.count(number, 'replica')} of {kind.name}" for number, kind, _ in parts])
    _, kind, pair = parts[0]
    return Rejected(
        accelerator=kind.name,
        tensor=1,
        method=of.it.draft_of(int(terms.candidate[pair])).method,
        reason=PlanReason.NOT_YET_SUPPORTED,
        detail=(
            f"Together {said} would do for {explain.money(Decimal(str(round(cost, 6))))} $/h, but serving "
            "one TurboDeployment on more than one class is not supported yet."
        ),
        replicas=sum(counts),
    )
