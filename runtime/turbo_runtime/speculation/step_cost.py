"""The seconds of a step, learned from the engine's own steps. Pure: no clock.

A Kalman filter over the seconds at fixed numbers of tokens, with interpolation between them, and over the
seconds of reading the cache (Kalman, 1960; the prior over the knots is a Gaussian process's). A step teaches
about its own size, and in part about all sizes: a machine that slows down does so for all.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from turbo_runtime.contract.documents import StepTime

Vector: TypeAlias = NDArray[np.float64]

_KNOTS = np.array([4, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 512, 1024, 2048, 4096], np.float64)
_SHAPE = np.array([1, 1.5, 1.7, 1.9, 2.4, 3, 4, 5, 7, 9, 13, 17, 33, 65, 129, 257])  # before any measurement
_READS = 1e5  # keys read, the unit of both coefficients of reading
_COMMON, _OWN = 0.3, 0.15  # standard deviations of the prior relative to it: of all knots alike, of each
_READING = 0.1  # of a coefficient of reading, relative to the seconds at the first knot
_NOISE = 0.08  # of one step's time, relative
_DRIFT = 2e-4  # of the prior's variance that every step restores: old lessons fade
_MIN_SECONDS = 1e-6  # of any pass: shares of a step's time divide by it
_OUTLIER = 3.0  # standard deviations, to which a surprise is clipped


@dataclass(frozen=True, slots=True)
class StepShape:
    """The quantities that a step's time depends on."""

    tokens: int  # that the pass computes: of prompts, answers and drafts
    row_reads: int = 0  # keys that tokens of answers and drafts attend to, in total
    tile_reads: int = 0  # likewise of prompts


class StepCost:
    """Seconds of a step by its shape."""

    def __init__(self, seeds: Sequence[StepTime] | None, padded: Callable[[int], int]) -> None:
        """`seeds`: measured passes to begin with, else the first step. `padded`: tokens with padding."""
        self._padded = padded
        self._mean: Vector | None = None
        self._covariance = self._fading = np.zeros((0, 0))
        if seeds:
            self._begin(_prior(seeds, padded))

    @property
    def known(self) -> bool:
        """Whether there is any measurement."""
        return self._mean is not None

    def seconds(self, shape: StepShape) -> float:
        """Predict the time of a step."""
        return float(self.growing(shape, 0, 0.0)[0])

    def growing(self, shape: StepShape, more: int, reads: float) -> Vector:
        """Predict times (more + 1,) with up to `more` tokens of `reads` keys each; never falling."""
        if self._mean is None:
            raise ValueError("no step was measured yet; learn one first")
        tokens = [self._padded(shape.tokens + n) for n in range(more + 1)]
        knots = np.maximum.accumulate(np.maximum(self._mean[:-2], _MIN_SECONDS))
        base = np.interp(tokens, _KNOTS, knots)
        per_row, per_tile = np.maximum(self._mean[-2:], 0.0) / _READS
        times: Vector = base + per_tile * shape.tile_reads
        times += per_row * (shape.row_reads + reads * np.arange(more + 1))
        return times

    def doubt(self, shape: StepShape, more: int, reads: float) -> Vector:
        """The standard deviations (more + 1,) of what the additional tokens of `growing` cost, in seconds."""
        sizes = ((shape.tokens + n, round(shape.row_reads + reads * n)) for n in range(more + 1))
        features = np.stack([self._features(StepShape(*size, shape.tile_reads)) for size in sizes])
        beyond = features - features[0]
        variance: Vector = np.einsum("nk,kl,nl->n", beyond, self._covariance, beyond)
        return np.sqrt(np.maximum(variance, 0.0))

    def learn(self, shape: StepShape, seconds: float) -> None:
        """Learn from one step."""
        features = self._features(shape)
        if self._mean is None:
            self._begin(_SHAPE * (seconds / float(features[:-2] @ _SHAPE)))
        assert self._mean is not None
        # towards the prior: no size becomes less certain than before any measurement
        self._covariance += _DRIFT * (self._fading - self._covariance)
        predicted = float(features @ self._mean)
        gain = self._covariance @ features
        variance = float(features @ gain) + (_NOISE * max(predicted, 1e-9)) ** 2
        bound = _OUTLIER * variance**0.5
        surprise = min(max(seconds - predicted, -bound), bound)
        self._mean += gain * (surprise / variance)
        self._covariance -= np.outer(gain, gain) / variance

    def _features(self, shape: StepShape) -> Vector:
        place = min(max(float(self._padded(shape.tokens)), _KNOTS[0]), _KNOTS[-1])
        right = min(max(int(np.searchsorted(_KNOTS, place)), 1), len(_KNOTS) - 1)
        share = (place - _KNOTS[right - 1]) / (_KNOTS[right] - _KNOTS[right - 1])
        features = np.zeros(len(_KNOTS) + 2)
        features[right - 1], features[right] = 1 - share, share
        features[-2:] = shape.row_reads / _READS, shape.tile_reads / _READS
        return features

    def _begin(self, knots: Vector) -> None:
        self._mean = np.concatenate([knots, [0.0, 0.0]])
        covariance = np.diag(np.concatenate([_OWN * knots, np.full(2, _READING * knots[0])]) ** 2)
        covariance[:-2, :-2] += np.outer(_COMMON * knots, _COMMON * knots)
        self._covariance, self._fading = covariance, covariance.copy()


def _prior(seeds: Sequence[StepTime], padded: Callable[[int], int]) -> Vector:
    """Seconds at the knots: the usual shape, bent so that it goes through the measured points."""
    points = sorted({padded(seed.rows * seed.tokens): seed.seconds for seed in seeds}.items())
    places = np.array([float(tokens) for tokens, _ in points])
    usual = np.interp(places, _KNOTS, _SHAPE)
    bend = np.array([seconds for _, seconds in points]) / usual
    return np.maximum.accumulate(_SHAPE * np.interp(_KNOTS, places, bend))
