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

from turbo_operator.planner.demand import Bound, Demand, Lengths

Numbers = NDArray[np.float64]
Late = Callable[[Numbers], Numbers]  # [c] seconds -> [c] share of requests that take longer

GRID = 40  # states of the chain that are looked at, whatever the number of slots
UTILISATION = 0.9  # of the saturated rate, where no target bounds it: the queue stays short at chance peaks
HALVINGS = 12  # of the interval in which the capacity is sought
NEARLY = 1.0 - 1e-6  # a queue of this load never ends
TINY = 1e-12

FINE, COARSE = (
    np.polynomial.legendre.leggauss(16),
    np.polynomial.legendre.leggauss(5),
)  # over prompts, answers
NORMAL_NODES, NORMAL_WEIGHTS = np.sqrt(3.0) * np.array((-1.0, 0.0, 1.0)), np.array((1.0, 4.0, 1.0)) / 6.0


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


def crowd(engines: Engines, demand: Demand) -> Numbers:
    """[c] requests that can be decoded together: the slots, or as many as chunks bring before they end."""
    return np.minimum(engines.slots, np.maximum(engines.chunk * demand.answer.mean / demand.prompt.mean, 1.0))


def saturated(engines: Engines, demand: Demand) -> Numbers:
    """[c] requests per second when there is always one that waits."""
    together = crowd(engines, demand)
    decode = _interpolate(engines.rows, engines.decode, together)
    return together / (demand.answer.mean * decode + together * demand.prompt.mean * engines.prefill)


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
    first = _quantile(chain.late_first(state), 1.0 - share, rate)
    share = _share(demand.time_per_output_token)
    token = _quantile(chain.late_tokens(state), 1.0 - share, rate)
    return _served(demand, rate, state.mean, first, token)


def concurrency(engines: Engines, demand: Demand, rate: Numbers) -> Numbers:
    """[c] the same as `served` says, without its percentiles."""
    return _Chain.of(engines, demand).at(rate).mean


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
    """The queue at one rate; arrays over c."""

    rate: Numbers
    reading: Numbers  # share of time that reads prompts
    mean: Numbers  # requests decoded together
    met: Numbers  # the same as a decoding request sees them, itself included
    variance: Numbers  # of the number decoded together
    full: Numbers  # chance that an arrival finds no slot
    ending: Numbers  # rate at which its wait for a slot ends
    chunk: Numbers  # tokens of prompts in a step that reads any
    busy: Numbers  # share of time with a prompt to read
    memory: Numbers  # steps over which it is forgotten whether there was one
    steps: Numbers  # share of steps that read prompts
    then: Numbers  # requests decoded together while prompts wait


