"""The coefficients that the planner ships: a fit to every row, rounded."""

from __future__ import annotations

from dataclasses import replace

from measurements.fit import OF_ENGINES, Measured, fit
from turbo_operator.planner.performance.step_time import NAMES, Coefficients

DIGITS = 2  # that count
SHARES = ("bandwidth", "expert_bandwidth", "flops", "expert_flops")  # of a peak: at most all of it


def rounded(name: str, value: float) -> float:
    """A coefficient as it is shipped."""
    found = float(f"{value:.{DIGITS - 1}e}")
    return min(found, 1.0) if name in SHARES else found


def to_ship(rows: Measured) -> tuple[Coefficients, dict[str, Coefficients]]:
    """Those of all, and each engine's: of all but the two that are its own."""
    common = fit(rows, names=()).of("")
    every = Coefficients(**{name: rounded(name, common[name]) for name in NAMES})
    found = fit(rows, names=OF_ENGINES)
    engines = sorted({str(engine) for engine in rows.words["engine"]})
    return every, {
        engine: replace(every, **{name: rounded(name, found.of(engine)[name]) for name in OF_ENGINES})
        for engine in engines
    }
