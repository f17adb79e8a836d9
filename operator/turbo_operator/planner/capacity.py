"""How many requests a second one replica takes while the targets hold. Pure.

Every function works on all candidates at once, an array over c candidates in each field of `Engines`.

The queue: requests arrive at random (Poisson). A step decodes all running requests and reads up to `chunk`
tokens of prompts, first come, first served. The number that decode is a birth-death chain whose death rate
depends on its state, n / (answer decode(n)), slowed by the share of time that prompts take; prompts are a
queue of one server; a request that finds all slots taken waits for one.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from turbo_operator.planner.demand import Bound, Demand

Numbers = NDArray[np.float64]

GRID = 40  # states of the chain that are looked at, whatever the number of slots
UTILISATION = 0.9  # of the saturated rate, where no target bounds it: the queue stays short at chance peaks
HALVINGS = 12  # of the interval in which the capacity is sought
NODES, WEIGHTS = np.polynomial.legendre.leggauss(16)
DEVIATES = 5.0  # a normal deviate beyond is left out of integrals


def rows(slots: Numbers) -> Numbers:
    """States [c, GRID] at which `Engines.decode` is wanted: all of few slots, ever fewer of many.

    The last one of each candidate is its `slots`. Distances grow with the root of the state, as the queue's
    own spread does.
    """
    step = np.arange(1.0, GRID + 1.0)
    beyond = np.maximum(slots - GRID, 0.0)[:, None]
    bend = (np.maximum(step - 4.0, 0.0) / (GRID - 4.0)) ** 2
    found: Numbers = np.minimum(step, slots[:, None]) + beyond * bend
    return found


@dataclass(frozen=True, slots=True)
class Engines:
    """One replica of each of c candidates, as its queue sees it. Seconds and tokens."""

    rows: Numbers  # [c, GRID] requests decoded together; from `rows`
    decode: Numbers  # [c, GRID] one step with so many, over the tokens that it commits to each of them (tau)
    prefill: Numbers  # [c] to read one token of a prompt, the mean prompt's time over its length
    chunk: Numbers  # [c] tokens of prompts that one step reads at most
    first: Numbers  # [c] fixed part of a time to first token, beside queue, prompt and one step

    @property
    def slots(self) -> Numbers:
        """[c] requests decoded together at most."""
        return self.rows[:, -1]


@dataclass(frozen=True, slots=True)
class Served:
    """What one replica of each candidate does at some rate; arrays over c. Times in seconds."""

    requests_per_second: Numbers
    concurrency: Numbers  # mean requests decoded together
    time_to_first_token: Numbers  # at the target's percentile; 95 without one; inf where the queue never ends
    time_per_output_token: Numbers  # the same
    tokens: Numbers  # mean tokens held in the KV cache
    tokens_per_second: Numbers  # output tokens


def saturated(engines: Engines, demand: Demand) -> Numbers:
    """[c] requests per second with all slots taken all the time."""
    answer, prompt = demand.answer.mean, demand.prompt.mean
    by_slots = engines.slots / (answer * engines.decode[:, -1] + engines.slots * prompt * engines.prefill)
    found: Numbers = by_slots
    return found


def capacity(engines: Engines, demand: Demand) -> Numbers:
    """[c] the highest requests per second of one replica at which the demand's targets hold; 0: at none.

    Without a target it is `UTILISATION` of the saturated rate, and never more than that with one.
    """
    most = UTILISATION * saturated(engines, demand)
    if demand.time_to_first_token is None and demand.time_per_output_token is None:
        return most
    chain = _Chain.of(engines, demand)
    low, high = np.zeros_like(most), np.ones_like(most)
    fine = _holds(chain, demand, most)
    for _ in range(HALVINGS):
        middle = (low + high) / 2.0
        # Squared, so that a small capacity is found as exactly as a large one.
        held = _holds(chain, demand, most * middle**2)
        low, high = np.where(held, middle, low), np.where(held, high, middle)
    return np.where(fine, most, most * low**2)


def served(engines: Engines, demand: Demand, rate: Numbers) -> Served:
    """What one replica of each candidate does when `rate` [c] requests come to it per second."""
    chain = _Chain.of(engines, demand)
    state = chain.at(rate)
    share = _share(demand.time_to_first_token)
    first = _quantile(lambda t: chain.late_first(state, t), 1.0 - share, rate)
    share = _share(demand.time_per_output_token)
    token = _quantile(lambda t: chain.late_tokens(state, t), 1.0 - share, rate)
    return _served(demand, rate, state.mean, first, token)


def closed(engines: Engines, demand: Demand, running: Numbers) -> Served:
    """What one replica of each candidate does with `running` [c] requests always under way, at most its
    slots of them decoded together.
    """
    answer = demand.answer.mean
    together = np.minimum(running, engines.slots)
    decode = _interpolate(engines.rows, engines.decode, together)
    read = demand.prompt.mean * engines.prefill
    rate = together / (answer * decode + together * read)
    token = decode + (together - 1.0) * read / answer
    waiting = (running - together) / rate
    first = engines.first + decode + waiting + read * (1.0 + (together - 1.0) * rate * read)
    return _served(demand, rate, together, first, token)


def replicas(wanted: float, each: float) -> int | None:
    """How many replicas of a capacity serve what is wanted, in the same unit; None: no number does."""
    # A hair of tolerance: what divides evenly must not need one more for the last bit of a float.
    return max(1, math.ceil(wanted / each * (1.0 - 1e-9))) if each > 0.0 else None


def _served(demand: Demand, rate: Numbers, together: Numbers, first: Numbers, token: Numbers) -> Served:
    return Served(
        requests_per_second=rate,
        concurrency=together,
        time_to_first_token=first,
        time_per_output_token=token,
        tokens=together * demand.held,
        tokens_per_second=rate * demand.answer.mean,
    )


@dataclass(frozen=True, slots=True)
class _State:
    """The chain at one rate."""

    rate: Numbers  # [c]
    reading: Numbers  # [c] share of time that reads prompts
    weight: Numbers  # [c, GRID] share of decoded tokens in each state
    mean: Numbers  # [c] requests decoded together
    full: Numbers  # [c] chance that an arrival finds no slot
    ending: Numbers  # [c] rate at which its wait for a slot ends


@dataclass(frozen=True, slots=True)
class _Chain:
    engines: Engines
    demand: Demand
    death: Numbers  # [c, GRID] requests that end per second of decoding
    log_product: Numbers  # [c, GRID] sum of the logarithms of death up to the state
    width: Numbers  # [c, GRID] states that each one stands for

    @classmethod
    def of(cls, engines: Engines, demand: Demand) -> _Chain:
        # More requests together never end fewer per second: measured curves may dip.
        death = np.maximum.accumulate(engines.rows / (demand.answer.mean * engines.decode), axis=1)
        log = np.log(death)
        gap = np.diff(engines.rows, axis=1, prepend=0.0)
        before = np.concatenate((log[:, :1], log[:, :-1]), axis=1)
        log_product = np.cumsum(gap * (log + before) / 2.0 + (log - before) / 2.0, axis=1)
        following = np.concatenate((gap[:, 1:], np.zeros_like(gap[:, :1])), axis=1)
        width = gap / 2.0 + np.where(following > 0.0, following / 2.0, 0.5 * (gap > 0.0))
        return cls(engines, demand, death, log_product, width)

    def at(self, rate: Numbers) -> _State:
        engines, demand = self.engines, self.demand
        reading = rate * demand.prompt.mean * engines.prefill
        with np.errstate(divide="ignore"):
            birth = rate / np.maximum(1.0 - reading, 1e-12)
            log_mass = engines.rows * np.log(birth)[:, None] - self.log_product
        peak = np.maximum(log_mass.max(axis=1), 0.0)
        mass = self.width * np.exp(log_mass - peak[:, None])
        load = np.minimum(birth / self.death[:, -1], 1.0 - 1e-9)
        # Beyond the last slot the death rate stays: a geometric tail.
        last = np.exp(log_mass[:, -1] - peak)
        waiting = last * load / (1.0 - load)
        total = np.exp(-peak) + mass.sum(axis=1) + waiting
        mass[:, -1] += waiting
        decoding = mass * engines.rows
        mean = decoding.sum(axis=1)
        variability = (1.0 + demand.answer.squared_variation) / 2.0
        ending = self.death[:, -1] * (1.0 - load) * (1.0 - reading) / variability
        return _State(rate, reading, decoding / mean[:, None], mean / total, (last + waiting) / total, ending)

    def late_first(self, state: _State, seconds: Numbers) -> Numbers:
        """[c] share of requests whose first token comes after `seconds`."""
        engines, demand = self.engines, self.demand
        prompt = demand.prompt
        decode = _interpolate(engines.rows, engines.decode, state.mean)
        each = engines.prefill + decode / engines.chunk
        busy = np.minimum(state.rate * prompt.mean * each, 1.0 - 1e-9)
        queue = prompt.mean * each * (1.0 + prompt.squared_variation) / (2.0 * (1.0 - busy))
        left = np.maximum(seconds - engines.first - decode, 1e-12)
        longest = np.clip((np.log(left / each) - prompt.log_median) / prompt.spread, -DEVIATES, DEVIATES)
        half = (longest + DEVIATES) / 2.0
        z = half[:, None] * (NODES + 1.0) - DEVIATES
        own = each[:, None] * np.exp(prompt.log_median + prompt.spread * z)
        density = WEIGHTS * np.exp(-(z**2) / 2.0) / math.sqrt(2.0 * math.pi)
        rest = np.maximum(left[:, None] - own, 0.0)
        wait = 1.0 - _waits(rest, busy[:, None], queue[:, None], state.full[:, None], state.ending[:, None])
        kept = half * (density * wait).sum(axis=1)
        return np.where((busy >= 1.0 - 1e-9) | (state.ending <= 0.0), 1.0, 1.0 - kept)

    def late_tokens(self, state: _State, seconds: Numbers) -> Numbers:
        """[c] share of requests whose mean time per output token is above `seconds`."""
        slowed = self.engines.decode / np.maximum(1.0 - state.reading, 1e-12)[:, None]
        late: Numbers = (state.weight * (slowed > np.asarray(seconds)[..., None])).sum(axis=1)
        return late


def _waits(x: Numbers, busy: Numbers, queue: Numbers, full: Numbers, ending: Numbers) -> Numbers:
    """Chance that the waits for a slot and for the prompts before together exceed x.

    Each is nothing or exponential, taken as independent.
    """
    first, second = 1.0 / np.maximum(queue, 1e-12), np.maximum(ending, 1e-12)
    second = np.where(np.abs(first - second) < 1e-3 * first, second * 1.002, second)
    a, b = np.exp(-first * x), np.exp(-second * x)
    both = (second * a - first * b) / (second - first)
    found: Numbers = busy * (1.0 - full) * a + full * (1.0 - busy) * b + busy * full * both
    return found


def _share(bound: Bound | None) -> float:
    return 0.95 if bound is None else bound.share


def _holds(chain: _Chain, demand: Demand, rate: Numbers) -> NDArray[np.bool_]:
    state = chain.at(rate)
    held = np.ones(len(rate), np.bool_)
    if bound := demand.time_to_first_token:
        held &= chain.late_first(state, np.full_like(rate, bound.seconds)) <= 1.0 - bound.share
    if bound := demand.time_per_output_token:
        held &= chain.late_tokens(state, np.full_like(rate, bound.seconds)) <= 1.0 - bound.share
    return held


def _quantile(late: Callable[[Numbers], Numbers], allowed: float, like: Numbers) -> Numbers:
    low, high = np.full_like(like, math.log(1e-5)), np.full_like(like, math.log(1e5))
    for _ in range(24):
        middle = (low + high) / 2.0
        held = late(np.exp(middle)) <= allowed
        low, high = np.where(held, low, middle), np.where(held, middle, high)
    found: Numbers = np.exp(high)
    return found


def _interpolate(grid: Numbers, values: Numbers, at: Numbers) -> Numbers:
    """[c] values [c, n] over ascending grids [c, n], linear between; their ends beyond."""
    upper = np.clip((grid < at[:, None]).sum(axis=1), 1, grid.shape[1] - 1)
    row = np.arange(len(grid))
    left, right = grid[row, upper - 1], grid[row, upper]
    share = np.clip((at - left) / np.maximum(right - left, 1e-12), 0.0, 1.0)
    found: Numbers = values[row, upper - 1] * (1.0 - share) + values[row, upper] * share
    return found
