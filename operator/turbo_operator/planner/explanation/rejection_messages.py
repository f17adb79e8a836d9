"""Why a candidate was not taken, in a sentence that says what would help. Pure."""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal

import numpy as np

from turbo_operator.api import Method, Objective, PlanReason, Provenance, Provisioning
from turbo_operator.api.constants import OFF
from turbo_operator.plan import Predicted
from turbo_operator.planner.availability import MICRO, footprint
from turbo_operator.planner.candidates import Candidates
from turbo_operator.planner.evaluation import PlanEvaluation, hosts, lack
from turbo_operator.planner.explanation import messages
from turbo_operator.planner.feasibility import CODES, per_million_tokens
from turbo_operator.planner.performance import memory, speculation
from turbo_operator.planner.performance.prediction import alone, cost_per_hour
from turbo_operator.planner.request import MOST_REPLICAS
from turbo_operator.snapshot import Accelerator, Supply


def why(of: PlanEvaluation, pair: int, best: int | None) -> tuple[PlanReason, str]:
    """The reason of a pair that lost to `best`, or failed, and its sentence."""
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
    return messages.hardware(it.accelerator_of(place).name, int(it.tensor[place]), int(it.nodes[place]))


def _paid_as(of: PlanEvaluation, pair: int) -> str:
    """One replica's accelerators, with their capacity type where it is not the usual one."""
    kind = of.request.capacity_types[of.stock.capacity_type[pair]]
    return words(of.it, int(of.stock.candidate[pair])) + messages.paid_as(kind)


def _loser(of: PlanEvaluation, pair: int, best: int) -> tuple[PlanReason, str]:
    it, stock = of.it, of.stock
    place, chosen = int(stock.candidate[pair]), int(stock.candidate[best])
    name, winner = _paid_as(of, pair), _paid_as(of, best)
    one = of.verdict.wanted
    extra = (of.compared[pair] - of.compared[best]) / MICRO
    leads, follows = of.leading[pair] < of.leading[best], of.leading[pair] > of.leading[best]
    if leads or (extra < 0 and not follows):
        by = f" by {_dollars(-extra)} $/h" if extra < 0 else ""
        detail = f"{name} would be better{by}, but not by spec.planPolicy.minSavingFraction: what runs stays."
        return PlanReason.NOT_PREFERRED, detail
    if follows:
        less = f" for {_dollars(-extra)} $/h less" if extra < 0 else ""
        detail = f"{name} fits{less}, but is not the {of.request.best} of what is feasible."
        return PlanReason.NOT_PREFERRED, detail
    if extra > 0:
        mine, least = int(one[pair]), int(one[best])
        if mine == least:
            detail = f"{name} fits, and costs {_dollars(extra / mine)} $/h more per replica than {winner}."
        else:
            detail = (
                f"{messages.count(mine, 'replica')} of {name} would do, and cost {_dollars(extra)} $/h more "
                f"than {least} of {winner}."
            )
        if of.request.objective != Objective.COST:
            detail = f"{detail[:-1]}, and it is no better by spec.cost.objective {of.request.objective}."
            return PlanReason.NOT_PREFERRED, detail
        return PlanReason.DEARER, detail
    if (it.accelerator[place], stock.capacity_type[pair]) == (
        it.accelerator[chosen],
        stock.capacity_type[best],
    ):
        method = it.draft_of(chosen).method
        uncounted = "" if method in speculation.PRIORS else ", which depends on the text and is not counted"
        detail = f"{name} fits at the same cost, but gives up what {method} drafts gain{uncounted}."
    else:
        detail = f"{name} fits at the same cost; {winner} comes first in the order of choice."
    return PlanReason.NOT_PREFERRED, detail


def _dollars(amount: float) -> str:
    return messages.money(Decimal(str(round(amount, 6))))


