"""Predictions of rows that a fit has not seen: of the other half, another accelerator, another model."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Protocol, Self, TypeVar

import numpy as np

from measurements.deployed import Mask, Numbers, Words
from measurements.endtoend import Rows, Times, throughput
from measurements.fit import Fit, Measured
from turbo_operator.planner.performance.calibration import mean_ratio

SEEDS = 6


class Table(Measured, Protocol):
    """Measured rows that can be divided."""

    def take(self, which: Mask) -> Self:
        """Some of the rows."""


Some = TypeVar("Some", bound=Table)


def halves(configurations: Words, seeds: int = SEEDS) -> Iterator[Mask]:
    """Rows of half of the configurations, by seed: no configuration is on both sides."""
    names = np.unique(configurations)
    for seed in range(seeds):
        chosen = np.random.default_rng(seed).permutation(names)[: (len(names) + 1) // 2]
        yield np.isin(configurations, chosen)


def others(words: Words) -> Iterator[Mask]:
    """Rows of all words but one, for each word in turn; none where there is only one word."""
    for word in np.unique(words):
        on = words != word
        if on.any():
            yield on


def unseen(
    table: Some,
    trained_on: Iterator[Mask],
    fit: Callable[[Some], Fit],
    error: Callable[[Some, Fit], Numbers],
) -> Numbers:
    """[n, figures] errors of each row, the mean over the fits that had not seen it; NaN without one."""
    total, count = None, np.zeros(len(table))
    for on in trained_on:
        if on.all() or not on.any():
            continue
        found = error(table.take(~on), fit(table.take(on)))
        total = np.zeros((len(table), found.shape[1])) if total is None else total
        total[~on] += found
        count[~on] += 1.0
    if total is None:
        return np.full((len(table), 1), np.nan)
    with np.errstate(invalid="ignore"):
        return np.asarray(total / count[:, None])


def end_to_end_errors(rows: Rows, times: Times) -> Numbers:
    """[n, 3] absolute relative errors of time per output token, throughput and time to first token."""
    measured = Times(rows.first, rows.token)
    pairs = (
        (times.token, rows.token),
        (throughput(rows, times), throughput(rows, measured)),
        (times.first, rows.first),
    )
    return np.stack([np.abs(predicted / true - 1.0) for predicted, true in pairs], axis=1)


def calibrated(rows: Rows, times: Times) -> tuple[Times, Mask]:
    """Times scaled by three measured rows of each deployment, and the rows that are then still to be told.

    A start-up micro-benchmark measures passes at few requests and at more; here the rows of least, middle and
    most load stand for it, and as they measure what was served, their factors are on that. Deployments with
    fewer than four rows are left out.
    """
    first, token = times.first.copy(), times.token.copy()
    told = np.zeros(len(rows), bool)
    for name in np.unique(rows.words["deployment"]):
        of = np.flatnonzero(rows.words["deployment"] == name)
        if len(of) < 4:
            continue
        of = of[np.lexsort((rows.prompt[of], rows.requests[of]))]
        three = of[[0, len(of) // 2, -1]]
        first[of] *= mean_ratio(rows.first[three] / times.first[three])
        token[of] *= mean_ratio(rows.token[three] / times.token[three])
        told[np.setdiff1d(of, three)] = True
    return Times(first, token), told
