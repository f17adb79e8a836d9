"""The seconds of a step, learned from the engine's own steps. Pure: no clock.

A Kalman filter over the seconds at fixed numbers of tokens, with interpolation between them, and over the
seconds of reading the cache (Kalman, 1960; the prior over the knots is a Gaussian process's). A step teaches
about its own size, and in part about all sizes: a machine that slows down does so for all.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from turbo_runtime.contract.documents import StepTime

Vector: TypeAlias = NDArray[np.float64]

_FEW = (4, 6, 7, 8, 9, 12, 16)  # close: products that keep a few rows in registers grow dear between them
_KNOTS = np.array([*_FEW, 24, 32, 48, 64, 96, 128, 192, 256, 512, 1024, 2048, 4096], np.float64)
_PLACES: list[float] = _KNOTS.tolist()
# before any measurement
_SHAPE = np.array([1, 1.1, 1.25, 1.3, 1.35, 1.5, 1.7, 2.3, 3, 4, 5, 7, 9, 13, 17, 33, 65, 129, 257])
_READS = 1e5  # keys read, the unit of both coefficients of reading
_COMMON, _OWN = 0.3, 0.15  # standard deviations of the prior relative to it: of all knots alike, of each
_READING = 5.0  # of a coefficient of reading, relative to the seconds at the first knot
_SHARED = 0.1  # of the keys that an answer reads: what each of its drafted tokens adds, which reads them too
_NOISE = 0.08  # of one step's time, relative
_DRIFT = 2e-4  # of the prior's variance that every step restores: old lessons fade
_MIN_SECONDS = 1e-6  # of any pass: shares of a step's time divide by it
_OUTLIER = 3.0  # standard deviations, to which a surprise is clipped


@dataclass(frozen=True, slots=True)
class StepShape:
    """The quantities that a step's time depends on."""

    tokens: int  # that the pass computes: of prompts, answers and drafts
    row_reads: float = 0.0  # keys that answers attend to, in total, each drafted token counting for a share
    tile_reads: int = 0  # likewise of prompts

    def drafting(self, drafted: int, answers: int) -> StepShape:
        """Add so many drafted tokens to a step for `answers`."""
        reads = self.row_reads * (1 + _SHARED * drafted / max(answers, 1))
        return StepShape(self.tokens + drafted, reads, self.tile_reads)