def _out_of_memory(of: PlanEvaluation, pair: int) -> str:
    place = int(of.stock.candidate[pair])
    held, accelerator = of.room, of.it.accelerator_of(place)
    left = held.usable[place] - held.weights[place] - held.drafting[place] - held.activations[place]
    if held.loading[place] > held.usable[place]:
        left = -1.0
    longest = memory.longest_model_len(
        float(left), float(held.kv_longest[place]), of.it.draft_of(place).max_draft_tokens
    )
    longest = min(longest, of.request.shape.max_position)
    return messages.out_of_memory(
        accelerator, float(held.need[place]), float(held.usable[place]), longest, of.request.max_model_len
    )


def _no_profile(of: PlanEvaluation, pair: int) -> str:
    place = int(of.stock.candidate[pair])
    return messages.no_profile(of.it.accelerator_of(place).name, int(of.it.tensor[place]))


def _price_unknown(of: PlanEvaluation, pair: int) -> str:
    kind = of.request.capacity_types[of.stock.capacity_type[pair]]
    return messages.price_unknown(of.it.accelerator_of(int(of.stock.candidate[pair])).name, kind)


def _unreachable(of: PlanEvaluation, pair: int) -> str:
    place, request = int(of.stock.candidate[pair]), of.request
    name, speeds = words(of.it, place), of.speeds
    if request.targets and not speeds.requests_per_second[place] > 0.0:
        lightest = _lightest(of, place)
        missed = messages.misses(replace(request, max_per_hour=None, max_per_million=None), lightest)
        said = messages.joined(missed) if missed else "miss the latency targets under any load"
        return f"{name} would {said} even with nothing else to do."
    need = float(of.verdict.miss[pair]) * request.most
    if np.isinf(need):
        return f"{name} reaches the targets with no number of replicas: allow a faster accelerator."
    each = messages.rate(float(speeds.requests_per_second[place]))
    held = " while the targets hold" if request.targets else ""
    takes = f"{name} takes {each} requests/s per replica{held}: the load needs {need:.0f}"
    most = messages.count(request.most, "replica")
    if request.most == MOST_REPLICAS:
        return f"{takes}, and a TurboDeployment has {most} at most: allow a faster accelerator."
    return f"{takes}, and spec.scaling.maxReplicas allows {most}: allow more, or a faster accelerator."


def _lightest(of: PlanEvaluation, place: int) -> Predicted:
    """What one request alone sees."""
    engines, _ = of.engines(np.array([place]))
    first, token = alone(engines, of.request.demand)
    return Predicted(float(first[0]), float(token[0]), None, None, None, None, Provenance.ROOFLINE)


def _no_capacity(of: PlanEvaluation, pair: int) -> str:
    place, request = int(of.stock.candidate[pair]), of.request
    accelerator = of.it.accelerator_of(place)
    replicas = int(of.verdict.replicas[pair])
    per_replica = int(of.it.per_replica[place])
    needs = f"{messages.count(replicas, 'replica')} of {words(of.it, place)}"
    if of.stock.within_total[pair] < replicas:
        devices = messages.count(replicas * per_replica, "accelerator")
        return (
            f"{needs} {'takes' if replicas == 1 else 'take'} {devices}, and spec.accelerators.maxTotal is "
            f"{request.max_total}: raise it, or lower what is asked."
        )
    return f"{needs} {'is' if replicas == 1 else 'are'} needed, and {_there(of, pair, accelerator)}"


