"""The queue of one replica at a request rate, and how many of its requests come late. Pure.

Requests arrive at random (Poisson). A step decodes all running requests and reads up to a chunk of prompts,
first come, first served. Those that decode are a birth-death chain with a death rate of their own in each
state, n / (answer decode(n) + n prefill); prompts are a queue of one server, whose steps decode as well; who
finds all slots taken waits for one. The approximations are held to a replay: tests/operator/test_capacity.py.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from turbo_operator.planner.curves import TINY, Engines, Numbers, crowd, interpolate
from turbo_operator.planner.demand import DEPTH, WALL, Demand, Lengths

Places = NDArray[np.intp] | slice

NEARLY = 1.0 - 1e-6  # a queue of this load never ends
FINE, COARSE = (
    np.polynomial.legendre.leggauss(16),
    np.polynomial.legendre.leggauss(5),
)  # over prompts, answers
NORMAL_NODES, NORMAL_WEIGHTS = math.sqrt(3.0) * np.array((-1.0, 0.0, 1.0)), np.array((1.0, 4.0, 1.0)) / 6.0
BURSTS = 1.2  # by the replay: what comes in a burst also decodes in one
LEAST_SHARE = 1e-6  # of which a normal deviate is taken


@dataclass(frozen=True, slots=True)
class Queue:
    """What an arriving request finds; arrays over c, or over any repetition of it. Seconds and tokens."""

    together: Numbers  # mean requests decoded together
    first: Numbers  # `Engines.first`
    prefill: Numbers  # `Engines.prefill`
    chunk: Numbers  # `Engines.chunk`
    filled: Numbers  # tokens of prompts in a step that reads any
    step: Numbers  # decoding part of a step
    busy: Numbers  # share of time with a prompt to read
    waiting: Numbers  # mean time, then, until the prompts before are read
    full: Numbers  # chance of no free slot
    ending: Numbers  # rate at which the wait for one ends
    decode: Numbers  # decoding part of a step that a decoding request sees
    spread: Numbers  # its standard deviation over requests
    left: Numbers  # chance that there is a prompt to read in the step after its own is read
    reads: Numbers  # share of steps that read prompts
    memory: Numbers  # steps until it is forgotten whether one did

    def take(self, index: Places) -> Queue:
        """The candidates of these places, repeated as they are."""
        return Queue(*(getattr(self, field.name)[index] for field in dataclasses.fields(self)))


@dataclass(frozen=True, slots=True)
class Chain:
    """What does not depend on the rate: [c, GRID] but for the last three."""

    engines: Engines
    death: Numbers  # requests that end per second in each state
    log_product: Numbers  # sum of the logarithms of `death` up to it
    width: Numbers  # states that it stands for
    most: Numbers  # [c] `crowd`
    alone: Numbers  # [c] share of a chunk that one prompt takes
    filled: Numbers  # [c] tokens of prompts in the step that reads a random one of them, none waiting

    @classmethod
    def of(cls, engines: Engines, demand: Demand) -> Chain:
        """The chain of each candidate."""
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
        tokens, weight = _lengths(prompt, FINE)
        read = weight * np.minimum(tokens, engines.chunk[:, None])
        alone, filled = read.sum(axis=1) / engines.chunk, (read * tokens).sum(axis=1) / prompt.mean
        return cls(engines, death, log_product, width, crowd(engines, demand), alone, filled)

    def take(self, index: Places) -> Chain:
        """The candidates of these places, repeated as they are."""
        engines = Engines(
            *(getattr(self.engines, field.name)[index] for field in dataclasses.fields(Engines))
        )
        others = (getattr(self, field.name)[index] for field in dataclasses.fields(self)[1:])
        return Chain(engines, *others)

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
        variability = (1.0 + demand.answer.squared_variation) / 2.0
        ending = self.death[:, -1] * (1.0 - load) / variability
        return self._queue(
            rate, demand, mean, met, np.maximum(met * mean - mean**2, 0.0), full / total, ending
        )

    def with_running(self, running: Numbers, rate: Numbers, demand: Demand) -> Queue:
        """The queue when `running` [c] requests are always under way, `rate` of which end per second.

        One that comes finds the others.
        """
        others = (running - 1.0) / np.maximum(running, 1.0)
        none = np.zeros_like(rate)
        found = self._queue(rate * others, demand, running * others, running, none, none, none + 1.0 / TINY)
        # Others decode in between: it finds one prompt before it, and those that are more than can decode.
        before = 1.0 + np.maximum(running - self.most, 0.0)
        most = before * demand.prompt.mean * (found.prefill + found.step / found.filled)
        return dataclasses.replace(found, waiting=np.minimum(found.waiting, most))

    def _queue(
        self,
        rate: Numbers,
        demand: Demand,
        mean: Numbers,
        met: Numbers,
        variance: Numbers,
        full: Numbers,
        ending: Numbers,
    ) -> Queue:
        engines, prompt, answer = self.engines, demand.prompt, demand.answer
        mean, met = np.minimum(mean, self.most), np.minimum(np.maximum(met, 1.0), self.most)
        decode, slope = interpolate(engines.rows, engines.decode, met)
        offered = rate * prompt.mean  # tokens per second
        idle = 1.0 - np.minimum(offered * engines.prefill, NEARLY)
        # The more prompts wait, the fuller the steps that read them.
        crowded = np.minimum(offered * (engines.prefill + decode / engines.chunk), 1.0)
        filled = self.filled + np.maximum(engines.chunk - self.filled, 0.0) * crowded
        reads = np.minimum(offered * decode / (idle * filled), NEARLY)
        whole = prompt.second_moment / prompt.mean  # of the prompt that a random token is of
        memory = BURSTS * whole / (2.0 * filled * idle**2 * (1.0 - reads))
        step = engines.decode_at(mean)
        each = engines.prefill + step / filled
        busy = np.minimum(offered * each, NEARLY)
        # Answers end and others begin: how long the number decoded together stays what it is.
        pull = answer.mean / np.maximum(1.0 - slope * met / decode, 0.05)
        return Queue(
            together=mean,
            first=engines.first,
            prefill=engines.prefill,
            chunk=engines.chunk,
            filled=filled,
            step=step,
            busy=busy,
            waiting=each * whole / (2.0 * (1.0 - busy)),
            full=full,
            ending=ending,
            decode=decode,
            spread=np.abs(slope) * np.sqrt(variance * _averaged(answer.mean / pull)),
            # That step also reads of the prompt behind: all of it, if it is alone and small.
            left=busy * (1.0 - (1.0 - self.alone) * (1.0 - busy)),
            reads=reads,
            memory=memory,
        )


def late_first(queue: Queue, prompt: Lengths, seconds: Numbers | float) -> Numbers:
    """[c] share of requests whose first token comes after `seconds`."""
    left = seconds - queue.first - queue.step / 2.0  # what runs then ends first
    step, prefill = queue.step, queue.prefill
    slowed = prefill + step / queue.chunk
    # A prompt takes one step, or as many as it has chunks, the last of them half full.
    longest = np.minimum(
        (left - step) / np.maximum(prefill, TINY), (left - step / 2.0) / np.maximum(slowed, TINY)
    )
    # Over the prompts that are read within that time, and those at the wall apart.
    most = np.clip(longest / prompt.p95, TINY, 1.0) ** (1.0 / prompt.power)
    nodes, weight = _exponential(FINE, most[:, None])
    tokens = np.empty((len(left), len(FINE[0]) + 1))
    tokens[:, :-1], tokens[:, -1] = prompt.p95 * nodes**prompt.power, prompt.p95
    own = np.maximum(
        tokens * prefill[:, None] + step[:, None], tokens * slowed[:, None] + step[:, None] / 2.0
    )
    over = _waits(queue, np.maximum(left[:, None] - own, 0.0))
    kept = (weight * (1.0 - over[:, :-1])).sum(axis=1)
    kept += WALL * (longest >= prompt.p95) * (1.0 - over[:, -1])
    endless = (queue.busy >= NEARLY) | (queue.ending <= 0.0)
    found: Numbers = np.where(endless, 1.0, 1.0 - kept)
    return found


def late_tokens(queue: Queue, answer: Lengths, seconds: Numbers | float) -> Numbers:
    """[c] share of requests whose mean time per output token is above `seconds`.

    While a request decodes, some share of the steps also read prompts. Its mean over requests is known, its
    variance shrinks with the length of the answer; it is taken as probit-normal (Vasicek's distribution).
    """
    tokens, weight = _lengths(answer, COARSE)
    reads, left = queue.reads[:, None], queue.left[:, None]
    forgotten = np.maximum(tokens - 1.0, 1.0) / queue.memory[:, None]
    # It begins when its own prompt is read: more often than else are there others to read.
    share = reads + np.maximum(left - reads, 0.0) * -np.expm1(-forgotten) / forgotten
    share = np.clip(share, LEAST_SHARE, NEARLY)
    centre = _deviate(share)
    steep = share * (1.0 - share) * 2.0 * math.pi * np.exp(centre**2)
    common = np.clip(1.0 - (1.0 - _averaged(forgotten)) ** steep, LEAST_SHARE, NEARLY)
    wide, scale = np.sqrt(1.0 - common), 1.0 / np.sqrt(common)
    room = np.asarray(seconds - queue.decode)[:, None] - NORMAL_NODES * queue.spread[:, None]
    room = room / np.maximum(queue.prefill * queue.filled, TINY)[:, None]
    edge = _deviate(np.clip(room, LEAST_SHARE, NEARLY))
    late = np.zeros_like(share)
    for node, part in enumerate(NORMAL_WEIGHTS):
        some = _normal((centre - wide * edge[:, node, None]) * scale)
        bound = room[:, node, None]
        late += part * np.where(bound >= 1.0, 0.0, np.where(bound <= 0.0, 1.0, some))
    found: Numbers = (weight * late).sum(axis=1)
    return found


def _waits(queue: Queue, x: Numbers) -> Numbers:
    """Chance [c, n] that the waits for a slot and for the prompts before together exceed x [c, n].

    Each is nothing or exponential, taken as independent.
    """
    first = 1.0 / np.maximum(queue.waiting, TINY)
    second = np.maximum(queue.ending, TINY)
    second = np.where(np.abs(first - second) < 1e-3 * first, first * 1.001, second)[:, None]
    first, busy, full = first[:, None], queue.busy[:, None], queue.full[:, None]
    a, b = np.exp(-first * x), np.exp(-second * x)
    both = (second * a - first * b) / (second - first)
    found: Numbers = busy * (1.0 - full) * a + full * (1.0 - busy) * b + busy * full * both
    return found


def _exponential(rule: tuple[Numbers, Numbers], most: Numbers) -> tuple[Numbers, Numbers]:
    """Nodes and weights of E / DEPTH from 0 to `most`, of an integration rule over -1 to 1."""
    nodes = most * (rule[0] + 1.0) / 2.0
    return nodes, most * rule[1] / 2.0 * DEPTH * np.exp(-DEPTH * nodes)


def _lengths(lengths: Lengths, rule: tuple[Numbers, Numbers]) -> tuple[Numbers, Numbers]:
    """Lengths in tokens and their weights, of which sums are means over all requests."""
    nodes, weight = _exponential(rule, np.ones(1))
    return lengths.p95 * np.append(nodes, 1.0) ** lengths.power, np.append(weight, WALL)


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
