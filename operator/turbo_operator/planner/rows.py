"""Rejected candidates worth telling, each with a reason and a sentence. Pure.

One row for each accelerator, capacity type and reason: a second candidate that fails alike says nothing new.
What is not supported yet is told where it would do better than the plan, or would do where nothing else does.
"""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal

import numpy as np
from numpy.typing import NDArray

from turbo_operator.api import Method, Objective, PlanReason, Provenance, Provisioning
from turbo_operator.observed import Accelerator
from turbo_operator.planned import Predicted, Rejected
from turbo_operator.planner import explain, memory, speculation
from turbo_operator.planner.candidates import Candidates
from turbo_operator.planner.engines import OFF
from turbo_operator.planner.judge import CODES, per_million_tokens
from turbo_operator.planner.performance import is_calibrated
from turbo_operator.planner.stock import MICRO, footprint
from turbo_operator.planner.weigh import Weighing, lack

Numbers = NDArray[np.float64]

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


def predicted(of: Weighing, pairs: NDArray[np.int64], replicas: Numbers) -> list[Predicted | None]:
    """What each pair does with so many replicas at the planned load; None where it cannot be told."""
    places = of.stock.candidate[pairs]
    able = of.room.fits[places] & of.profiled[places]
    found: list[Predicted | None] = [None] * len(pairs)
    if not able.any():
        return found
    served = of.served(places[able], replicas[able])
    calibrated = of.case.calibrated
    measured = is_calibrated(of.it, calibrated) if calibrated else np.zeros(len(of.it), bool)
    for number, at in enumerate(np.flatnonzero(able)):
        place = int(places[at])
        cost = cost_per_hour(of, int(pairs[at]), int(replicas[at]))
        tokens = float(served.tokens_per_second[number]) * float(replicas[at])
        most = _capacity(of, place, float(replicas[at]), tokens)
        found[at] = Predicted(
            time_to_first_token=_finite(served.time_to_first_token[number]),
            time_per_output_token=_finite(served.time_per_output_token[number]),
            tokens_per_second=tokens,
            capacity_tokens_per_second=most,
            cost_per_hour=cost,
            cost_per_million_tokens=_per_million(cost, tokens),
            provenance=_provenance(of, place, bool(measured[place])),
        )
    return found


def cost_per_hour(of: Weighing, pair: int, replicas: int) -> Decimal | None:
    """Dollars per hour of so many replicas of a pair."""
    kind = of.request.capacity_types[of.stock.capacity_type[pair]]
    return footprint(of.it, int(of.stock.candidate[pair]), kind).cost_per_hour(replicas)


def _capacity(of: Weighing, place: int, replicas: float, tokens: float) -> float:
    each = of.speeds.tokens_per_second[place]
    return tokens if np.isnan(each) else float(each) * replicas


def _finite(seconds: float) -> float | None:
    """A queue that never ends has no percentile."""
    return float(seconds) if seconds < 1e4 else None


def _per_million(cost: Decimal | None, tokens: float) -> Decimal | None:
    if cost is None or tokens <= 0.0:
        return None
    return (cost / Decimal(tokens * 3600.0) * 1_000_000).quantize(Decimal("0.000001"))


def _provenance(of: Weighing, place: int, measured: bool) -> Provenance:
    if of.request.demand.assumed or of.it.draft_of(place).gains:
        return Provenance.ASSUMED
    return Provenance.CALIBRATED if measured else Provenance.ROOFLINE


def rejected(of: Weighing, best: int | None) -> tuple[Rejected, ...]:
    """The rows beside the pair `best`, or of no plan at all; the first ones are worth reading."""
    pairs = _worth_telling(of, best)
    replicas = of.verdict.replicas[pairs]
    told = zip(pairs, predicted(of, pairs, np.maximum(replicas, 1.0)), strict=True)
    rows = [_row(of, int(pair), best, does) for pair, does in told]
    rank = {pair: place for place, pair in enumerate(of.order)}
    places = [
        (NEAREST.index(PlanReason(row.reason)), rank[pair]) for row, pair in zip(rows, pairs, strict=True)
    ]
    return tuple(row for _, row in sorted(zip(places, rows, strict=True), key=lambda each: each[0]))


