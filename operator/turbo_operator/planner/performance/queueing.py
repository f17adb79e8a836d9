"""The queue of one replica at a request rate, and how many of its requests come late. Pure.

Requests arrive at random (Poisson). A step decodes all running requests and reads up to a chunk of prompts,
first come, first served. Those that decode are a birth-death chain with a death rate of their own in each
state, n / (output decode(n) + n prefill); prompts are a queue of one server, whose steps decode as well; who
finds all slots taken waits for one; what is read while a request decodes is the busy periods of that server.
The approximations are held to a replay: tests/operator/test_capacity.py.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from turbo_operator.planner.arrays import Numbers
from turbo_operator.planner.requirements import DEPTH, WALL, Demand, Lengths

GRID = 40  # states of the queue that are looked at, whatever the number of slots
DENSE = 4  # of them the first that are one request apart
TINY = 1e-12
NEARLY = 1.0 - 1e-6  # a queue of this load never ends
NORMAL = ((-math.sqrt(3.0), 1.0 / 6.0), (0.0, 2.0 / 3.0), (math.sqrt(3.0), 1.0 / 6.0))  # nodes and weights
SHORTEST = 1e-5  # seconds that a step takes at the minimum
MIN_SHAPE = 1e-6  # of a gamma distribution


def _rule(count: int, power: float) -> tuple[Numbers, Numbers]:
    """Nodes and weights over 0 to 1, the closer together near 0 the higher the power."""
    nodes, weights = np.polynomial.legendre.leggauss(count)
    nodes, weights = (nodes + 1.0) / 2.0, weights / 2.0
    return nodes**power, weights * power * nodes ** (power - 1.0)


# Of prompts all count; of outputs the short ones, whose mean time per token varies most.
PROMPTS, ANSWERS = _rule(10, 1.0), _rule(4, 1.5)


def rows(slots: Numbers) -> Numbers:
    """States [c, GRID], the last one `slots`, at which `Engines.decode` is wanted: of many slots fewer."""
    # Distances grow with the root of the state, as the queue's own spread does.
    step = np.arange(1.0, GRID + 1.0)
    bend = (np.maximum(step - DENSE, 0.0) / (GRID - DENSE)) ** 2
    return np.asarray(np.minimum(step, slots[:, None]) + np.maximum(slots - GRID, 0.0)[:, None] * bend)


@dataclass(frozen=True, slots=True)
class Engines:
    """One replica of each of c candidates, as its queue sees it. Seconds and tokens."""

    rows: Numbers  # [c, GRID] requests decoded together; from `rows`
    decode: Numbers  # [c, GRID] one step with so many, over the tokens that it commits to each of them (tau)
    prefill: Numbers  # [c] to read one token of a prompt, the mean prompt's time over its length
    chunk: Numbers  # [c] tokens of prompts that one step reads at most, over tau
    first: Numbers  # [c] fixed part of a time to first token, beside queue, prompt and one step

    @property
    def slots(self) -> Numbers:
        """[c] requests decoded together at most."""
        return self.rows[:, -1]

    def decode_at(self, together: Numbers) -> Numbers:
        """[c] a step with so many; with less than one the share of time that has any."""
        return interpolate(self.rows, self.decode, together)[0] * np.minimum(together, 1.0)


def crowd(engines: Engines, demand: Demand) -> Numbers:
    """[c] requests that can be decoded together: the slots, or as many as chunks bring before they end."""
    return np.minimum(engines.slots, np.maximum(engines.chunk * demand.output.mean / demand.prompt.mean, 1.0))


def completions(engines: Engines, demand: Demand, together: Numbers) -> Numbers:
    """[c] requests per second of so many that are replaced as they end: all read, then decode, in turn."""
    read = demand.prompt.mean * engines.prefill
    return together / (demand.output.mean * engines.decode_at(together) + together * read)


def interpolate(grid: Numbers, values: Numbers, at: Numbers) -> tuple[Numbers, Numbers]:
    """[c] values [c, n] over ascending grids [c, n] and their slopes: linear between, flat beyond."""
    upper = np.clip(np.count_nonzero(grid < at[:, None], axis=1), 1, grid.shape[1] - 1)
    candidate = np.arange(len(grid))
    left, low = grid[candidate, upper - 1], values[candidate, upper - 1]
    width = grid[candidate, upper] - left
    slope = (values[candidate, upper] - low) / np.maximum(width, TINY)
    return low + slope * np.minimum(np.maximum(at - left, 0.0), width), slope


@dataclass(frozen=True, slots=True)
class Queue:
    """What an arriving request finds; arrays over c, or over any repetition of it. Seconds and tokens."""

    together: Numbers  # mean requests decoded together
    first: Numbers  # `Engines.first`
    prefill: Numbers  # `Engines.prefill`
    chunk: Numbers  # `Engines.chunk`
    step: Numbers  # mean decoding part of a step that reads
    passes: Numbers  # mean time of a step, with the prompts of others that it reads
    rest: Numbers  # of the step under way, at most
    busy: Numbers  # share of time with a prompt to read
    waiting: Numbers  # mean time, then, until the prompts before are read
    full: Numbers  # chance of no free slot
    ending: Numbers  # rate at which the wait for one ends
    rate: Numbers  # requests that come per second
    follow: Numbers  # requests that come per step, each after one that ends
    decode: Numbers  # decoding part of a step that a decoding request sees
    slope: Numbers  # of it, for each request more that decodes
    variance: Numbers  # of how many decode
    pull: Numbers  # correlation time of how many did, in steps
    left: Numbers  # probability that the next step has a prompt to prefill, too


@dataclass(frozen=True, slots=True)
class Chain:
    """What does not depend on the rate: [c, GRID] but for the last three."""

    engines: Engines
    death: Numbers  # requests that end per second in each state
    log_product: Numbers  # sum of the logarithms of `death` up to it
    width: Numbers  # states that it stands for
    crowd: Numbers  # [c] `crowd`
    alone: Numbers  # [c] share of a chunk that one prompt takes
    filled: Numbers  # [c] tokens of prompts in the step that reads a random one of them, none waiting

    @classmethod
    def of(cls, engines: Engines, demand: Demand) -> Chain:
        """The chain of each candidate."""
        rows, prompt = engines.rows, demand.prompt
        read = (prompt.mean * engines.prefill)[:, None]
        # More requests together never end fewer per second: measured curves may dip.
        death = np.maximum.accumulate(rows / (demand.output.mean * engines.decode + rows * read), axis=1)
        log = np.log(death)
        gap = np.diff(rows, axis=1, prepend=0.0)
        before = np.concatenate((log[:, :1], log[:, :-1]), axis=1)
        log_product = np.cumsum(gap * (log + before) / 2.0 + (log - before) / 2.0, axis=1)
        following = np.concatenate((gap[:, 1:], np.zeros_like(gap[:, :1])), axis=1)
        width = gap / 2.0 + np.where(following > 0.0, following / 2.0, 0.5 * (gap > 0.0))
        tokens, weight = _lengths(prompt, PROMPTS)
        read = weight * np.minimum(tokens, engines.chunk[:, None])
        alone, filled = read.sum(axis=1) / engines.chunk, (read * tokens).sum(axis=1) / prompt.mean
        return cls(engines, death, log_product, width, crowd(engines, demand), alone, filled)

    def at(self, rate: Numbers, demand: Demand) -> Queue:
        """The queue when `rate` [c] requests come per second."""
        rows = self.engines.rows
        mass = rows * np.log(np.maximum(rate, TINY))[:, None]
        mass -= self.log_product
        peak = np.maximum(mass.max(axis=1), 0.0)  # the empty state's is 0
        mass -= peak[:, None]
        np.exp(mass, out=mass)
        # Beyond the last slot the death rate stays: a geometric tail.
        load = np.minimum(rate / self.death[:, -1], NEARLY)
        waiting = mass[:, -1] * load / (1.0 - load)
        full = mass[:, -1] + waiting
        mass *= self.width
        mass[:, -1] += waiting
        total = np.exp(-peak) + mass.sum(axis=1)
        first = np.einsum("cn,cn->c", mass, rows)
        second = np.einsum("cn,cn,cn->c", mass, rows, rows)
        mean, met = first / total, second / np.maximum(first, TINY)
        step = np.einsum("cn,cn->c", mass, self.engines.decode) / total  # none in the empty state
        variability = (1.0 + demand.output.squared_variation) / 2.0
        ending = self.death[:, -1] * (1.0 - load) / variability
        variance = np.maximum(met * mean - mean**2, 0.0)
        return self._queue(rate, demand, mean, met, variance, step, full / total, ending)

    def with_running(self, running: Numbers, rate: Numbers, demand: Demand) -> Queue:
        """The queue when `running` [c] requests are always under way, `rate` of which end per second."""
        others = (running - 1.0) / np.maximum(running, 1.0)
        none, mean = np.zeros_like(rate), np.minimum(running * others, self.crowd)
        step = self.engines.decode_at(mean)
        queue = self._queue(rate * others, demand, mean, running, none, step, none, none + 1.0 / TINY)
        # Others decode in between: it finds one prompt before it, and those that are more than can decode.
        before = 1.0 + np.maximum(running - self.crowd, 0.0)
        limit = before * demand.prompt.mean * (queue.prefill + queue.step / self.filled)
        # It comes as a step ends, and others as their outputs do, however long the steps are.
        follow = np.minimum(running - 1.0, self.crowd) / demand.output.mean
        waiting = np.minimum(queue.waiting, limit)
        return replace(queue, waiting=waiting, rest=none, rate=none, follow=follow)

    def _queue(
        self,
        rate: Numbers,
        demand: Demand,
        mean: Numbers,
        met: Numbers,
        variance: Numbers,
        step: Numbers,
        full: Numbers,
        ending: Numbers,
    ) -> Queue:
        engines, prompt, output = self.engines, demand.prompt, demand.output
        mean, met = np.minimum(mean, self.crowd), np.minimum(np.maximum(met, 1.0), self.crowd)
        decode, slope = interpolate(engines.rows, engines.decode, met)
        offered = rate * prompt.mean  # tokens per second
        # The more prompts wait, the fuller the steps that read them.
        crowded = np.minimum(offered * (engines.prefill + decode / engines.chunk), 1.0)
        filled = self.filled + np.maximum(engines.chunk - self.filled, 0.0) * crowded
        busy = np.minimum(offered * (engines.prefill + step / filled), NEARLY)
        full_steps = engines.prefill + step / engines.chunk  # for each token
        # Prompts that come behind are read in the same step, where it has room.
        behind = np.minimum(offered * engines.prefill * (1.0 - self.alone), NEARLY)
        passes = step / (1.0 - behind)
        whole = prompt.second_moment / prompt.mean  # of the prompt that a random token is of
        before = full_steps * whole / 2.0
        return Queue(
            together=mean,
            first=engines.first,
            prefill=engines.prefill,
            chunk=engines.chunk,
            step=step,
            passes=passes,
            rest=passes,
            busy=busy,
            waiting=before * (1.0 / (1.0 - np.minimum(offered * full_steps, NEARLY)) + behind),
            full=full,
            ending=ending,
            rate=rate,
            follow=np.zeros_like(rate),
            decode=decode,
            slope=np.abs(slope),
            variance=variance,
            # Outputs end and others begin.
            pull=output.mean / np.maximum(1.0 - slope * met / decode, 0.05),
            # That step also reads of the prompt behind: all of it, if it is alone and small.
            left=busy * (1.0 - (1.0 - self.alone) * (1.0 - busy)),
        )


def late_first(queue: Queue, demand: Demand, seconds: Numbers | float) -> Numbers:
    """[c] share of requests whose first token comes after `seconds`."""
    left, prompt = seconds - queue.first, demand.prompt
    step, prefill = queue.step, queue.prefill
    slowed = prefill + step / queue.chunk
    # A prompt takes one step, or as many as it has chunks, the last of them half full.
    limit = np.minimum(
        (left - queue.passes) / np.maximum(prefill, TINY), (left - step / 2.0) / np.maximum(slowed, TINY)
    )
    # Over the prompts that are read within that time, and those at the wall apart.
    span = prompt.p95 - prompt.shortest
    end = np.clip((limit - prompt.shortest) / span, TINY, 1.0) ** (1.0 / prompt.power)
    nodes, weight = _exponential(PROMPTS, end)
    tokens = np.empty((len(nodes) + 1, len(left)))  # before the candidates: few and many
    tokens[:-1], tokens[-1] = prompt.shortest + span * nodes**prompt.power, prompt.p95
    own = np.maximum(tokens * prefill + queue.passes, tokens * slowed + step / 2.0)
    kept = _read_within(queue, np.maximum(left - own, 0.0))
    share = (weight * kept[:-1]).sum(axis=0) + WALL * (limit >= prompt.p95) * kept[-1]
    endless = (queue.busy >= NEARLY) | (queue.ending <= 0.0)
    return np.asarray(np.where(endless, 1.0, 1.0 - share))


def late_tokens(queue: Queue, demand: Demand, seconds: Numbers | float) -> Numbers:
    """[c] share of requests whose mean time per output token is above `seconds`.

    Each of its steps either reads no prompt or, taken as evenly filled, a chunk of them. It is late if more
    than a certain share of them read. Each prompt that comes in a step without begins a busy period of the
    server that reads them; so it is late if the busy periods that begin while it takes the other share of its
    steps, and the one that goes on when it begins, last for longer than the first share. Known of their sum
    are its mean, its variance and the chance that there are none; if there are any, it is taken as
    gamma-distributed.
    """
    tokens, weight = _lengths(demand.output, ANSWERS)
    steps = np.maximum(tokens - 1.0, 1.0)[:, None]  # before the candidates: few and many
    prompt, rate, chunk, left = demand.prompt, queue.rate, queue.chunk, queue.left
    prefill = np.maximum(queue.prefill, TINY)
    # Who comes also decodes beside it from then on: as if so many more tokens were read.
    beside = steps * demand.output.mean / (steps + 2.0 * demand.output.mean)
    square = prompt.second_moment + 2.0 * prompt.mean * beside * (queue.slope / prefill)
    whole = square / prompt.mean
    span = np.maximum(steps / queue.pull, 1e-3)
    # Over a span the mean of what is forgotten exponentially varies less than it does at one moment.
    averaged = 2.0 * (span + np.expm1(-span)) / span**2
    spread = queue.slope * np.sqrt(queue.variance * averaged)
    # Of those that follow there is one fewer while one waits.
    follow = np.maximum(queue.follow - 1.0 / demand.output.mean, 0.0) / chunk
    late = np.zeros(len(rate))
    for node, part in NORMAL:
        decode = np.maximum(queue.decode + node * spread, 0.0)
        reads = (seconds - decode) / (chunk * prefill)  # the share of its steps
        share = np.clip(reads, 0.0, 1.0)
        come = rate * (prefill + decode / chunk) + follow  # for each token read
        idle = 1.0 - np.minimum(prompt.mean * come, NEARLY)
        begun = (rate * decode + queue.follow) * steps * (1.0 - share)  # busy periods
        # Tokens that stand to be read when it begins, if any: as a departure from a queue leaves them.
        more = come * square / idle
        stands = prompt.mean + more / 2.0
        any_read = np.maximum(1.0 - (1.0 - left) * np.exp(-begun), TINY)
        first, later = left * stands, begun * prompt.mean
        mean = np.maximum(first + later, TINY)  # of the sum, in tokens, times idle; below of its square
        squares = first * (whole + 2.0 * more) + begun * square / idle + later * (2.0 * first + later)
        shape = np.maximum(mean**2 / np.maximum(any_read * squares - mean**2, TINY * mean**2), MIN_SHAPE)
        over = _gamma_over(steps * share * chunk * idle * any_read / mean, shape)
        late += part * weight @ np.where(reads >= 1.0, 0.0, np.where(reads <= 0.0, 1.0, any_read * over))
    return late


def _read_within(queue: Queue, x: Numbers) -> Numbers:
    """Chance [n, c] that the step that first reads a prompt begins within x [n, c].

    It waits for a slot and for the prompts before, each nothing or exponential, taken as independent, and for
    the end of the step under way, evenly from nothing to all of it.
    """
    first = 1.0 / np.maximum(queue.waiting, TINY)
    second = np.maximum(queue.ending, TINY)
    second = np.where(np.abs(first - second) < 1e-3 * first, first * 1.001, second)
    busy, full = queue.busy, queue.full
    both = busy * full / (second - first)

    def kept(x: Numbers) -> Numbers:
        """Integral from 0 to x of the chance that the waits for slot and prompts are shorter."""
        a, b = -np.expm1(-first * x) / first, -np.expm1(-second * x) / second
        return x - (busy * (1.0 - full) + second * both) * a - (full * (1.0 - busy) - first * both) * b

    limit = np.maximum(queue.rest, SHORTEST)
    return np.asarray((kept(x) - kept(np.maximum(x - limit, 0.0))) / limit)


def _exponential(rule: tuple[Numbers, Numbers], end: Numbers) -> tuple[Numbers, Numbers]:
    """Nodes and weights of E / DEPTH from 0 to `end`, of an integration rule over 0 to 1."""
    nodes = end * rule[0][:, None]
    return nodes, end * rule[1][:, None] * DEPTH * np.exp(-DEPTH * nodes)


def _lengths(lengths: Lengths, rule: tuple[Numbers, Numbers]) -> tuple[Numbers, Numbers]:
    """Lengths in tokens and their weights, of which sums are means over all requests."""
    nodes, weight = _exponential(rule, np.ones(1))
    tokens = lengths.shortest + (lengths.p95 - lengths.shortest) * np.append(nodes, 1.0) ** lengths.power
    return tokens, np.append(weight, WALL)


def _gamma_over(part: Numbers, shape: Numbers) -> Numbers:
    """Chance that a gamma-distributed number exceeds this part of its mean (Wilson and Hilferty)."""
    z = -((np.cbrt(part) - 1.0 + 1.0 / (9.0 * shape)) * 3.0 * np.sqrt(shape))
    # The normal distribution function, within 0.0003.
    return np.asarray(0.5 + 0.5 * np.tanh(z * (0.7978846 + 0.0356774 * z**2)))