@dataclass(frozen=True, slots=True)
class _Chain:
    engines: Engines
    demand: Demand
    death: Numbers  # [c, GRID] requests that end per second
    log_product: Numbers  # [c, GRID] sum of the logarithms of death up to the state
    width: Numbers  # [c, GRID] states that each one stands for
    slope: Numbers  # [c, GRID] of `decode`
    chunk: Numbers  # [c] tokens of prompts read along with a random one of a prompt, itself included

    @classmethod
    def of(cls, engines: Engines, demand: Demand) -> _Chain:
        rows, prompt = engines.rows, demand.prompt
        read = (prompt.mean * engines.prefill)[:, None]
        # More requests together never end fewer per second: measured curves may dip.
        death = np.maximum.accumulate(rows / (demand.answer.mean * engines.decode + rows * read), axis=1)
        log = np.log(death)
        gap = np.diff(rows, axis=1, prepend=0.0)
        before = np.concatenate((log[:, :1], log[:, :-1]), axis=1)
        log_product = np.cumsum(gap * (log + before) / 2.0 + (log - before) / 2.0, axis=1)
        following = np.concatenate((gap[:, 1:], np.zeros_like(gap[:, :1])), axis=1)
        width = gap / 2.0 + np.where(following > 0.0, following / 2.0, 0.5 * (gap > 0.0))
        rise = np.diff(engines.decode, axis=1, append=engines.decode[:, -1:])
        slope = np.divide(rise, following, out=np.zeros_like(rise), where=following > 0.0)
        tokens, weight = _lengths(prompt, FINE)
        chunk = (weight * tokens * np.minimum(tokens, engines.chunk[:, None])).sum(axis=1) / prompt.mean
        return cls(engines, demand, death, log_product, width, slope, chunk)

    def at(self, rate: Numbers) -> _State:
        engines, demand = self.engines, self.demand
        prompt = demand.prompt
        rows = engines.rows
        with np.errstate(divide="ignore"):
            log_mass = rows * np.log(rate)[:, None] - self.log_product
        peak = np.maximum(log_mass.max(axis=1), 0.0)
        mass = self.width * np.exp(log_mass - peak[:, None])
        load = np.minimum(rate / self.death[:, -1], NEARLY)
        # Beyond the last slot the death rate stays: a geometric tail.
        last = np.exp(log_mass[:, -1] - peak)
        waiting = last * load / (1.0 - load)
        mass[:, -1] += waiting
        total = np.exp(-peak) + mass.sum(axis=1)
        first = (mass * rows).sum(axis=1)
        second = (mass * rows * rows).sum(axis=1)
        mean = first / total
        met = second / np.maximum(first, TINY)
        variance = met * mean - mean**2
        most = crowd(engines, demand)
        mean, met = np.minimum(mean, most), np.minimum(np.maximum(met, 1.0), most)
        variability = (1.0 + demand.answer.squared_variation) / 2.0
        ending = self.death[:, -1] * (1.0 - load) / variability
        full = (last + waiting) / total

        decode = _interpolate(rows, engines.decode, met)
        offered = rate * prompt.mean
        reading = np.minimum(offered * engines.prefill, NEARLY)
        idle = 1.0 - reading
        filled = np.minimum(offered * (engines.prefill + decode / engines.chunk), 1.0)
        chunk = self.chunk + np.maximum(engines.chunk - self.chunk, 0.0) * filled
        # Of steps the share that reads is smaller than of time: those steps are longer.
        steps = np.minimum(offered * decode / (idle * chunk), NEARLY)
        memory = prompt.second_moment / prompt.mean / (2.0 * chunk * idle**2 * (1.0 - steps))
        then = mean + (most - mean) * memory / (memory + demand.answer.mean)
        busy = np.minimum(
            offered * (engines.prefill + _interpolate(rows, engines.decode, then) / chunk), NEARLY
        )
        return _State(rate, reading, mean, met, variance, full, ending, chunk, busy, memory, steps, then)

    def late_first(self, state: _State) -> Late:
        """The share of requests whose first token comes later."""
        prompt = self.demand.prompt
        engine, prefill = self.engines, self.engines.prefill
        # What runs when it comes ends first; then come the steps of the prompts before and of its own.
        under_way = _interpolate(engine.rows, engine.decode, state.mean) * np.minimum(state.mean, 1.0) / 2.0
        step = _interpolate(engine.rows, engine.decode, state.then) * np.minimum(state.then, 1.0)
        each = prefill + step / state.chunk
        queue = each * prompt.second_moment / prompt.mean / (2.0 * (1.0 - state.busy))
        slowed = prefill + step / engine.chunk
        endless = (state.busy >= NEARLY) | (state.ending <= 0.0)

        def late(seconds: Numbers) -> Numbers:
            left = seconds - engine.first - under_way
            longest = np.minimum((left - step) / np.maximum(prefill, TINY), (left - step / 2.0) / slowed)
            # Over the prompts that are read within that time, and those at the wall apart.
            most = np.clip(longest / prompt.p95, TINY, 1.0) ** (1.0 / prompt.power)
            e, weight = _exponential(prompt.depth, FINE, most[:, None])
            e = np.concatenate((e, np.ones_like(most)[:, None]), axis=1)
            weight = np.concatenate((weight, prompt.wall * (longest >= prompt.p95)[:, None]), axis=1)
            tokens = prompt.p95 * e**prompt.power
            own = np.maximum(
                tokens * prefill[:, None] + step[:, None], tokens * slowed[:, None] + step[:, None] / 2.0
            )
            over = _waits(state, queue, left[:, None] - own)
            kept = (weight * (1.0 - over)).sum(axis=1)
            found: Numbers = np.where(endless, 1.0, 1.0 - kept)
            return found

        return late

    def late_tokens(self, state: _State) -> Late:
        """The share of requests whose mean time per output token is longer.

        In a request's time some share of the steps also read prompts. Its mean over requests is known, its
        variance shrinks with the length of the answer, and it is taken as probit-normal.
        """
        engines, demand = self.engines, self.demand
        answers, weight = _lengths(demand.answer, COARSE)
        lengths = np.maximum(answers - 1.0, 1.0)
        decode = _interpolate(engines.rows, engines.decode, state.met)
        slope = _interpolate(engines.rows, self.slope, state.met)
        steps = state.steps[:, None]
        forget = lengths / state.memory[:, None]
        mean = steps + (np.maximum(state.busy[:, None], steps) - steps) * -np.expm1(-forget) / forget
        mean = np.clip(mean, 1e-6, NEARLY)
        # How the number decoded together is forgotten: answers end and others begin.
        pull = demand.answer.mean / np.maximum(1.0 - slope * state.met / decode, 0.05)
        spread = (
            slope[:, None]
            / (1.0 - state.reading[:, None])
            * np.sqrt(state.variance[:, None] * _averaged(lengths / pull[:, None]))
        )
        deviate = _deviate(mean)
        steep = mean * (1.0 - mean) * 2.0 * math.pi * np.exp(deviate**2)
        shared = np.clip(1.0 - (1.0 - _averaged(forget)) ** steep, 1e-6, NEARLY)
        # [nodes, c, n] over the number decoded together, taken as normal
        least = decode[:, None] + NORMAL_NODES[:, None, None] * spread
        full = np.maximum(engines.prefill * state.chunk, TINY)[:, None]
        own, rest = deviate / np.sqrt(shared), np.sqrt((1.0 - shared) / shared)

        def late(seconds: Numbers) -> Numbers:
            room = (seconds[:, None] - least) / full
            z = own - rest * _deviate(np.clip(room, 1e-6, NEARLY))
            above = np.where(room >= 1.0, 0.0, np.where(room <= 0.0, 1.0, _normal(z)))
            found: Numbers = (np.tensordot(NORMAL_WEIGHTS, above, 1) * weight).sum(axis=1)
            return found

        return late


