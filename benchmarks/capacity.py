"""Capacity as planned against the rate at which a replay of the queue stops keeping the target.

Lengths are those of Azure's trace; the planner is told their means and 95th percentiles alone. Arrivals are
random (Poisson), as the planner takes them; `bursts` replays the trace's own arrival times at another pace,
thinned as the sample is, in its own order: a figure without a bar, since nothing tells the planner of them.
Nor have the cases a bar that are known to be further from a replay than a tenth.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
from harness import Bar, arguments, finish
from numpy.typing import NDArray

from turbo_dev.replay import replay
from turbo_dev.typical import CASES, CURVES, FURTHER, Case, seen, trace
from turbo_operator.planner.performance.capacity import capacity, saturated

BARS = (Bar("error_pct_max", at_most=10),)
HALVINGS = 10


def _highest(case: Case, most: float, at: Callable[[float], NDArray[np.float64]]) -> float:
    """The highest rate below `most` at which the share of late requests is allowed."""
    low, high = 0.0, most
    for _ in range(HALVINGS):
        rate = (low + high) / 2.0
        late = float((at(rate) > case.bound.seconds).mean())
        low, high = (rate, high) if late <= 1.0 - case.bound.share else (low, rate)
    return low


def _own(
    case: Case, seconds: NDArray[np.float64], lengths: NDArray[np.int64], rate: float
) -> NDArray[np.float64]:
    pace = len(seconds) / float(seconds[-1]) / rate
    times = replay(CURVES[case.curve].replica(), (seconds * pace).tolist(), *lengths.T.tolist())
    found = times.to_first_token if case.first else times.per_output_token
    return found[~np.isnan(found)]


def main() -> int:
    options = arguments(__doc__ or "").parse_args()
    rows, errors, further, bursts = [], list[float](), list[float](), list[float]()
    for case in (*CASES, *FURTHER):
        seconds, lengths = trace(case.service)
        asked = case.demand(lengths)
        engines = CURVES[case.curve].engines(asked.mean_context)
        planned = float(capacity(engines, asked)[0])
        most = 1.3 * float(saturated(engines, asked)[0])
        replayed = _highest(case, most, partial(seen, case, lengths))
        own = _highest(case, most, partial(_own, case, seconds, lengths))
        bursts.append(own / planned)
        error = 100.0 * (planned / replayed - 1.0)
        (further if case in FURTHER else errors).append(error)
        rows.append(
            {
                "replica": case.curve,
                "service": case.service,
                "target": "first token" if case.first else "output token",
                "seconds": case.bound.seconds,
                "percentile": round(100 * case.bound.share),
                "planned_rps": planned,
                "replayed_rps": replayed,
                "error_pct": error,
                "bursts_rps": own,
            }
        )
    figures = {
        "cases": float(len(errors)),
        "error_pct_max": float(np.abs(errors).max()),
        "error_pct_mean": float(np.abs(errors).mean()),
        "further_cases": float(len(further)),
        "further_error_pct_max": float(np.abs(further).max()),
        "bursts_of_planned_min": min(bursts),
    }
    return finish("capacity", figures, rows, BARS, options)


if __name__ == "__main__":
    raise SystemExit(main())
