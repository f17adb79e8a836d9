"""What a candidate's replicas do at the planned load, and cost. Pure."""

from __future__ import annotations

from decimal import Decimal

import numpy as np

from turbo_operator.api import Provenance
from turbo_operator.plan import Predicted
from turbo_operator.planner import feasibility
from turbo_operator.planner.arrays import Indices, Numbers
from turbo_operator.planner.evaluation import PlanEvaluation
from turbo_operator.planner.performance.candidate_curves import is_calibrated
from turbo_operator.planner.performance.curves import Engines
from turbo_operator.planner.requirements import Demand

ENDLESS = 1e4  # seconds: a queue that never ends has no percentile


def predict(evaluation: PlanEvaluation, indices: Indices, replicas: Numbers) -> list[Predicted | None]:
    """Predict each pair with so many replicas at the planned load; None where its speed is unknown.

    Of no replicas: what one would do and cost, but they yield no tokens.
    """
    requirements, speeds = evaluation.requirements, evaluation.speeds
    places = evaluation.availability.candidate[indices]
    able = evaluation.memory_use.fits[places] & evaluation.profiled[places]
    predictions: list[Predicted | None] = [None] * len(indices)
    if not able.any():
        return predictions
    count = np.maximum(replicas, 1.0)
    performance = evaluation.performance(places[able], count[able])
    needed = feasibility.needed_replicas(requirements, speeds, places)
    calibrated = is_calibrated(evaluation.candidates, evaluation.case.calibrations)
    for number, at in enumerate(np.flatnonzero(able)):
        pair, one = evaluation.pair(indices[at]), float(speeds.tokens_per_second[places[at]])
        cost = pair.cost_per_hour(int(count[at]))
        tokens = float(performance.tokens_per_second[number]) * float(replicas[at])
        capacity = tokens if np.isnan(one) else one * float(replicas[at])
        if np.isinf(needed[at]):
            tokens = min(tokens, capacity)  # what misses the targets at any load promises no throughput
        provenance = Provenance.CALIBRATED if calibrated[pair.place] else Provenance.ROOFLINE
        predictions[at] = Predicted(
            time_to_first_token=_finite(performance.time_to_first_token[number]),
            time_per_output_token=_finite(performance.time_per_output_token[number]),
            tokens_per_second=tokens or None,
            capacity_tokens_per_second=capacity,
            cost_per_hour=cost,
            cost_per_million_tokens=_per_million(cost, tokens),
            provenance=Provenance.ASSUMED if requirements.demand.assumed or pair.draft.gains else provenance,
        )
    return predictions


def unloaded_latency(engines: Engines, demand: Demand) -> tuple[Numbers, Numbers]:
    """[c] seconds to the first token of a long prompt, and per output token, of one request alone."""
    token = engines.decode[:, 0]
    return engines.first + token + engines.prefill * demand.prompt.p95, token


def _finite(seconds: float) -> float | None:
    return float(seconds) if seconds < ENDLESS else None


def _per_million(cost: Decimal | None, tokens: float) -> Decimal | None:
    if cost is None or tokens <= 0.0:
        return None
    return (cost / Decimal(tokens * 3600.0) * 1_000_000).quantize(Decimal("0.000001"))
