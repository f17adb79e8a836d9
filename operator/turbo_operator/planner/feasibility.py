"""How many replicas offerings (a candidate with a capacity type) need and can get, and their cost. Pure."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from turbo_operator.api import MAX_REPLICAS, CapacityType, PlanReason
from turbo_operator.budget import Footprint
from turbo_operator.planner.arrays import Indices, Mask, Numbers
from turbo_operator.planner.candidates import Candidates
from turbo_operator.planner.performance import capacity
from turbo_operator.planner.performance.queueing import Engines, completions
from turbo_operator.planner.requirements import Requirements
from turbo_operator.snapshot import Accelerator, Supply

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
HALVINGS = 10  # of the interval in which the concurrency of one replica is sought


@dataclass(frozen=True, slots=True)
class Availability:
    """p offerings, each a candidate with a capacity type; each array has p elements."""

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
    candidates: Candidates, requirements: Requirements, host_bytes: Numbers
) -> Availability:
    """Count every candidate with every capacity type that the spec allows; `host_bytes` [c] of a draft on the
    host's cores.
    """
    supply, now = requirements.inputs.supply, requirements.now
    types = requirements.accelerators.capacity_types
    max_total, max_per_hour = requirements.accelerators.max_total, requirements.cost.max_per_hour

    def terms(
        kind: CapacityType, place: int, per_replica: int, nodes: int, tensor: int, draft_bytes: int
    ) -> tuple[float, ...]:
        """Count one size of a replica: the fields of `Availability` from `price` on."""
        row: Accelerator = candidates.accelerators[place]
        footprint = Footprint(row, kind, per_replica, nodes, requirements.host(row, tensor, draft_bytes))
        price = row.prices.get(kind)
        bounds = (
            None if supply is None else footprint.room(supply.get(row.name, Supply()), now),
            None if max_total is None else footprint.within(max_total),
            None if max_per_hour is None else footprint.affordable(max_per_hour),
        )
        return (
            np.nan if price is None else float(price * MICRO),
            *footprint.lot,
            *(MAX_REPLICAS if bound is None else min(bound, MAX_REPLICAS) for bound in bounds),
        )

    together = candidates.tensor * candidates.data  # of one pod, a draft's own apart
    sizes_of = (candidates.accelerator, candidates.per_replica, candidates.nodes, together, host_bytes)
    columns = np.stack(sizes_of, axis=1)
    sizes, size_of = np.unique(columns.astype(np.int64), axis=0, return_inverse=True)
    rows = np.array([terms(kind, *size) for kind in types for size in sizes.tolist()])
    rows = rows.reshape(len(types), len(sizes), 6)[:, size_of.reshape(-1)].reshape(-1, 6)
    candidate, kind_of = np.arange(len(candidates)), np.arange(len(types))
    return Availability(np.tile(candidate, len(types)), np.repeat(kind_of, len(candidates)), *rows.T)


@dataclass(frozen=True, slots=True)
class Speed:
    """What one replica of c candidates does; NaN where it has no profile or does not fit. [c]"""

    requests_per_second: Numbers  # maximum while the targets hold
    concurrency: Numbers  # requests always under way that one takes while they hold
    tokens_per_second: Numbers  # output tokens then


def compute_speed(engines: Engines, requirements: Requirements) -> Speed:
    """Compute what one replica of each candidate takes while the targets hold."""
    demand = requirements.demand
    if demand.concurrency is None:
        rate = capacity.capacity(engines, demand)
        return Speed(rate, np.full_like(rate, np.nan), rate * demand.output.mean)

    def keeps(running: Numbers) -> Mask:
        """Whether the targets hold with so many requests always under way on one replica."""
        together = np.maximum(running, 1.0)
        kept = capacity.keeps(engines, demand, together)
        if demand.concurrency is None or demand.tokens_per_second is None:
            return kept
        # Each request must get its share of the throughput: more replicas bring no more requests.
        share = demand.tokens_per_second / demand.concurrency
        ending = completions(engines, demand, together)
        return np.asarray(kept & (ending * demand.output.mean >= together * share * (1.0 - 1e-9)))

    high = engines.slots.copy()
    low = np.where(keeps(high), high, 0.0)
    for _ in range(HALVINGS):
        middle = np.ceil((low + high) / 2.0)
        kept = keeps(middle)
        low, high = np.where(kept, middle, low), np.where(kept, high, np.maximum(middle - 1.0, low))
    served = capacity.closed(engines, demand, np.maximum(low, 1.0))
    rate = np.where(low >= 1.0, served.requests_per_second, 0.0)
    return Speed(rate, low, np.where(low >= 1.0, served.tokens_per_second, 0.0))


@dataclass(frozen=True, slots=True)
class Feasibility:
    """The verdict on p offerings."""

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
        """Whether each offering has this reason."""
        return np.asarray(self.code == CODES.index(reason))


def filled_replicas(requirements: Requirements, speeds: Speed, candidate: Indices) -> Numbers:
    """[p] replicas that the load takes, in fractions; NaN without a load, inf where no number does."""
    demand = requirements.demand
    loads = (
        (demand.rate, speeds.requests_per_second),
        (demand.concurrency, speeds.concurrency),
        (demand.tokens_per_second, speeds.tokens_per_second),
    )
    filled = np.full(len(candidate), np.nan)
    with np.errstate(divide="ignore", invalid="ignore"):
        for load, speed in loads:
            if load is not None:
                one = speed[candidate]
                filled = np.fmax(filled, np.where(one > 0.0, load / one, np.inf))
    return filled


def needed_replicas(requirements: Requirements, speeds: Speed, candidate: Indices) -> Numbers:
    """[p] replicas that the load needs, and no fewer than the minimum; inf where no number does."""
    # A hair of tolerance: what divides evenly must not need one more for the last bit of a float.
    whole = np.ceil(filled_replicas(requirements, speeds, candidate) * (1.0 - 1e-9))
    needed = np.fmax(float(requirements.min_replicas), whole)
    if requirements.demand.has_latency:
        needed = np.where(speeds.requests_per_second[candidate] > 0.0, needed, np.inf)
    return np.asarray(needed)


def bucket(value: Numbers) -> Numbers:
    """Round to steps of a hundredth, relative: what falls into one step counts as equal."""
    with np.errstate(divide="ignore"):
        return np.asarray(np.floor(np.log(np.nan_to_num(value, nan=np.inf)) / BUCKET))
