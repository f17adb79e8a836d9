"""What measured step times are to the model's: factors from a start-up micro-benchmark, then a filter. Pure.

Three measured points beat any further physics in the model: what they miss of it is mostly one factor on
decoding and one on reading prompts (software versions, clocks, kernels), and those are what they tell.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from turbo_operator.planner.performance import step_time
from turbo_operator.planner.performance.step_time import ForwardCost, Machine
from turbo_runtime.contract.model import StepTime

PROMPT_TOKENS = 32  # new tokens of one request from which on a pass reads a prompt rather than decodes


@dataclass(frozen=True, slots=True)
class Calibration:
    """Factors on the step-time model of one accelerator and engine."""

    decode: float  # of a pass that decodes
    prefill: float  # of a pass that reads a prompt


def calibrate(step_times: Sequence[StepTime], machine: Machine, work: ForwardCost) -> Calibration | None:
    """The factors that a replica's measured passes tell; None where they tell nothing.

    `machine` and `work` of one replica, in plain numbers. Each factor is the geometric mean of measured over
    predicted; where one kind of pass was not measured, the other's factor is the best guess.
    """
    decode, prefill = [], []
    for point in step_times:
        if point.seconds <= 0.0 or point.rows < 1 or point.tokens < 1:
            continue
        if point.tokens < PROMPT_TOKENS:
            told = step_time.decode_seconds(
                machine, work, float(point.rows), point.tokens - 1.0, float(point.context)
            )
            decode.append(point.seconds / float(told))
        else:
            told = step_time.prefill_seconds(machine, work, float(point.rows * point.tokens))
            prefill.append(point.seconds / float(told))
    if not decode and not prefill:
        return None
    return Calibration(mean_ratio(decode or prefill), mean_ratio(prefill or decode))


def mean_ratio(ratios: Iterable[float]) -> float:
    """The geometric mean of measured over predicted, each above 0: half and double cancel."""
    return math.exp(statistics.fmean(map(math.log, ratios)))


DRIFT = 1e-6  # variance per second that a factor's logarithm wanders by: 6 % in an hour
NOISE = 0.15**2  # variance of one measurement's logarithm
GATE = 9.0  # squared deviations, three of them, beyond which a measurement is an outlier
PATIENCE = 5  # outliers in a row after which they are believed: the machine has changed


@dataclass(frozen=True, slots=True)
class Filter:
    """A factor as it is known from measurements over time: a scalar Kalman filter on its logarithm.

    A measurement that lies too far from what is known (the innovation gate) changes nothing, until so many
    follow each other that it is the machine that has changed. Callers leave out a pod's first minute.
    """

    logarithm: float = 0.0
    variance: float = 0.25
    at: float = 0.0  # seconds since the epoch of the last measurement that was believed
    outliers: int = 0  # in a row

    @property
    def factor(self) -> float:
        """Measured over predicted."""
        return math.exp(self.logarithm)

    def told(self, measured: float, predicted: float, at: float) -> Filter:
        """What is known after a measurement at time `at`, both in the same unit and above 0."""
        variance = self.variance + DRIFT * max(0.0, at - self.at) if self.at else self.variance
        seen = math.log(measured / predicted)
        innovation = seen - self.logarithm
        if innovation**2 > GATE * (variance + NOISE):
            if self.outliers + 1 < PATIENCE:
                return Filter(self.logarithm, self.variance, self.at, self.outliers + 1)
            return Filter(seen, NOISE, at)
        gain = variance / (variance + NOISE)
        return Filter(self.logarithm + gain * innovation, (1.0 - gain) * variance, at)