def _worth_telling(of: Weighing, best: int | None) -> NDArray[np.int64]:
    it, stock, verdict = of.it, of.stock, of.verdict
    lacking = of.lacking[stock.candidate]
    # Of those that fail alike the one that misses least, what may be chosen before what may not, is told.
    rank = np.empty(len(of.order))
    rank[of.order] = np.arange(len(of.order))
    unsupported = verdict.is_(PlanReason.NOT_YET_SUPPORTED)
    with np.errstate(invalid="ignore"):
        near = np.floor(np.log(np.maximum(verdict.miss, 1.0)) / 0.05)
    sequence = np.lexsort((rank, near, lacking & ~unsupported))
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
    of: Weighing,
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
    of: Weighing,
    kept: dict[tuple[int, int, int], int],
    rows: list[tuple[tuple[int, int, int], PlanReason]],
) -> bool:
    """Whether one of these rows is of what may be chosen, and comes further than memory and profile."""
    return any(
        reason not in EVERYWHERE and not of.lacking[of.stock.candidate[kept[key]]] for key, reason in rows
    )


def _better(of: Weighing, pair: int, best: int, rank: Numbers) -> bool:
    """Whether a pair would be worth more than the chosen one, were it supported."""
    if of.request.objective == Objective.COST:
        return bool(of.verdict.cost[pair] < of.verdict.cost[best])
    return bool(rank[pair] < rank[best])


def _row(of: Weighing, pair: int, best: int | None, does: Predicted | None) -> Rejected:
    place = int(of.stock.candidate[pair])
    draft, accelerator = of.it.draft_of(place), of.it.accelerator_of(place)
    reason, detail = _why(of, pair, best)
    return Rejected(
        accelerator=accelerator.name,
        tensor=int(of.it.tensor[place]),
        method=draft.method,
        reason=reason,
        detail=detail,
        engine=of.it.engine_of(place).name,
        capacity_type=of.request.capacity_types[of.stock.capacity_type[pair]],
        replicas=int(of.verdict.replicas[pair]),
        predicted=does,
    )


def _why(of: Weighing, pair: int, best: int | None) -> tuple[PlanReason, str]:
    place = int(of.stock.candidate[pair])
    reason = CODES[of.verdict.code[pair]]
    if reason == PlanReason.FEASIBLE:
        assert best is not None  # what is feasible loses only to another
        return _loser(of, pair, best)
    detail = _DETAILS[reason](of, pair)
    if reason != PlanReason.NOT_YET_SUPPORTED and of.lacking[place] and (what := lack(of, place)):
        detail = f"{detail} Besides, {what}."
    return reason, detail


def words(it: Candidates, place: int) -> str:
    """One replica's accelerators."""
    return explain.hardware(it.accelerator_of(place).name, int(it.tensor[place]), int(it.nodes[place]))


def _loser(of: Weighing, pair: int, best: int) -> tuple[PlanReason, str]:
    it, stock, verdict = of.it, of.stock, of.verdict
    place, chosen = int(stock.candidate[pair]), int(stock.candidate[best])
    name, winner = words(it, place), words(it, chosen)
    one = np.maximum(verdict.replicas, 1.0)
    extra = (stock.cost(one)[pair] - stock.cost(one)[best]) / MICRO
    if extra > 0:
        mine, least = int(one[pair]), int(one[best])
        if mine == least:
            detail = f"{name} fits, and costs {_dollars(extra / mine)} $/h more per replica than {winner}."
        else:
            detail = (
                f"{explain.count(mine, 'replica')} of {name} would do, and cost {_dollars(extra)} $/h more "
                f"than {least} of {winner}."
            )
        return PlanReason.DEARER, detail
    if of.request.objective != Objective.COST and extra < 0:
        detail = f"{name} fits for {_dollars(-extra)} $/h less, but is not the {of.request.best}."
    elif (it.accelerator[place], stock.capacity_type[pair]) == (
        it.accelerator[chosen],
        stock.capacity_type[best],
    ):
        detail = f"{name} fits at the same cost, but gives up what {it.draft_of(chosen).method} drafts gain."
    else:
        detail = f"{name} fits at the same cost; {winner} comes first in the order of choice."
    return PlanReason.NOT_PREFERRED, detail


