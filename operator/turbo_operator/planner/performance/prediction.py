"""What a candidate's replicas do at the planned load, and cost. Pure."""

from __future__ import annotations

from decimal import Decimal

import numpy as np
from numpy.typing import NDArray

from turbo_operator.api import Provenance
from turbo_operator.plan import Predicted
from turbo_operator.planner import feasibility
from turbo_operator.planner.availability import footprint
from turbo_operator.planner.demand import Demand
from turbo_operator.planner.evaluation import PlanEvaluation
from turbo_operator.planner.performance import capacity
from turbo_operator.planner.performance.candidate_curves import is_calibrated

Numbers = NDArray[np.float64]
Pairs = NDArray[np.int64]

ENDLESS = 1e4  # seconds: a queue that never ends has no percentile


def predicted(of: PlanEvaluation, pairs: Pairs, replicas: Numbers) -> list[Predicted | None]:
    """What each pair does with so many replicas at the planned load; None where it cannot be told.

    Of no replicas: what one would do and cost, but they yield no tokens.
    """
    places = of.stock.candidate[pairs]
    able = of.room.fits[places] & of.profiled[places]
    found: list[Predicted | None] = [None] * len(pairs)
    if not able.any():
        return found
    count = np.maximum(replicas, 1.0)
    served = of.served(places[able], count[able])
    need = feasibility.needed(of.request, of.speeds, places)
    measured = is_calibrated(of.it, of.case.calibrations)
    for number, at in enumerate(np.flatnonzero(able)):
        place = int(places[at])
        cost = cost_per_hour(of, int(pairs[at]), int(count[at]))
        tokens = float(served.tokens_per_second[number]) * float(replicas[at])
        most = _capacity(of, place, float(replicas[at]), tokens)
        if np.isinf(need[at]):
            tokens = min(tokens, most)  # what misses the targets at any load promises no throughput
        found[at] = Predicted(
            time_to_first_token=_finite(served.time_to_first_token[number]),
            time_per_output_token=_finite(served.time_per_output_token[number]),
            tokens_per_second=tokens or None,
            capacity_tokens_per_second=most,
            cost_per_hour=cost,
            cost_per_million_tokens=_per_million(cost, tokens),
            provenance=_provenance(of, place, bool(measured[place])),
        )
    return found


def alone(engines: capacity.Engines, demand: Demand) -> tuple[Numbers, Numbers]:
    """[c] seconds to the first token of a long prompt, and per output token, with nothing else to do."""
    token = engines.decode[:, 0]
    return engines.first + token + engines.prefill * demand.prompt.p95, token


def cost_per_hour(of: PlanEvaluation, pair: int, replicas: int) -> Decimal | None:
    """Dollars per hour of so many replicas of a pair."""
    kind = of.request.capacity_types[of.stock.capacity_type[pair]]
    return footprint(of.it, int(of.stock.candidate[pair]), kind).cost_per_hour(replicas)


def _capacity(of: PlanEvaluation, place: int, replicas: float, tokens: float) -> float:
    each = of.speeds.tokens_per_second[place]
    return tokens if np.isnan(each) else float(each) * replicas


def _finite(seconds: float) -> float | None:
    return float(seconds) if seconds < ENDLESS else None


def _per_million(cost: Decimal | None, tokens: float) -> Decimal | None:
    if cost is None or tokens <= 0.0:
        return None
    return (cost / Decimal(tokens * 3600.0) * 1_000_000).quantize(Decimal("0.000001"))


def _provenance(of: PlanEvaluation, place: int, measured: bool) -> Provenance:
    if of.request.demand.assumed or of.it.draft_of(place).gains:
        return Provenance.ASSUMED
    return Provenance.CALIBRATED if measured else Provenance.ROOFLINE
