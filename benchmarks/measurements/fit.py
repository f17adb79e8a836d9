"""Coefficients of the step-time model from measured rows: the least sum of soft absolute errors.

One set for all rows. The two coefficients of first tokens are also each engine's own, and those that the
catalog's efficiency fields name each pair's of accelerator and engine. Every logarithm is drawn to what is
shipped, and each own one to that of all, so that few rows tell little.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any, Protocol

import numpy as np

from measurements.deployed import Numbers, Words
from turbo_operator.api.accelerator import Efficiency
from turbo_operator.planner.performance.step_time import NAMES, Coefficients

OF_ENGINES = ("prefill_layer_seconds", "prefill_wait")
OF_PAIRS = tuple(Efficiency.model_fields)
RIDGE = 0.3  # weight of a deviation of a logarithm against a row's error
RIDGE_OF_ENGINES = 0.1  # the same of an engine's own: schedulers differ by more than accelerators do
SOFT = 0.03  # error beyond which it counts by its size rather than its square: repeats differ by as much
STEPS = 60  # of the search at most
STEP = 1e-6  # of a logarithm, to tell slopes by
MOST_DAMPED = 1e6  # there is no better step
ENOUGH = 1e-5  # of the loss: the search ends when a step gains less


class Measured(Protocol):
    """n measured rows."""

    @property
    def words(self) -> Mapping[str, Words]:
        """At least the accelerator and the engine of each, by these names."""

    def __len__(self) -> int: ...

    def errors(self, coefficients: Coefficients) -> Numbers:
        """[n, figures] of predicted against measured; 0 where they agree."""


@dataclass(frozen=True)
class Joined:
    """Rows of two tables, of which one set of coefficients is wanted."""

    one: Measured
    other: Measured

    @property
    def words(self) -> Mapping[str, Words]:
        """Accelerator and engine of each row."""
        return {
            name: np.concatenate((self.one.words[name], self.other.words[name]))
            for name in ("accelerator", "engine")
        }

    def __len__(self) -> int:
        return len(self.one) + len(self.other)

    def errors(self, coefficients: Coefficients) -> Numbers:
        """[n, figures]; 0 where a table has fewer figures than the other."""
        size = len(self.one)
        columns = {name: getattr(coefficients, name) for name in NAMES}
        found = [
            self.one.errors(Coefficients(**{name: column[:size] for name, column in columns.items()})),
            self.other.errors(Coefficients(**{name: column[size:] for name, column in columns.items()})),
        ]
        width = max(errors.shape[1] for errors in found)
        return np.concatenate([np.pad(errors, ((0, 0), (0, width - errors.shape[1]))) for errors in found])


@dataclass(frozen=True)
class Fit:
    """Natural logarithms of coefficients: those of all, and by (name, pair or engine) what to add."""

    common: dict[str, float]
    own: dict[tuple[str, str], float]

    def coefficients(self, rows: Measured) -> Coefficients:
        """Of each row; what was never seen has the common ones."""
        columns: dict[str, Any] = {}
        for name in NAMES:
            words = _group(rows, name)
            own = [self.own.get((name, str(word)), 0.0) for word in words]
            columns[name] = np.exp(self.common[name] + np.array(own))
        return Coefficients(**columns)

    def of(self, engine: str) -> dict[str, float]:
        """The common ones with an engine's own, by name."""
        return {
            name: float(np.exp(it + self.own.get((name, engine), 0.0))) for name, it in self.common.items()
        }


def _group(rows: Measured, name: str) -> Words:
    """Whose own value of a coefficient each row has."""
    engine = rows.words["engine"]
    return engine if name in OF_ENGINES else np.char.add(np.char.add(rows.words["accelerator"], "/"), engine)


def fit(rows: Measured, names: tuple[str, ...] = (*OF_ENGINES, *OF_PAIRS)) -> Fit:
    """The coefficients that tell `rows` best; `names`: those that engines or pairs have of their own."""
    groups = {name: np.unique(_group(rows, name), return_inverse=True) for name in names}
    start = np.log([getattr(Coefficients(), field.name) for field in fields(Coefficients)])
    sizes = [len(groups[name][0]) for name in names]
    ends = len(NAMES) + np.cumsum([0, *sizes])

    def columns(x: Numbers) -> dict[str, Any]:
        found: dict[str, Any] = {
            name: np.full(len(rows), start[place] + x[place]) for place, name in enumerate(NAMES)
        }
        for name, begin, end in zip(names, ends[:-1], ends[1:], strict=True):
            found[name] = found[name] + x[begin:end][groups[name][1]]
        return found

    def errors(logarithms: dict[str, Any]) -> Numbers:
        values: dict[str, Any] = {name: np.exp(column) for name, column in logarithms.items()}
        return rows.errors(Coefficients(**values))

    def slopes(x: Numbers, here: Numbers) -> Numbers:
        """A row's errors depend on its own columns alone: one step of each name tells all of its groups."""
        at, found = columns(x), np.zeros((*here.shape, len(x)))
        for place, name in enumerate(NAMES):
            slope = (errors(at | {name: at[name] + STEP}) - here) / STEP
            found[:, :, place] = slope
            if name in groups:
                begin = ends[names.index(name)]
                found[np.arange(len(rows)), :, begin + groups[name][1]] = slope
        return found.reshape(-1, len(x))

    ridge = np.full(ends[-1], RIDGE)
    for name, begin, end in zip(names, ends[:-1], ends[1:], strict=True):
        if name in OF_ENGINES:
            ridge[begin:end] = RIDGE_OF_ENGINES
    x = _least(lambda x: errors(columns(x)), slopes, ridge)
    own = {
        (name, str(word)): float(x[begin + place])
        for name, begin in zip(names, ends[:-1], strict=True)
        for place, word in enumerate(groups[name][0])
    }
    return Fit(dict(zip(NAMES, map(float, start + x[: len(NAMES)]), strict=True)), own)


def _least(
    errors: Callable[[Numbers], Numbers],
    slopes: Callable[[Numbers, Numbers], Numbers],
    ridge: Numbers,
) -> Numbers:
    """The least sum of soft absolute errors and of squares of `ridge` x, by damped Gauss-Newton steps."""

    def loss(x: Numbers, here: Numbers) -> float:
        soft = 2.0 * SOFT**2 * (np.sqrt(1.0 + (here / SOFT) ** 2) - 1.0)
        return float(soft.sum() + (ridge**2 * x**2).sum())

    x = np.zeros(len(ridge))
    here, damping = errors(x), 1e-2
    for _ in range(STEPS):
        slope, flat, before = slopes(x, here), here.ravel(), loss(x, here)
        weighted = slope.T / np.sqrt(1.0 + (flat / SOFT) ** 2)
        curvature = weighted @ slope + np.diag(ridge**2)
        down = weighted @ flat + ridge**2 * x
        while True:
            step = np.linalg.solve(curvature + damping * np.diag(curvature.diagonal()), down)
            with np.errstate(all="ignore"):  # a step may leave what floats hold: it is refused then
                there = errors(x - step)
                better = loss(x - step, there) < before
            if better:
                break
            if damping > MOST_DAMPED:
                return x
            damping *= 4.0
        x, here, damping = x - step, there, damping / 4.0
        if before - loss(x, here) < ENOUGH * before:
            return x
    return x