def _dollars(amount: float) -> str:
    return explain.money(Decimal(str(round(amount, 6))))


def _out_of_memory(of: Weighing, pair: int) -> str:
    place = int(of.stock.candidate[pair])
    held, accelerator = of.room, of.it.accelerator_of(place)
    left = held.usable[place] - held.weights[place] - held.drafting[place] - held.logits[place]
    if held.loading[place] > held.usable[place]:
        left = -1.0
    longest = memory.longest_model_len(
        float(left), float(held.kv_longest[place]), of.it.draft_of(place).max_draft_tokens
    )
    longest = min(longest, of.request.shape.max_position)
    return explain.out_of_memory(
        accelerator, float(held.need[place]), float(held.usable[place]), longest, of.request.max_model_len
    )


def _no_profile(of: Weighing, pair: int) -> str:
    place = int(of.stock.candidate[pair])
    return explain.no_profile(of.it.accelerator_of(place).name, int(of.it.tensor[place]))


def _price_unknown(of: Weighing, pair: int) -> str:
    kind = of.request.capacity_types[of.stock.capacity_type[pair]]
    return explain.price_unknown(of.it.accelerator_of(int(of.stock.candidate[pair])).name, kind)


def _unreachable(of: Weighing, pair: int) -> str:
    place, request = int(of.stock.candidate[pair]), of.request
    name, speeds = words(of.it, place), of.speeds
    if request.targets and not speeds.requests_per_second[place] > 0.0:
        lightest = _lightest(of, place)
        missed = explain.misses(replace(request, max_per_hour=None, max_per_million=None), lightest)
        said = explain.joined(missed) if missed else "miss the latency targets under any load"
        return f"{name} would {said} even with nothing else to do."
    asked = request.fixed if request.external else request.most
    each = explain.rate(float(speeds.requests_per_second[place]))
    held = explain.count(asked, "replica")
    field = "spec.replicas" if request.external else "spec.scaling.maxReplicas"
    need = float(of.verdict.miss[pair]) * max(asked, 0.5)
    return (
        f"{name} takes {each} requests/s per replica while the targets hold: the load needs "
        f"{need:.0f}, and {field} allows {held}: allow more, or a faster accelerator."
    )


def _lightest(of: Weighing, place: int) -> Predicted:
    """What one request alone sees."""
    engines, _ = of.engines(np.array([place]))
    alone = engines.decode[0, 0]
    first = engines.first[0] + alone + engines.prefill[0] * of.request.demand.prompt.p95
    return Predicted(float(first), float(alone), None, None, None, None, Provenance.ROOFLINE)


def _no_capacity(of: Weighing, pair: int) -> str:
    place, request = int(of.stock.candidate[pair]), of.request
    accelerator = of.it.accelerator_of(place)
    replicas = int(of.verdict.replicas[pair])
    per_replica = int(of.it.per_replica[place])
    needs = f"{explain.count(replicas, 'replica')} of {words(of.it, place)}"
    if of.stock.within_total[pair] < replicas:
        return (
            f"{needs} take {replicas * per_replica} accelerators, and spec.accelerators.maxTotal is "
            f"{request.max_total}: raise it, or lower what is asked."
        )
    return f"{needs} are needed, and {_there(of, pair, accelerator)}"


def _there(of: Weighing, pair: int, accelerator: Accelerator) -> str:
    supply = (of.case.supply or {}).get(accelerator.name)
    have = int(of.stock.room[pair])
    holds = explain.count(have, "such replica")
    name = accelerator.name
    if supply is not None and supply.quota is not None:
        place = int(of.stock.candidate[pair])
        if supply.quota // int(of.it.per_replica[place]) <= have:
            return (
                f"the namespace's quota leaves {supply.quota} {name}, enough for {holds}: raise the "
                "ResourceQuota, ask for fewer, or allow another class."
            )
    waited = supply is not None and supply.exhausted_until is not None
    if accelerator.provisioning == Provisioning.FIXED:
        nodes = len(supply.nodes) if supply else 0
        free = sum(node.free for node in supply.nodes) if supply else 0
        return (
            f"the cluster has {free} {name} free on {explain.count(nodes, 'node')}, enough for {holds}: ask "
            f"for fewer, allow another class, or write provisioning: Elastic on TurboAccelerator {name} "
            "where nodes can be added."
        )
    if waited and have < (accelerator.most or have + 1):
        return (
            f"the cluster holds {holds}: a pod waited for one more {name} longer than "
            "spec.accelerators.pendingTimeout; it is tried again later."
        )
    return (
        f"TurboAccelerator {name} may grow to spec.max of {accelerator.most}, enough for {holds}: raise it, "
        "ask for fewer, or allow another class."
    )


