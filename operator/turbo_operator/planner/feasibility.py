"""How many replicas each candidate needs, what they would do and cost, and which demand they break. Pure.

All over p pairs of a candidate and a capacity type at once.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from turbo_operator.api import CapacityType, PlanReason
from turbo_operator.planner.availability import MICRO, Availability
from turbo_operator.planner.candidates import Candidates
from turbo_operator.planner.performance import capacity
from turbo_operator.planner.request import Requirements

Numbers = NDArray[np.float64]
Mask = NDArray[np.bool_]

# What a candidate may break, the one that tells most first; an earlier one hides a later one.
CODES = (
    PlanReason.FEASIBLE,
    PlanReason.OUT_OF_MEMORY,
    PlanReason.NO_PROFILE,
    PlanReason.TARGET_UNREACHABLE,
    PlanReason.NO_CAPACITY,
    PlanReason.PRICE_UNKNOWN,
    PlanReason.OVER_BUDGET,
    PlanReason.NOT_YET_SUPPORTED,
)
BUCKET = 0.01  # relative: times and throughputs that differ by less are equal, so that money decides
UNPRICED = 1_000_000 * MICRO  # above the price of any accelerator
HALVINGS = 10  # of the interval in which the concurrency of one replica is sought


@dataclass(frozen=True, slots=True)
class Speed:
    """What one replica of c candidates does; NaN where it has no profile or does not fit. [c]"""

    requests_per_second: Numbers  # the most while the targets hold
    concurrency: Numbers  # requests always under way that one takes while they hold
    tokens_per_second: Numbers  # output tokens then

    @classmethod
    def unknown(cls, count: int) -> Speed:
        """Nothing known yet."""
        return cls(np.full(count, np.nan), np.full(count, np.nan), np.full(count, np.nan))


def speed(engines: capacity.Engines, request: Requirements) -> Speed:
    """What one replica of each candidate takes while the targets hold."""
    demand = request.demand
    if demand.concurrency is None:
        rate = capacity.capacity(engines, demand)
        return Speed(rate, np.full_like(rate, np.nan), rate * demand.answer.mean)
    low, high = np.zeros_like(engines.slots), engines.slots.copy()
    low = np.where(_keeps(engines, request, high), high, low)
    for _ in range(HALVINGS):
        middle = np.ceil((low + high) / 2.0)
        held = _keeps(engines, request, middle)
        low, high = np.where(held, middle, low), np.where(held, high, np.maximum(middle - 1.0, low))
    served = capacity.closed(engines, demand, np.maximum(low, 1.0))
    some = low >= 1.0
    return Speed(
        np.where(some, served.requests_per_second, 0.0),
        low,
        np.where(some, served.tokens_per_second, 0.0),
    )


def _keeps(engines: capacity.Engines, request: Requirements, running: Numbers) -> Mask:
    """Whether the targets hold with `running` requests always under way on one replica.

    Of a throughput each request must get its share: more replicas bring no more requests.
    """
    demand, together = request.demand, np.maximum(running, 1.0)
    held = capacity.keeps(engines, demand, together)
    if demand.concurrency is None or demand.tokens_per_second is None:
        return held
    share = demand.tokens_per_second / demand.concurrency
    ending = capacity.completions(engines, demand, together)
    found: Mask = held & (ending * demand.answer.mean >= together * share * (1.0 - 1e-9))
    return found


def load(request: Requirements, speeds: Speed, replicas: Numbers) -> Numbers:
    """Of one replica: requests per second, or of a demand in concurrency those under way.

    What is not known is taken to be all that it can do.
    """
    each = np.maximum(replicas, 1.0)
    if request.demand.concurrency is not None:
        return request.demand.concurrency / each
    return speeds.requests_per_second + 0.0 * each if request.rate is None else request.rate / each


def output(request: Requirements, speeds: Speed, replicas: Numbers) -> Numbers:
    """Output tokens per second of all replicas at the planned load, and no more than they can do."""
    most = replicas * speeds.tokens_per_second
    if request.rate is None:
        return most
    found: Numbers = np.minimum(most, request.rate * request.demand.answer.mean)
    return found


@dataclass(frozen=True, slots=True)
class Feasibility:
    """What becomes of p pairs."""

    replicas: Numbers  # that run
    wanted: Numbers  # that candidates are compared by: as many as the load needs, whoever decides on those
    code: NDArray[np.int64]  # of CODES
    miss: Numbers  # what is needed over what there is; 1 where nothing is short
    cost: Numbers  # micro-dollars per hour of the replicas; NaN where the price is unknown

    @property
    def told(self) -> Numbers:
        """Replicas that a rejected row speaks of: where it would do, those that it is compared by."""
        would_do = self.is_(PlanReason.FEASIBLE) | self.is_(PlanReason.NOT_YET_SUPPORTED)
        found: Numbers = np.where(would_do, self.wanted, self.replicas)
        return found

    def is_(self, reason: PlanReason) -> Mask:
        """The pairs with this reason."""
        found: Mask = self.code == CODES.index(reason)
        return found


def needed(request: Requirements, speeds: Speed, candidate: NDArray[np.int64]) -> Numbers:
    """[p] replicas that the load needs, at least the fewest; inf where no number does."""
    demand = request.demand
    wanted = [
        (each, speed_of[candidate])
        for each, speed_of in (
            (demand.rate, speeds.requests_per_second),
            (demand.concurrency, speeds.concurrency),
            (demand.tokens_per_second, speeds.tokens_per_second),
        )
        if each is not None
    ]
    found = np.full(len(candidate), float(request.fewest))
    with np.errstate(divide="ignore", invalid="ignore"):
        for amount, each in wanted:
            # A hair of tolerance: what divides evenly must not need one more for the last bit of a float.
            found = np.maximum(found, np.where(each > 0.0, np.ceil(amount / each * (1.0 - 1e-9)), np.inf))
        if request.targets:
            able = speeds.requests_per_second[candidate] > 0.0
            found = np.where(able, found, np.inf)
    return found


def check_feasibility(
    request: Requirements,
    fits: Mask,
    profiled: Mask,
    lacking: Mask,
    speeds: Speed,
    of: Availability,
) -> Feasibility:
    """The verdict on every pair. `lacking`: candidates that cannot be rendered or run yet."""
    count = len(of.candidate)
    need = (
        needed(request, speeds, of.candidate)
        if request.needs_speed
        else np.full(count, float(request.fewest))
    )
    most = float(request.most)
    wanted = np.where(np.isinf(need), float(request.fewest), need)
    # Too few by somebody else's decision is no reason to serve with none: only what no number mends is.
    short = np.isinf(need) if request.external else need > most
    replicas = np.full(count, float(request.fixed)) if request.external else wanted
    bound = np.minimum(of.room, of.within_total)
    if request.expands:
        replicas = np.maximum(replicas, np.minimum(np.minimum(bound, of.affordable), most))
    cost = of.cost(replicas)
    over, excess = _over_budget(request, speeds, of, replicas, cost)
    priced = ~np.isnan(of.price)
    broken = (
        (PlanReason.NOT_YET_SUPPORTED, lacking[of.candidate]),
        (PlanReason.OVER_BUDGET, over),
        (PlanReason.PRICE_UNKNOWN, ~priced & ~_unpriced_will_do(request, of)),
        (PlanReason.NO_CAPACITY, replicas > bound),
        (PlanReason.TARGET_UNREACHABLE, short),
        (PlanReason.NO_PROFILE, ~profiled[of.candidate] & request.needs_speed),
        (PlanReason.OUT_OF_MEMORY, ~fits[of.candidate]),
    )
    code = np.zeros(count, np.int64)
    for reason, mask in broken:
        code[mask] = CODES.index(reason)
    with np.errstate(divide="ignore", invalid="ignore"):
        miss = np.select(
            [code == CODES.index(PlanReason.OVER_BUDGET), code == CODES.index(PlanReason.NO_CAPACITY)],
            [excess, replicas / np.maximum(bound, 0.5)],
            1.0,
        )
        unreached = code == CODES.index(PlanReason.TARGET_UNREACHABLE)
        miss = np.where(unreached, need / most, miss)
    # Without a load nothing is known to be needed but what somebody asked for.
    compared = wanted if request.external and request.loaded else np.maximum(replicas, 1.0)
    return Feasibility(replicas, compared, code, miss, cost)


def _over_budget(
    request: Requirements, speeds: Speed, of: Availability, replicas: Numbers, cost: Numbers
) -> tuple[Mask, Numbers]:
    over = replicas > of.affordable
    excess = np.ones(len(cost))
    if request.max_per_hour is not None:
        excess = cost / float(request.max_per_hour * MICRO)
    if request.max_per_million is not None:
        per_million = per_million_tokens(request, speeds, of.candidate, replicas, cost)
        ratio = per_million / float(request.max_per_million * MICRO)
        over |= ratio > 1.0 + 1e-12
        excess = np.maximum(excess, np.nan_to_num(ratio, nan=0.0))
    return over, excess


def per_million_tokens(
    request: Requirements, speeds: Speed, candidate: NDArray[np.int64], replicas: Numbers, cost: Numbers
) -> Numbers:
    """[p] micro-dollars of a million output tokens at the planned load; inf where there are none."""
    of_pairs = Speed(
        speeds.requests_per_second[candidate],
        speeds.concurrency[candidate],
        speeds.tokens_per_second[candidate],
    )
    per_hour = output(request, of_pairs, np.maximum(replicas, 1.0)) * 3600.0
    with np.errstate(divide="ignore", invalid="ignore"):
        found: Numbers = np.where(per_hour > 0.0, cost / per_hour * 1e6, np.where(cost > 0.0, np.inf, 0.0))
    return found


def _unpriced_will_do(request: Requirements, of: Availability) -> Mask:
    """Where cost can change neither the choice nor its feasibility, a price is not asked for."""
    on_demand = np.array([kind == CapacityType.ON_DEMAND for kind in request.capacity_types])
    found: Mask = on_demand[of.capacity_type] & request.only_one
    return found


def order(
    it: Candidates, request: Requirements, of: Availability, verdict: Feasibility, leading: Numbers
) -> NDArray[np.int64]:
    """The pairs, the best one first: that with the smallest `leading` [p], and of those the cheapest."""
    # What has no price comes after all that has one, and there the number of accelerators decides.
    money = of.paid(verdict.wanted) * np.nan_to_num(of.price, nan=float(UNPRICED))
    places = {name: place for place, name in enumerate(request.names)}
    named = np.array([places[each.name] for each in it.accelerators], float)[it.accelerator]
    method = np.array([float(each.order) for each in it.drafts])[it.draft]
    keys = (it.nodes, it.tensor, it.engine, method, named)
    last = tuple(key[of.candidate] for key in keys)
    found: NDArray[np.int64] = np.lexsort((*last, of.capacity_type, money, leading))
    return found


def bucket(value: Numbers) -> Numbers:
    """Steps of a hundredth, relative: what falls into one step counts as equal."""
    with np.errstate(divide="ignore"):
        found: Numbers = np.floor(np.log(np.nan_to_num(value, nan=np.inf)) / BUCKET)
    return found
