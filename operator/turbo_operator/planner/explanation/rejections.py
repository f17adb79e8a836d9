"""Rejected candidates worth telling, each with a reason and a sentence. Pure.

One row for each accelerator, capacity type and reason: a second candidate that fails alike says nothing new.
What is not supported yet is told where it would do better than the plan, or would do where nothing else does.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from turbo_operator.api import Objective, PlanReason
from turbo_operator.plan import Predicted, Rejected
from turbo_operator.planner.evaluation import PlanEvaluation
from turbo_operator.planner.explanation.rejection_messages import why
from turbo_operator.planner.feasibility import CODES
from turbo_operator.planner.performance.prediction import Numbers, predicted

# Which refusal comes closest to a plan, so that the condition names the one worth acting on.
NEAREST = (
    PlanReason.DEARER,
    PlanReason.NOT_PREFERRED,
    PlanReason.OVER_BUDGET,
    PlanReason.NO_CAPACITY,
    PlanReason.TARGET_UNREACHABLE,
    PlanReason.PRICE_UNKNOWN,
    PlanReason.NOT_YET_SUPPORTED,
    PlanReason.OUT_OF_MEMORY,
    PlanReason.INVALID_PARALLELISM,
    PlanReason.NO_PROFILE,
)
EVERYWHERE = (PlanReason.OUT_OF_MEMORY, PlanReason.NO_PROFILE)  # whatever the capacity type


def rejected(
    of: PlanEvaluation, best: int | None, count: int
) -> tuple[tuple[Rejected, ...], Predicted | None]:
    """The rows beside the pair `best`, or of no plan at all, the first ones worth reading; and what `count`
    replicas of `best` do: predicted together, since a call has a cost of its own.
    """
    pairs = _worth_telling(of, best)
    chosen = np.array([] if best is None else [best], np.int64)
    replicas = np.append(of.verdict.told[pairs], np.full(len(chosen), float(count)))
    told = predicted(of, np.append(pairs, chosen), replicas)
    made = [row(of, pair, best, does) for pair, does in zip(pairs.tolist(), told, strict=False)]
    rank = {pair: place for place, pair in enumerate(of.order.tolist())}
    places = [
        (_distance(of, each, pair), rank[pair]) for each, pair in zip(made, pairs.tolist(), strict=True)
    ]
    ordered = sorted(zip(places, made, strict=True), key=lambda each: each[0])
    return tuple(each for _, each in ordered), None if best is None else told[-1]


def _distance(of: PlanEvaluation, row: Rejected, pair: int) -> tuple[int, bool]:
    """How far from a plan: what may not be chosen yet and fails besides is further than what only waits."""
    near, waits = NEAREST.index(PlanReason(row.reason)), NEAREST.index(PlanReason.NOT_YET_SUPPORTED)
    fails = bool(of.lacking[of.stock.candidate[pair]]) and near != waits
    return max(near, waits) if fails else near, fails


def _worth_telling(of: PlanEvaluation, best: int | None) -> NDArray[np.int64]:
    it, stock, verdict = of.it, of.stock, of.verdict
    lacking = of.lacking[stock.candidate]
    # Of those that fail alike the one that misses least is told: what may be chosen before what may not, and
    # what was worked out before what rests on an assumed acceptance.
    rank = np.empty(len(of.order))
    rank[of.order] = np.arange(len(of.order))
    unsupported = verdict.is_(PlanReason.NOT_YET_SUPPORTED)
    with np.errstate(invalid="ignore"):
        near = np.floor(np.log(np.maximum(verdict.miss, 1.0)) / 0.05)
    assumed = np.array([draft.gains for draft in it.drafts], bool)[it.draft[stock.candidate]]
    sequence = np.lexsort((rank, near, assumed, lacking & ~unsupported))
    kept: dict[tuple[int, int, int], int] = {}
    everywhere = {CODES.index(reason) for reason in EVERYWHERE}
    for pair in sequence.tolist():
        if pair == best:
            continue
        code = int(verdict.code[pair])
        kind = 0 if code in everywhere else int(stock.capacity_type[pair])
        kept.setdefault((int(it.accelerator[stock.candidate[pair]]), kind, code), pair)
    return np.array([pair for key, pair in kept.items() if _tells(of, key, kept, best, rank)], np.int64)


def _tells(
    of: PlanEvaluation,
    key: tuple[int, int, int],
    kept: dict[tuple[int, int, int], int],
    best: int | None,
    rank: Numbers,
) -> bool:
    accelerator, kind, code = key
    reason, pair = CODES[code], kept[key]
    mine = [(other, CODES[other[2]]) for other in kept if other[0] == accelerator and other != key]
    here = [(other, why) for other, why in mine if other[1] == kind]
    chosen = best is not None and of.it.accelerator[of.stock.candidate[best]] == accelerator
    if reason == PlanReason.NOT_YET_SUPPORTED:
        if best is None:
            return True
        return _better(of, pair, best, rank) or not (chosen or _some_supported(of, kept, mine))
    if reason in EVERYWHERE:
        further = {why for _, why in mine} - {PlanReason.OUT_OF_MEMORY}
        return not (further or chosen)
    if of.lacking[of.stock.candidate[pair]]:
        return not (chosen or _some_supported(of, kept, here))
    return True


def _some_supported(
    of: PlanEvaluation,
    kept: dict[tuple[int, int, int], int],
    rows: list[tuple[tuple[int, int, int], PlanReason]],
) -> bool:
    """Whether one of these rows is of what may be chosen, and comes further than memory and profile."""
    return any(
        reason not in EVERYWHERE and not of.lacking[of.stock.candidate[kept[key]]] for key, reason in rows
    )


def _better(of: PlanEvaluation, pair: int, best: int, rank: Numbers) -> bool:
    """Whether a pair would be worth more than the chosen one, were it supported."""
    if of.request.objective == Objective.COST:
        return bool(of.compared[pair] < of.compared[best])
    return bool(rank[pair] < rank[best])


def row(of: PlanEvaluation, pair: int, best: int | None, does: Predicted | None) -> Rejected:
    """One rejected candidate with its reason; `does` is what its replicas do."""
    place = int(of.stock.candidate[pair])
    draft, accelerator = of.it.draft_of(place), of.it.accelerator_of(place)
    reason, detail = why(of, pair, best)
    return Rejected(
        accelerator=accelerator.name,
        tensor=int(of.it.tensor[place]),
        method=draft.method,
        reason=reason,
        detail=detail,
        engine=of.it.engine_of(place).name,
        capacity_type=of.request.capacity_types[of.stock.capacity_type[pair]],
        nodes=int(of.it.nodes[place]),
        replicas=int(of.verdict.told[pair]),
        predicted=does,
    )
