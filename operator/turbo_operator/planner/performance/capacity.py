"""How many requests a second one replica takes while the targets hold, and what they see at a rate. Pure."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from turbo_operator.planner.arrays import Mask, Numbers, Selector, take
from turbo_operator.planner.performance import queueing
from turbo_operator.planner.requirements import Bound, Demand

UTILIZATION = 0.9  # of the saturated rate, where no target bounds it: the queue stays short at chance peaks
BITS = 11  # of the interval in which a capacity is sought; 2048 parts
TIMES = (1e-5, 1e5)  # seconds between which a percentile lies
TIME_BITS = 16
AT_ONCE = 512  # evaluations of the queue in one array
Late = Callable[[queueing.Queue, Demand, Numbers | float], Numbers]


@dataclass(frozen=True, slots=True)
class ReplicaPerformance:
    """What one replica of each candidate does at some load; arrays over c. Times in seconds."""

    requests_per_second: Numbers
    concurrency: Numbers  # mean requests decoded together
    time_to_first_token: Numbers  # at the target's percentile, 95 without one; 1e5 where the queue never ends
    time_per_output_token: Numbers  # the same
    tokens_per_second: Numbers  # output tokens


def saturated(engines: queueing.Engines, demand: Demand) -> Numbers:
    """[c] requests per second while one always waits."""
    return queueing.completions(engines, demand, queueing.crowd(engines, demand))


def capacity(engines: queueing.Engines, demand: Demand) -> Numbers:
    """[c] the most requests per second of one replica, to `UTILIZATION`, that keep the targets; 0: none."""
    limit = UTILIZATION * saturated(engines, demand)
    if not demand.has_latency:
        return limit
    chain = queueing.Chain.of(engines, demand)

    def holds(place: Selector, part: Numbers) -> Mask:
        # Squared, so that a small capacity is found as exactly as a large one.
        return _holds(take(chain, place).at(limit[place] * part**2, demand), demand)

    return limit * _highest(holds, len(limit), BITS) ** 2


def served(engines: queueing.Engines, demand: Demand, rate: Numbers) -> ReplicaPerformance:
    """Compute what one replica does at `rate` [c] requests per second; what is too much waits for ever."""
    queue = queueing.Chain.of(engines, demand).at(rate, demand)
    return _served(queue, demand, np.minimum(rate, saturated(engines, demand)))


def closed(engines: queueing.Engines, demand: Demand, running: Numbers) -> ReplicaPerformance:
    """Compute what one replica does with `running` [c] requests under way; beyond its slots they wait."""
    queue, rate = _closed(engines, demand, running)
    return _served(queue, demand, rate)


def keeps(engines: queueing.Engines, demand: Demand, running: Numbers) -> Mask:
    """[c] whether the targets hold with `running` [c] requests always under way: faster than `closed`."""
    return _holds(_closed(engines, demand, running)[0], demand)


def unloaded_latency(engines: queueing.Engines, demand: Demand) -> tuple[Numbers, Numbers]:
    """[c] seconds to the first token of a long prompt, and per output token, of one request alone."""
    token = engines.decode[:, 0]
    return engines.first + token + engines.prefill * demand.prompt.p95, token


def _closed(engines: queueing.Engines, demand: Demand, running: Numbers) -> tuple[queueing.Queue, Numbers]:
    together = np.clip(running, 1.0, engines.slots)
    rate = queueing.completions(engines, demand, np.minimum(together, queueing.crowd(engines, demand)))
    return queueing.Chain.of(engines, demand).with_running(together, rate, demand), rate


def _served(queue: queueing.Queue, demand: Demand, rate: Numbers) -> ReplicaPerformance:
    first, token = (_percentile(late, queue, demand, bound) for late, bound in _bounds(demand))
    return ReplicaPerformance(rate, queue.together, first, token, rate * demand.output.mean)


def _bounds(demand: Demand) -> tuple[tuple[Late, Bound | None], ...]:
    """Share of the requests that are late by each measure, and the bound on it."""
    return (queueing.late_first, demand.time_to_first_token), (
        queueing.late_tokens,
        demand.time_per_output_token,
    )


def _holds(queue: queueing.Queue, demand: Demand) -> Mask:
    holding = np.ones(len(queue.together), np.bool_)
    for late, bound in _bounds(demand):
        if bound is not None:
            holding &= late(queue, demand, bound.seconds) <= 1.0 - bound.share + queueing.TINY
    return holding


def _percentile(late: Late, queue: queueing.Queue, demand: Demand, bound: Bound | None) -> Numbers:
    """[c] the time that all but the allowed share of the requests keep, to 0.04 %."""
    allowed = 1.0 - (0.95 if bound is None else bound.share) + queueing.TINY
    low, high = TIMES

    def exceeded(place: Selector, part: Numbers) -> Mask:
        return np.asarray(late(take(queue, place), demand, low * (high / low) ** part) > allowed)

    part = _highest(exceeded, len(queue.together), TIME_BITS) + 0.5**TIME_BITS
    return np.asarray(low * (high / low) ** part)


def _highest(holds: Callable[[Selector, Numbers], Mask], count: int, bits: int) -> Numbers:
    """[c] the highest of the multiples of 2^-bits from 0 to 1 at which it holds; 0 where it holds at none."""
    # Of few candidates many parts are tried in one call, since a call has a cost of its own.
    width = max(1, min(4, int(math.log2(AT_ONCE / count + 1.0))))
    highest, done = np.zeros(count), 0
    whole = holds(slice(None), np.ones(count))
    while done < bits:
        taken = min(width, bits - done)
        done += taken
        parts = 2**taken - 1
        place = slice(None) if parts == 1 else np.repeat(np.arange(count), parts)
        tried = highest[:, None] + np.arange(1, parts + 1) * 0.5**done
        holding = holds(place, tried.ravel()).reshape(count, parts)
        # The first that does not hold ends it, as one after the other would.
        highest += np.cumprod(holding, axis=1).sum(axis=1) * 0.5**done
    return np.where(whole, 1.0, highest)