def _over_budget(of: Weighing, pair: int) -> str:
    place, request = int(of.stock.candidate[pair]), of.request
    replicas = int(of.verdict.replicas[pair])
    cost = cost_per_hour(of, pair, replicas) or Decimal(0)
    name, pods = words(of.it, place), explain.count(replicas, "replica")
    if request.max_per_hour is not None and cost > request.max_per_hour:
        return (
            f"{name} fits and costs {explain.money(cost)} $/h for {pods}, "
            f"above spec.cost.maxPerHour of {explain.money(request.max_per_hour)}."
        )
    most = request.max_per_million or Decimal(0)
    million = per_million_tokens(request, of.speeds, of.stock.candidate, of.verdict.replicas, of.verdict.cost)
    paid = _dollars(float(million[pair]) / MICRO)
    return (
        f"{name} fits and costs {explain.money(cost)} $/h for {pods}, {paid} $ per million output tokens, "
        f"above spec.cost.maxPerMillionTokens of {explain.money(most)}."
    )


def _not_yet(of: Weighing, pair: int) -> str:
    place = int(of.stock.candidate[pair])
    accelerator, draft = of.it.accelerator_of(place), of.it.draft_of(place)
    tensor, nodes = int(of.it.tensor[place]), int(of.it.nodes[place])
    what = lack(of, place)
    if what is None:
        return of.contradictions[accelerator.name]
    alone = _alone_too_small(of, place)
    if alone is not None and tensor * nodes > 1 and nodes == 1 and what.startswith("a replica on"):
        return f"{alone} {tensor} together would, but {what}."
    replicas = int(of.verdict.replicas[pair])
    cost = cost_per_hour(of, pair, replicas)
    price = "" if cost is None else f" for {explain.money(cost)} $/h"
    with_engine = f"{of.it.engine_of(place).name} on {words(of.it, place)}"
    how = "" if draft.method == OFF else f" with {draft.method} drafts"
    pods = explain.count(replicas, "replica")
    return f"{pods} of {with_engine}{how} would do{price}{_assumed(draft)}, but {what}."


def _assumed(draft: speculation.Draft) -> str:
    prior = speculation.PRIORS.get(Method(draft.method)) if draft.method != OFF else None
    if prior is None:
        return ""
    return (
        f" (assumed: {prior.acceptance_length} tokens per step of {prior.depth} drafts, the least of "
        f"{prior.source})"
    )


def _alone_too_small(of: Weighing, place: int) -> str | None:
    """Why one accelerator of a candidate's does not hold the model with the same engine and drafts."""
    it = of.it
    same = (
        (it.engine == it.engine[place])
        & (it.accelerator == it.accelerator[place])
        & (it.draft == it.draft[place])
        & (it.tensor == 1)
        & (it.nodes == 1)
        & ~of.room.fits
    )
    found = np.flatnonzero(same)
    if not len(found):
        return None
    pair = int(np.flatnonzero(of.stock.candidate == found[0])[0])
    return _out_of_memory(of, pair)


_DETAILS = {
    PlanReason.OUT_OF_MEMORY: _out_of_memory,
    PlanReason.NO_PROFILE: _no_profile,
    PlanReason.PRICE_UNKNOWN: _price_unknown,
    PlanReason.TARGET_UNREACHABLE: _unreachable,
    PlanReason.NO_CAPACITY: _no_capacity,
    PlanReason.OVER_BUDGET: _over_budget,
    PlanReason.NOT_YET_SUPPORTED: _not_yet,
}
