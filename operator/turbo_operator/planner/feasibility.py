"""How many replicas each candidate needs and can get, what they cost, and which demand they break. Pure.

All over p pairs of a candidate and a capacity type at once.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from turbo_operator.api import CapacityType, PlanReason
from turbo_operator.budget import Footprint
from turbo_operator.planner.arrays import Indices, Mask, Numbers
from turbo_operator.planner.candidates import Candidates
from turbo_operator.planner.performance import capacity
from turbo_operator.planner.performance.curves import Engines, completions
from turbo_operator.planner.requirements import MAX_REPLICAS, Requirements
from turbo_operator.snapshot import Accelerator, Host, Supply

# What a candidate may break, the one that tells most first; an earlier one hides a later one.
CODES = (
    PlanReason.FEASIBLE,
    PlanReason.INSUFFICIENT_MEMORY,
    PlanReason.PERFORMANCE_UNKNOWN,
    PlanReason.TARGET_UNREACHABLE,
    PlanReason.INSUFFICIENT_CAPACITY,
    PlanReason.PRICE_UNKNOWN,
    PlanReason.BUDGET_EXCEEDED,
    PlanReason.NOT_YET_SUPPORTED,
)
MICRO = 1_000_000  # of a dollar: prices have no smaller part, so that sums of them are exact
BUCKET = 0.01  # relative: times and throughputs that differ by less are equal, so that money decides
UNPRICED = 1_000_000 * MICRO  # above the price of any accelerator
HALVINGS = 10  # of the interval in which the concurrency of one replica is sought


@dataclass(frozen=True, slots=True)
class Availability:
    """p pairs of a candidate and a capacity type; each array has p elements."""

    candidate: Indices
    capacity_type: Indices  # of those of the requirements
    price: Numbers  # micro-dollars of one accelerator for an hour; NaN is unknown
    lot: Numbers  # replicas that are bought together
    lot_accelerators: Numbers  # that such a lot pays for
    room: Numbers  # replicas that the cluster has or can get
    within_total: Numbers  # replicas within accelerators.maxTotal
    affordable: Numbers  # replicas within cost.maxPerHour

    def paid(self, replicas: Numbers) -> Numbers:
        """Return the accelerators that are paid for."""
        return np.asarray(np.ceil(replicas / self.lot) * self.lot_accelerators)

    def cost(self, replicas: Numbers) -> Numbers:
        """Return micro-dollars per hour; NaN where the price is unknown."""
        return self.paid(replicas) * self.price


def compute_availability(
    candidates: Candidates, requirements: Requirements, supply: Mapping[str, Supply] | None, now: float
) -> Availability:
    """Count every candidate with every capacity type that the spec allows."""
    types = requirements.capacity_types
    columns = (
        candidates.accelerator,
        candidates.per_replica.astype(np.int64),
        candidates.nodes.astype(np.int64),
    )
    sizes, size_of = np.unique(np.stack(columns, axis=1), axis=0, return_inverse=True)
    hosts = [requirements.host(row) for row in candidates.accelerators]
    rows = np.array(
        [
            _terms(candidates.accelerators[place], hosts[place], kind, size, nodes, requirements, supply, now)
            for kind in types
            for place, size, nodes in sizes.tolist()
        ]
    ).reshape(len(types), len(sizes), 6)
    terms = rows[:, size_of.reshape(-1)].reshape(len(types) * len(candidates), 6)
    return Availability(
        np.tile(np.arange(len(candidates)), len(types)),
        np.repeat(np.arange(len(types)), len(candidates)),
        *(terms[:, column] for column in range(6)),
    )


def _terms(
    accelerator: Accelerator,
    host: Host | None,
    capacity_type: CapacityType,
    per_replica: int,
    nodes: int,
    requirements: Requirements,
    supply: Mapping[str, Supply] | None,
    now: float,
) -> tuple[float, ...]:
    """Count one size of a replica: the fields of `Availability` from `price` on."""
    footprint = Footprint(accelerator, capacity_type, per_replica, nodes, host)
    price = accelerator.prices.get(capacity_type)
    paid = footprint.paid(1)
    max_total, max_per_hour = requirements.max_total, requirements.max_per_hour
    bounds = (
        None if supply is None else footprint.room(supply.get(accelerator.name, Supply()), now),
        None if max_total is None else footprint.within(max_total),
        None if max_per_hour is None else footprint.affordable(max_per_hour),
    )
    return (
        np.nan if price is None else float(price * MICRO),
        1 if nodes > 1 else max(1, paid // per_replica),
        paid,
        *(MAX_REPLICAS if bound is None else min(bound, MAX_REPLICAS) for bound in bounds),
    )


@dataclass(frozen=True, slots=True)
class Speed:
    """What one replica of c candidates does; NaN where it has no profile or does not fit. [c]"""

    requests_per_second: Numbers  # maximum while the targets hold
    concurrency: Numbers  # requests always under way that one takes while they hold
    tokens_per_second: Numbers  # output tokens then

    @classmethod
    def unknown(cls, count: int) -> Speed:
        """Return the speed of which nothing is known yet."""
        return cls(np.full(count, np.nan), np.full(count, np.nan), np.full(count, np.nan))


def compute_speed(engines: Engines, requirements: Requirements) -> Speed:
    """Compute what one replica of each candidate takes while the targets hold."""
    demand = requirements.demand
    if demand.concurrency is None:
        rate = capacity.capacity(engines, demand)
        return Speed(rate, np.full_like(rate, np.nan), rate * demand.output.mean)
    low, high = np.zeros_like(engines.slots), engines.slots.copy()
    low = np.where(_keeps(engines, requirements, high), high, low)
    for _ in range(HALVINGS):
        middle = np.ceil((low + high) / 2.0)
        kept = _keeps(engines, requirements, middle)
        low, high = np.where(kept, middle, low), np.where(kept, high, np.maximum(middle - 1.0, low))
    served = capacity.closed(engines, demand, np.maximum(low, 1.0))
    rate = np.where(low >= 1.0, served.requests_per_second, 0.0)
    return Speed(rate, low, np.where(low >= 1.0, served.tokens_per_second, 0.0))


def _keeps(engines: Engines, requirements: Requirements, running: Numbers) -> Mask:
    """Whether the targets hold with `running` requests always under way on one replica.

    Of a throughput each request must get its share: more replicas bring no more requests.
    """
    demand, together = requirements.demand, np.maximum(running, 1.0)
    kept = capacity.keeps(engines, demand, together)
    if demand.concurrency is None or demand.tokens_per_second is None:
        return kept
    share = demand.tokens_per_second / demand.concurrency
    ending = completions(engines, demand, together)
    return np.asarray(kept & (ending * demand.output.mean >= together * share * (1.0 - 1e-9)))


def load_per_replica(requirements: Requirements, speeds: Speed, replicas: Numbers) -> Numbers:
    """Return the requests per second of one replica, or of a demand in concurrency those under way.

    An unknown load is taken to be all that the replica can do.
    """
    count = np.maximum(replicas, 1.0)
    if requirements.demand.concurrency is not None:
        return requirements.demand.concurrency / count
    return (
        speeds.requests_per_second + 0.0 * count if requirements.rate is None else requirements.rate / count
    )


@dataclass(frozen=True, slots=True)
class Feasibility:
    """The verdict on p pairs."""

    replicas: Numbers  # that run
    compared: Numbers  # by which candidates are compared: as many as the load needs, whoever decides on those
    code: Indices  # of CODES
    miss: Numbers  # what is needed over what there is; 1 where nothing is short
    cost: Numbers  # micro-dollars per hour of the replicas; NaN where the price is unknown

    @property
    def reported(self) -> Numbers:
        """Replicas that a rejected row reports: where it would do, those that it is compared by."""
        would_do = self.has_reason(PlanReason.FEASIBLE) | self.has_reason(PlanReason.NOT_YET_SUPPORTED)
        return np.asarray(np.where(would_do, self.compared, self.replicas))

    def has_reason(self, reason: PlanReason) -> Mask:
        """Whether each pair has this reason."""
        return np.asarray(self.code == CODES.index(reason))


def needed_replicas(requirements: Requirements, speeds: Speed, candidate: Indices) -> Numbers:
    """[p] replicas that the load needs, and no fewer than the minimum; inf where no number does."""
    demand = requirements.demand
    loads = (
        (demand.rate, speeds.requests_per_second),
        (demand.concurrency, speeds.concurrency),
        (demand.tokens_per_second, speeds.tokens_per_second),
    )
    needed = np.full(len(candidate), float(requirements.min_replicas))
    with np.errstate(divide="ignore", invalid="ignore"):
        for load, speed in loads:
            if load is None:
                continue
            one = speed[candidate]
            # A hair of tolerance: what divides evenly must not need one more for the last bit of a float.
            needed = np.maximum(needed, np.where(one > 0.0, np.ceil(load / one * (1.0 - 1e-9)), np.inf))
        if demand.has_latency:
            needed = np.where(speeds.requests_per_second[candidate] > 0.0, needed, np.inf)
    return needed


def check_feasibility(
    requirements: Requirements,
    fits: Mask,
    profiled: Mask,
    lacking: Mask,
    speeds: Speed,
    availability: Availability,
) -> Feasibility:
    """Check every pair. `lacking`: candidates that cannot be rendered or run yet."""
    candidate = availability.candidate
    fewest, limit = float(requirements.min_replicas), float(requirements.max_replicas)
    need = np.full(len(candidate), fewest)
    if requirements.needs_speed:
        need = needed_replicas(requirements, speeds, candidate)
    wanted = np.where(np.isinf(need), fewest, need)
    # Too few by somebody else's decision is no reason to serve with none: only what no number mends is.
    short = np.isinf(need) if requirements.external else need > limit
    replicas = np.full(len(candidate), float(requirements.fixed)) if requirements.external else wanted
    bound = np.minimum(availability.room, availability.within_total)
    if requirements.expands:
        replicas = np.maximum(replicas, np.minimum(np.minimum(bound, availability.affordable), limit))
    cost = availability.cost(replicas)
    over, excess = _over_budget(requirements, speeds, availability, replicas, cost)
    # Where cost can change neither the choice nor its feasibility, no price is needed.
    on_demand = np.array([kind == CapacityType.ON_DEMAND for kind in requirements.capacity_types])
    needs_price = ~(on_demand[availability.capacity_type] & requirements.only_one)
    broken = (
        (PlanReason.NOT_YET_SUPPORTED, lacking[candidate]),
        (PlanReason.BUDGET_EXCEEDED, over),
        (PlanReason.PRICE_UNKNOWN, np.isnan(availability.price) & needs_price),
        (PlanReason.INSUFFICIENT_CAPACITY, replicas > bound),
        (PlanReason.TARGET_UNREACHABLE, short),
        (PlanReason.PERFORMANCE_UNKNOWN, ~profiled[candidate] & requirements.needs_speed),
        (PlanReason.INSUFFICIENT_MEMORY, ~fits[candidate]),
    )
    code = np.zeros(len(candidate), np.int64)
    for reason, mask in broken:
        code[mask] = CODES.index(reason)
    misses = (PlanReason.BUDGET_EXCEEDED, PlanReason.INSUFFICIENT_CAPACITY, PlanReason.TARGET_UNREACHABLE)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios = [excess, replicas / np.maximum(bound, 0.5), need / limit]
        miss = np.select([code == CODES.index(reason) for reason in misses], ratios, 1.0)
    # Without a load nothing is known to be needed but the replicas of the spec.
    is_by_load = requirements.external and requirements.demand.has_load
    return Feasibility(replicas, wanted if is_by_load else np.maximum(replicas, 1.0), code, miss, cost)


def _over_budget(
    requirements: Requirements, speeds: Speed, availability: Availability, replicas: Numbers, cost: Numbers
) -> tuple[Mask, Numbers]:
    """Whether each pair costs too much, and its cost over the budget."""
    over = replicas > availability.affordable
    excess = np.ones(len(cost))
    if requirements.max_per_hour is not None:
        excess = cost / float(requirements.max_per_hour * MICRO)
    if requirements.max_per_million is not None:
        per_million = per_million_tokens(requirements, speeds, availability.candidate, replicas, cost)
        ratio = per_million / float(requirements.max_per_million * MICRO)
        over |= ratio > 1.0 + 1e-12
        excess = np.maximum(excess, np.nan_to_num(ratio, nan=0.0))
    return over, excess


def per_million_tokens(
    requirements: Requirements, speeds: Speed, candidate: Indices, replicas: Numbers, cost: Numbers
) -> Numbers:
    """[p] micro-dollars of a million output tokens at the planned load; inf where there are none."""
    per_second = np.maximum(replicas, 1.0) * speeds.tokens_per_second[candidate]
    if requirements.rate is not None:
        per_second = np.minimum(per_second, requirements.rate * requirements.demand.output.mean)
    per_hour = per_second * 3600.0
    with np.errstate(divide="ignore", invalid="ignore"):
        free = np.where(cost > 0.0, np.inf, 0.0)
        return np.asarray(np.where(per_hour > 0.0, cost / per_hour * 1e6, free))


def sort_pairs(
    candidates: Candidates,
    requirements: Requirements,
    availability: Availability,
    verdict: Feasibility,
    leading: Numbers,
) -> Indices:
    """Sort the pairs by `leading` [p], the smallest first, and of equals the cheapest first."""
    # What has no price comes after all that has one, and there the number of accelerators decides.
    money = availability.paid(verdict.compared) * np.nan_to_num(availability.price, nan=float(UNPRICED))
    places = {name: place for place, name in enumerate(requirements.names)}
    named = candidates.by_accelerator(lambda row: places[row.name])
    method = candidates.by_draft(lambda draft: draft.order)
    keys = (candidates.nodes, candidates.tensor, candidates.engine, method, named)
    ties = tuple(key[availability.candidate] for key in keys)
    return np.asarray(np.lexsort((*ties, availability.capacity_type, money, leading)))


def bucket(value: Numbers) -> Numbers:
    """Round to steps of a hundredth, relative: what falls into one step counts as equal."""
    with np.errstate(divide="ignore"):
        return np.asarray(np.floor(np.log(np.nan_to_num(value, nan=np.inf)) / BUCKET))
