"""What is asked of a deployment, in numbers: lengths, load and bounds, defaults worked out. Pure."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import lru_cache

from turbo_operator.api import TurboDeploymentSpec
from turbo_operator.api.requirements import DEFAULT_INPUT_TOKENS, DEFAULT_OUTPUT_TOKENS, Latency
from turbo_operator.api.requirements import Lengths as WrittenLengths

P95_OF_MEAN = 3.0
WALL = 0.06  # share of the lengths that are as long as the 95th percentile
DEPTH = -math.log(WALL)
FEWEST = 4.0  # tokens of the shortest; none of Azure's answers has fewer, 3 % of Mooncake's
POWERS = (0.01, 64.0)  # from all lengths alike to nearly all near zero


@dataclass(frozen=True, slots=True)
class Lengths:
    """Tokens of a prompt or of an answer, of which a mean and a 95th percentile are known.

    A Weibull distribution that begins at a few tokens and ends in a wall at the percentile:
    length = least + (p95 - least) min(1, E / DEPTH)^power, E exponential. The prompts of published traces end
    so, at their context window: in Azure's of 2023 the 99th percentile is 1 to 2 % above the 95th, and of its
    conversations one prompt in ten is as long. A lognormal through the same two numbers has up to four times
    their variance.
    """

    mean: float
    p95: float
    least: float = field(init=False)
    power: float = field(init=False)  # 1: exponential

    def __post_init__(self) -> None:
        least = min(FEWEST, self.mean / 4.0)
        object.__setattr__(self, "least", least)
        object.__setattr__(self, "power", _power((self.mean - least) / (self.p95 - least)))

    @property
    def second_moment(self) -> float:
        """Mean of the square."""
        span = self.p95 - self.least
        return self.least * (2.0 * self.mean - self.least) + span**2 * _moment(2.0 * self.power)

    @property
    def squared_variation(self) -> float:
        """Variance over the mean squared."""
        return max(0.0, self.second_moment / self.mean**2 - 1.0)


@lru_cache(maxsize=4096)
def _power(mean: float) -> float:
    """The power of min(1, E / DEPTH) that gives this mean.

    No lengths have a 95th percentile above 20 times their mean; the end of the range stands for those.
    """
    low, high = POWERS
    for _ in range(40):
        middle = (low + high) / 2.0
        low, high = (middle, high) if _moment(middle) > mean else (low, middle)
    return low


def _moment(power: float) -> float:
    """Mean of min(1, E / DEPTH)^power: an incomplete gamma function, by its series."""
    term = total = 1.0 / (power + 1.0)
    for index in range(2, 24):
        term *= DEPTH / (power + index)
        total += term
    return WALL + WALL * DEPTH * total


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
        return self.prompt.mean + self.answer.second_moment / (2.0 * self.answer.mean)


def demand(spec: TurboDeploymentSpec, longest: int | None = None) -> Demand:
    """The workload and the targets of a spec; no request, prompt and answer, has more than
    `longest` tokens.

    A written mean is kept, however little fits beside it: see `overlong`.
    """
    workload, targets = spec.workload, spec.targets
    prompt = workload.input_tokens if workload else None
    answer = workload.output_tokens if workload else None
    rate = workload.requests_per_second if workload else None
    tokens = targets.tokens_per_second if targets else None
    means = _means(prompt, answer, math.inf if longest is None else longest)
    return Demand(
        prompt=_lengths(means[0], prompt, math.inf if longest is None else longest - means[1]),
        answer=_lengths(means[1], answer, math.inf if longest is None else longest - means[0]),
        assumed=prompt is None or answer is None,
        rate=None if rate is None else float(rate),
        concurrency=workload.concurrency if workload else None,
        time_to_first_token=_bound(targets.time_to_first_token if targets else None),
        time_per_output_token=_bound(targets.time_per_output_token if targets else None),
        tokens_per_second=None if tokens is None else float(tokens),
    )


def overlong(spec: TurboDeploymentSpec, longest: int) -> str | None:
    """The written means that no request of `longest` tokens holds, each with its field; None if they fit."""
    workload = spec.workload
    if workload is None:
        return None
    asked = demand(spec, longest)
    if asked.prompt.mean + asked.answer.mean <= longest:
        return None
    written = (("inputTokens", workload.input_tokens), ("outputTokens", workload.output_tokens))
    said = [f"{name}.mean is {each.mean}" for name, each in written if each is not None]
    return f"spec.workload.{' and '.join(said)}" if said else None


def _means(
    prompt: WrittenLengths | None, answer: WrittenLengths | None, longest: float
) -> tuple[float, float]:
    """Of prompt and answer; a default gives way to what is written, and two of them shrink alike."""
    if prompt is None and answer is None:
        share = min(1.0, longest / (DEFAULT_INPUT_TOKENS + DEFAULT_OUTPUT_TOKENS))
        return DEFAULT_INPUT_TOKENS * share, DEFAULT_OUTPUT_TOKENS * share
    if prompt is None:
        assert answer is not None
        return max(1.0, min(DEFAULT_INPUT_TOKENS, longest - answer.mean)), answer.mean
    if answer is None:
        return prompt.mean, max(1.0, min(DEFAULT_OUTPUT_TOKENS, longest - prompt.mean))
    return prompt.mean, answer.mean


def _lengths(mean: float, written: WrittenLengths | None, most: float) -> Lengths:
    """With the percentile that is written or usual, and no longer than fits."""
    p95 = written.p95 if written is not None and written.p95 is not None else mean * P95_OF_MEAN
    return Lengths(mean, max(mean, min(p95, most)))


def _bound(latency: Latency | None) -> Bound | None:
    return None if latency is None else Bound(latency.max_seconds, latency.percentile / 100)