def _waits(state: _State, queue: Numbers, x: Numbers) -> Numbers:
    """Chance [c, n] that the waits for a slot and for the prompts before together exceed x [c, n].

    Each is nothing or exponential, taken as independent.
    """
    x = np.maximum(x, 0.0)
    first = 1.0 / np.maximum(queue, TINY)
    second = np.maximum(state.ending, TINY)
    second = np.where(np.abs(first - second) < 1e-3 * first, first * 1.001, second)[:, None]
    first, busy, full = first[:, None], state.busy[:, None], state.full[:, None]
    a, b = np.exp(-first * x), np.exp(-second * x)
    both = (second * a - first * b) / (second - first)
    found: Numbers = busy * (1.0 - full) * a + full * (1.0 - busy) * b + busy * full * both
    return found


def _exponential(depth: float, rule: tuple[Numbers, Numbers], most: Numbers) -> tuple[Numbers, Numbers]:
    """Nodes and weights of E / depth from 0 to `most`, of an integration rule over -1 to 1."""
    nodes = most * (rule[0] + 1.0) / 2.0
    return nodes, most * rule[1] / 2.0 * depth * np.exp(-depth * nodes)


def _lengths(lengths: Lengths, rule: tuple[Numbers, Numbers]) -> tuple[Numbers, Numbers]:
    """Lengths in tokens and their weights, of which sums are means over all requests."""
    nodes, weight = _exponential(lengths.depth, rule, np.ones(1))
    return lengths.p95 * np.append(nodes, 1.0) ** lengths.power, np.append(weight, lengths.wall)


def _averaged(span: Numbers) -> Numbers:
    """Variance of the mean over a span, of what is forgotten exponentially, over that at one moment."""
    span = np.maximum(span, 1e-3)
    found: Numbers = 2.0 * (span + np.expm1(-span)) / span**2
    return found


def _normal(z: Numbers) -> Numbers:
    """The normal distribution function, within 0.0003."""
    found: Numbers = 0.5 + 0.5 * np.tanh(z * (0.7978846 + 0.0356774 * z**2))
    return found


def _deviate(share: Numbers) -> Numbers:
    """Its inverse, within 0.003 where share is from 0.005 to 0.995."""
    found: Numbers = 4.91 * (share**0.14 - (1.0 - share) ** 0.14)
    return found


def _share(bound: Bound | None) -> float:
    return 0.95 if bound is None else bound.share


def _holds(chain: _Chain, demand: Demand, rate: Numbers) -> NDArray[np.bool_]:
    state = chain.at(rate)
    held = np.ones(len(rate), np.bool_)
    if bound := demand.time_to_first_token:
        held &= chain.late_first(state)(np.full_like(rate, bound.seconds)) <= 1.0 - bound.share
    if bound := demand.time_per_output_token:
        held &= chain.late_tokens(state)(np.full_like(rate, bound.seconds)) <= 1.0 - bound.share
    return held


def _quantile(late: Late, allowed: float, like: Numbers) -> Numbers:
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
