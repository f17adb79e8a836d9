"""What is asked of a deployment, in numbers: lengths, load and bounds, defaults worked out. Pure.

Lengths are taken as lognormal: the family fits the published traces well enough that capacity found from a
mean and a 95th percentile agrees with a replay of the traces themselves (tests/operator/test_capacity.py).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from turbo_operator.api import TurboDeploymentSpec
from turbo_operator.api.demands import Latency
from turbo_operator.api.demands import Lengths as WrittenLengths

INPUT_MEAN = 512
OUTPUT_MEAN = 256
P95_OF_MEAN = 3.0
Z95 = 1.6448536269514722  # a normal deviate is below it 95 times in 100
SPREAD_MIN = 0.02  # of no spread at all: integrals over the density stay finite


@dataclass(frozen=True, slots=True)
class Lengths:
    """Tokens of a prompt or of an answer, lognormal."""

    mean: float
    p95: float

    @property
    def spread(self) -> float:
        """Standard deviation of the logarithm, from p95 = mean exp(1.645 s - s^2 / 2).

        The smaller of the two solutions; where p95 is above 3.87 times the mean there is none, and the
        spread of the longest tail is taken, s = 1.645.
        """
        excess = Z95**2 - 2.0 * math.log(self.p95 / self.mean)
        return max(SPREAD_MIN, Z95 - math.sqrt(max(0.0, excess)))

    @property
    def log_median(self) -> float:
        """Logarithm of the median."""
        return math.log(self.mean) - self.spread**2 / 2.0

    @property
    def squared_variation(self) -> float:
        """Variance over the mean squared."""
        return math.expm1(self.spread**2)


@dataclass(frozen=True, slots=True)
class Bound:
    """A time in seconds that this share of the requests must keep."""

    seconds: float
    share: float  # 0.95: of 95 in 100


@dataclass(frozen=True, slots=True)
class Demand:
    """The load to plan for and the bounds to keep. At most one of `rate` and `concurrency` is known."""

    prompt: Lengths
    answer: Lengths
    assumed: bool  # some length is a default
    rate: float | None = None  # requests per second of all clients together
    concurrency: int | None = None  # requests always under way
    time_to_first_token: Bound | None = None
    time_per_output_token: Bound | None = None
    tokens_per_second: float | None = None  # output tokens of all replicas together, at least

    @property
    def held(self) -> float:
        """Mean tokens that a decoding request has in the KV cache: the context of the step-time model.

        A long answer is under way for longer, so at any moment more than half of the mean answer is there:
        E[answer^2] / (2 E[answer]).
        """
        return self.prompt.mean + self.answer.mean * (1.0 + self.answer.squared_variation) / 2.0


def demand(spec: TurboDeploymentSpec) -> Demand:
    """The workload and the targets of a spec."""
    workload, targets = spec.workload, spec.targets
    prompt = workload.input_tokens if workload else None
    answer = workload.output_tokens if workload else None
    rate = workload.requests_per_second if workload else None
    tokens = targets.tokens_per_second if targets else None
    return Demand(
        prompt=_lengths(prompt, INPUT_MEAN),
        answer=_lengths(answer, OUTPUT_MEAN),
        assumed=prompt is None or answer is None,
        rate=None if rate is None else float(rate),
        concurrency=workload.concurrency if workload else None,
        time_to_first_token=_bound(targets.time_to_first_token if targets else None),
        time_per_output_token=_bound(targets.time_per_output_token if targets else None),
        tokens_per_second=None if tokens is None else float(tokens),
    )


def _lengths(written: WrittenLengths | None, default: int) -> Lengths:
    if written is None:
        return Lengths(default, default * P95_OF_MEAN)
    return Lengths(written.mean, written.p95 or written.mean * P95_OF_MEAN)


def _bound(latency: Latency | None) -> Bound | None:
    return None if latency is None else Bound(latency.max_seconds, latency.percentile / 100)
