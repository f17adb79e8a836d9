"""How many requests a second one replica takes while the targets hold, and what they see at some rate. Pure.

Every function works on all candidates at once: an array over c candidates in each field of `Engines`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from turbo_operator.planner.demand import Bound, Demand
from turbo_operator.planner.performance.curves import GRID, TINY, Engines, Numbers, completions, crowd, rows
from turbo_operator.planner.performance.queueing import Chain, Places, Queue, late_first, late_tokens

__all__ = [
    "GRID",
    "Engines",
    "Numbers",
    "ReplicaPerformance",
    "capacity",
    "closed",
    "completions",
    "keeps",
    "replicas",
    "rows",
    "saturated",
    "served",
]

UTILISATION = 0.9  # of the saturated rate, where no target bounds it: the queue stays short at chance peaks
BITS = 11  # of the interval in which a capacity is sought; 2048 parts
TIMES = (1e-5, 1e5)  # seconds between which a percentile lies
TIME_BITS = 16
AT_ONCE = 512  # evaluations of the queue in one array


@dataclass(frozen=True, slots=True)
class ReplicaPerformance:
    """What one replica of each candidate does at some load; arrays over c. Times in seconds."""

    requests_per_second: Numbers
    concurrency: Numbers  # mean requests decoded together
    time_to_first_token: Numbers  # at the target's percentile, 95 without one; 1e5 where the queue never ends
    time_per_output_token: Numbers  # the same
    tokens: Numbers  # mean tokens held in the KV cache
    tokens_per_second: Numbers  # output tokens


def saturated(engines: Engines, demand: Demand) -> Numbers:
    """[c] requests per second when there is always one that waits."""
    return completions(engines, demand, crowd(engines, demand))


def capacity(engines: Engines, demand: Demand) -> Numbers:
    """[c] the highest requests per second of one replica at which the demand's targets hold; 0: at none.

    Without a target it is `UTILISATION` of the saturated rate, and never more than that with one.
    """
    most = UTILISATION * saturated(engines, demand)
    if demand.time_to_first_token is None and demand.time_per_output_token is None:
        return most
    chain = Chain.of(engines, demand)

    def holds(place: Places, part: Numbers) -> NDArray[np.bool_]:
        # Squared, so that a small capacity is found as exactly as a large one.
        return _holds(chain.take(place).at(most[place] * part**2, demand), demand)

    return most * _highest(holds, len(most), BITS) ** 2


def served(engines: Engines, demand: Demand, rate: Numbers) -> ReplicaPerformance:
    """What one replica of each candidate does when `rate` [c] requests come to it per second.

    Of more than the saturated rate the rest waits for ever.
    """
    queue = Chain.of(engines, demand).at(rate, demand)
    return _served(queue, demand, np.minimum(rate, saturated(engines, demand)))


def concurrency(engines: Engines, demand: Demand, rate: Numbers) -> Numbers:
    """[c] the same as `served` says, without its percentiles."""
    return Chain.of(engines, demand).at(rate, demand).together


def closed(engines: Engines, demand: Demand, running: Numbers) -> ReplicaPerformance:
    """What one replica of each candidate does with `running` [c] requests always under way, each followed by
    the next. Those beyond its slots wait outside, and are not in the time to first token.
    """
    return _served(*_closed(engines, demand, running))


def keeps(engines: Engines, demand: Demand, running: Numbers) -> NDArray[np.bool_]:
    """[c] whether the targets hold with `running` [c] requests always under way: faster than `closed`."""
    queue, demand, _ = _closed(engines, demand, running)
    return _holds(queue, demand)


def replicas(wanted: float, each: float) -> int | None:
    """How many replicas of a capacity serve what is wanted, in the same unit; None: no number does."""
    # A hair of tolerance: what divides evenly must not need one more for the last bit of a float.
    return max(1, math.ceil(wanted / each * (1.0 - 1e-9))) if each > 0.0 else None


def _closed(engines: Engines, demand: Demand, running: Numbers) -> tuple[Queue, Demand, Numbers]:
    together = np.clip(running, 1.0, engines.slots)
    rate = completions(engines, demand, np.minimum(together, crowd(engines, demand)))
    return Chain.of(engines, demand).with_running(together, rate, demand), demand, rate


def _served(queue: Queue, demand: Demand, rate: Numbers) -> ReplicaPerformance:
    def first(place: Places, seconds: Numbers) -> Numbers:
        return late_first(queue.take(place), demand.prompt, seconds)

    def token(place: Places, seconds: Numbers) -> Numbers:
        return late_tokens(queue.take(place), demand, seconds)

    return ReplicaPerformance(
        requests_per_second=rate,
        concurrency=queue.together,
        time_to_first_token=_percentile(first, len(rate), demand.time_to_first_token),
        time_per_output_token=_percentile(token, len(rate), demand.time_per_output_token),
        tokens=queue.together * demand.held,
        tokens_per_second=rate * demand.answer.mean,
    )


def _holds(queue: Queue, demand: Demand) -> NDArray[np.bool_]:
    held = np.ones(len(queue.together), np.bool_)
    if bound := demand.time_to_first_token:
        held &= late_first(queue, demand.prompt, bound.seconds) <= 1.0 - bound.share + TINY
    if bound := demand.time_per_output_token:
        held &= late_tokens(queue, demand, bound.seconds) <= 1.0 - bound.share + TINY
    return held


def _percentile(late: Callable[[Places, Numbers], Numbers], count: int, bound: Bound | None) -> Numbers:
    """[c] the time that all but the allowed share of the requests keep, to 0.04 %."""
    allowed = 1.0 - (0.95 if bound is None else bound.share) + TINY
    least, most = TIMES

    def exceeded(place: Places, part: Numbers) -> NDArray[np.bool_]:
        found: NDArray[np.bool_] = late(place, least * (most / least) ** part) > allowed
        return found

    found: Numbers = least * (most / least) ** (_highest(exceeded, count, TIME_BITS) + 0.5**TIME_BITS)
    return found


def _highest(holds: Callable[[Places, Numbers], NDArray[np.bool_]], count: int, bits: int) -> Numbers:
    """[c] the highest of the multiples of 2^-bits from 0 to 1 at which it holds; 0 where it holds at none.

    Of few candidates many parts are tried in one call, since a call has a cost of its own; the answer is the
    same.
    """
    width = max(1, min(4, int(math.log2(AT_ONCE / count + 1.0))))
    found, done = np.zeros(count), 0
    whole = holds(slice(None), np.ones(count))
    while done < bits:
        taken = min(width, bits - done)
        done += taken
        parts = 2**taken - 1
        place = slice(None) if parts == 1 else np.repeat(np.arange(count), parts)
        tried = found[:, None] + np.arange(1, parts + 1) * 0.5**done
        held = holds(place, tried.ravel()).reshape(count, parts)
        # The first that does not hold ends it, as one after the other would.
        found += np.cumprod(held, axis=1).sum(axis=1) * 0.5**done
    return np.where(whole, 1.0, found)