def _there(of: PlanEvaluation, pair: int, accelerator: Accelerator) -> str:
    supply = (of.case.supply or {}).get(accelerator.name)
    have = int(of.stock.room[pair])
    holds = messages.count(have, "such replica")
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
        kind = of.request.capacity_types[of.stock.capacity_type[pair]]
        all_nodes = supply.nodes if supply else ()
        nodes = [node for node in all_nodes if kind in node.capacity_types]
        free = sum(node.free for node in nodes)
        on = messages.count(len(nodes), "node")
        what = f"{name}{messages.paid_as(kind)}"
        there = f"{free} {what} free on {on}, enough for {holds}" if free else f"no free {what}"
        if free and have < _without_host(of, pair, supply):
            there += f", each with {_beside(of, pair)} beside"
        if others := {node.name for node in all_nodes} - {node.name for node in nodes}:
            there += (
                f", and {messages.count(len(others), 'node')} of another capacity type (told by labels: name "
                f"yours in spec.capacityTypes of TurboAccelerator {name})"
            )
        return (
            f"the cluster has {there}: ask for fewer, allow another class, or write provisioning: Elastic on "
            f"TurboAccelerator {name} where nodes can be added."
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


def _without_host(of: PlanEvaluation, pair: int, supply: Supply | None) -> int:
    """Replicas for which there would be room, were cores and memory no matter."""
    kind = of.request.capacity_types[of.stock.capacity_type[pair]]
    holding = footprint(of.it, int(of.stock.candidate[pair]), kind)
    return (holding.room(supply, of.case.now) or 0) if supply else 0


def _beside(of: PlanEvaluation, pair: int) -> str:
    (host,) = hosts(of.request, [of.it.accelerator_of(int(of.stock.candidate[pair]))])
    assert host is not None  # on cores nothing is counted beside
    return f"{host.millicores / 1000:g} cores and {messages.gib(host.memory_bytes)} of memory"


def _over_budget(of: PlanEvaluation, pair: int) -> str:
    place, request = int(of.stock.candidate[pair]), of.request
    replicas = int(of.verdict.replicas[pair])
    cost = cost_per_hour(of, pair, replicas) or Decimal(0)
    name, pods = words(of.it, place), messages.count(replicas, "replica")
    if request.max_per_hour is not None and cost > request.max_per_hour:
        return (
            f"{name} fits and costs {messages.money(cost)} $/h for {pods}, "
            f"above spec.cost.maxPerHour of {messages.money(request.max_per_hour)}."
        )
    most = request.max_per_million or Decimal(0)
    million = per_million_tokens(request, of.speeds, of.stock.candidate, of.verdict.replicas, of.verdict.cost)
    paid = _dollars(float(million[pair]) / MICRO)
    return (
        f"{name} fits and costs {messages.money(cost)} $/h for {pods}, {paid} $ per million output tokens, "
        f"above spec.cost.maxPerMillionTokens of {messages.money(most)}."
    )


def _not_yet(of: PlanEvaluation, pair: int) -> str:
    place = int(of.stock.candidate[pair])
    accelerator, draft = of.it.accelerator_of(place), of.it.draft_of(place)
    tensor, nodes = int(of.it.tensor[place]), int(of.it.nodes[place])
    what = lack(of, place)
    if what is None:
        return of.contradictions[accelerator.name]
    alone = _alone_too_small(of, place)
    if alone is not None and tensor * nodes > 1 and nodes == 1 and what.startswith("a replica on"):
        return f"{alone} {tensor} together would, but {what}."
    replicas = int(of.verdict.told[pair])
    cost = cost_per_hour(of, pair, replicas)
    price = "" if cost is None else f" for {messages.money(cost)} $/h"
    with_engine = f"{of.it.engine_of(place).name} on {words(of.it, place)}"
    how = "" if draft.method == OFF else f" with {draft.method} drafts"
    pods = messages.count(replicas, "replica")
    return f"{pods} of {with_engine}{how} would do{price}{_assumed(draft)}, but {what}."


def _assumed(draft: speculation.SpeculationOption) -> str:
    prior = speculation.PRIORS.get(Method(draft.method)) if draft.method != OFF else None
    if prior is None:
        return ""
    return (
        f" (assumed: {prior.acceptance_length} tokens per step of "
        f"{messages.count(prior.depth, 'draft')}, the least of {prior.source})"
    )


def _alone_too_small(of: PlanEvaluation, place: int) -> str | None:
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