class StepCost:
    """Seconds of a step by its shape."""

    def __init__(self, seeds: Sequence[StepTime] | None, padded: Callable[[int], int]) -> None:
        """`seeds`: measured passes to begin with, else the first step. `padded`: tokens with padding,
        which never changes.
        """
        self._padded = padded
        self._weights = np.zeros((int(_PLACES[-1]) + 1, len(_KNOTS) + 2))  # of the state, by tokens
        places = [padded(tokens) for tokens in range(len(self._weights))]
        for knot, alone in enumerate(np.eye(len(_KNOTS))):
            self._weights[:, knot] = np.interp(places, _KNOTS, alone)
        self._mean: Vector | None = None
        self._times: list[float] = []  # the mean, made non-decreasing in tokens
        self._covariance = np.zeros((0, 0))
        self._restored = np.zeros((0, 0))  # of the prior's covariance, by every step
        if seeds:
            self._begin(*_prior(seeds, padded))

    @property
    def known(self) -> bool:
        """Whether there is any measurement."""
        return self._mean is not None

    def seconds(self, shape: StepShape) -> float:
        """Predict the time of a step."""
        if self._mean is None:
            raise ValueError("no step was measured yet; learn one first")
        # without numpy, whose calls take long behind a pass
        place = min(max(float(self._padded(shape.tokens)), _PLACES[0]), _PLACES[-1])
        right = max(bisect_left(_PLACES, place), 1)
        share = (place - _PLACES[right - 1]) / (_PLACES[right] - _PLACES[right - 1])
        below, above = self._times[right - 1 : right + 1]
        reading = (self._times[-2] * shape.row_reads + self._times[-1] * shape.tile_reads) / _READS
        return below + (above - below) * share + reading

    def added(self, shape: StepShape, more: int, answers: int = 1) -> tuple[Vector, Vector]:
        """Predict what up to `more` tokens drafted for `answers` add to a step, in seconds (more + 1,), never
        falling, and the standard deviations of that.
        """
        count = np.arange(more + 1)
        features = self._weights[np.minimum(count + shape.tokens, len(self._weights) - 1)]
        features[:, -2] = shape.row_reads * _SHARED / max(answers, 1) / _READS * count
        features[:, :-2] -= features[0, :-2]
        variance = np.einsum("nk,nk->n", features @ self._covariance, features)
        seconds = np.maximum.accumulate(features @ np.array(self._times))  # but for rounding it never falls
        return seconds, np.sqrt(np.maximum(variance, 0.0))

    def learn(self, shape: StepShape, seconds: float) -> None:
        """Learn from one step. Few calls of numpy: a pass leaves nothing of it in the caches."""
        features = self._weights[min(shape.tokens, len(self._weights) - 1)].copy()
        features[-2], features[-1] = shape.row_reads / _READS, shape.tile_reads / _READS
        if self._mean is None:
            self._begin(_SHAPE * (seconds / float(features[:-2] @ _SHAPE)), 0.0)
        assert self._mean is not None
        # towards the prior: no size becomes less certain than before any measurement
        self._covariance *= 1 - _DRIFT
        self._covariance += self._restored
        predicted = float(features @ self._mean)
        gain = self._covariance @ features
        variance = float(features @ gain) + (_NOISE * max(predicted, 1e-9)) ** 2
        deviation = variance**0.5
        surprise = min(max((seconds - predicted) / deviation, -_OUTLIER), _OUTLIER)
        gain /= deviation
        self._know(self._mean + gain * surprise)
        self._covariance -= gain[:, None] * gain

    def _begin(self, knots: Vector, reading: float) -> None:
        self._know(np.concatenate([knots, [reading, 0.0]]))
        covariance = np.diag(np.concatenate([_OWN * knots, np.full(2, _READING * knots[0])]) ** 2)
        covariance[:-2, :-2] += np.outer(_COMMON * knots, _COMMON * knots)
        self._covariance, self._restored = covariance, _DRIFT * covariance

    def _know(self, mean: Vector) -> None:
        """Take these means, and for predictions such as grow with the tokens."""
        self._mean = mean
        *knots, per_row, per_tile = mean.tolist()
        _, *growing = accumulate(knots, max, initial=_MIN_SECONDS)
        self._times = [*growing, max(per_row, 0.0), max(per_tile, 0.0)]


def _prior(seeds: Sequence[StepTime], padded: Callable[[int], int]) -> tuple[Vector, float]:
    """Seconds at the knots, linear between the measured points and of the usual shape beyond; and of reading:
    several requests read more keys than one that drafts as many tokens.
    """
    drafted = any(seed.context and seed.tokens > 1 for seed in seeds)
    several = [seed for seed in seeds if drafted and seed.rows > 1]
    points = sorted(
        {padded(seed.rows * seed.tokens): seed.seconds for seed in seeds if seed not in several}.items()
    )
    places, seconds = np.array(points, np.float64).T
    beyond = _SHAPE * (seconds[-1] / np.interp(places[-1], _KNOTS, _SHAPE))
    knots = np.where(places[-1] >= _KNOTS, np.interp(_KNOTS, places, seconds), beyond)
    knots = np.maximum.accumulate(knots)
    reading = 0.0
    for seed in several:
        same = float(np.interp(padded(seed.rows * seed.tokens), _KNOTS, knots))
        reading = max(0.0, seed.seconds - same) / (seed.context * (seed.rows - 1)) * _READS
    return knots, reading
