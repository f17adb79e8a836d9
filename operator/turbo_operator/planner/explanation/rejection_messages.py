"""Why a candidate was not taken, in a sentence that says what would help. Pure."""

from __future__ import annotations

from decimal import Decimal

import numpy as np

from turbo_operator.api import OFF, CapacityType, Objective, PlanReason, Provenance, Provisioning
from turbo_operator.plan import Predicted
from turbo_operator.planner.evaluation import Pair, PlanEvaluation
from turbo_operator.planner.explanation import messages
from turbo_operator.planner.feasibility import CODES, MICRO
from turbo_operator.planner.performance import memory, speculation
from turbo_operator.planner.performance.capacity import unloaded_latency
from turbo_operator.planner.requirements import MAX_REPLICAS

PRICE_FIELDS = {kind: kind[0].lower() + kind[1:] for kind in CapacityType}


def explain(evaluation: PlanEvaluation, index: int, best: int | None) -> tuple[PlanReason, str]:
    """Return the reason why a pair lost to `best`, or failed, and its sentence."""
    reason = CODES[evaluation.verdict.code[index]]
    if reason == PlanReason.FEASIBLE:
        assert best is not None  # what is feasible loses only to another
        return _loser(evaluation, index, best)
    pair = evaluation.pair(index)
    detail = _DETAILS[reason](evaluation, index, pair)
    is_further = reason != PlanReason.NOT_YET_SUPPORTED and evaluation.lacking[pair.place]
    if is_further and (lack := evaluation.lacks[pair.place]):
        detail = f"{detail} Besides, {lack}."
    return reason, detail


def _loser(evaluation: PlanEvaluation, index: int, best: int) -> tuple[PlanReason, str]:
    pair, winner = evaluation.pair(index), evaluation.pair(best)
    name, winner_name = (one.hardware + messages.paid_as(one.capacity_type) for one in (pair, winner))
    objective = evaluation.requirements.objective
    extra = (evaluation.compared_cost[index] - evaluation.compared_cost[best]) / MICRO
    lead, best_lead = evaluation.leading[index], evaluation.leading[best]
    reason = PlanReason.NOT_PREFERRED
    if lead < best_lead or (extra < 0 and not lead > best_lead):
        by = f" by {_dollars(-extra)} $/h" if extra < 0 else ""
        detail = f"{name} would be better{by}, but not by spec.planPolicy.minSavingFraction: what runs stays."
    elif lead > best_lead:
        less = f" for {_dollars(-extra)} $/h less" if extra < 0 else ""
        detail = f"{name} fits{less}, but is not the {messages.BEST[objective]} of what is feasible."
    elif extra > 0:
        count, best_count = (int(evaluation.verdict.compared[one]) for one in (index, best))
        if count == best_count:
            more = f"{_dollars(extra / count)} $/h more per replica"
            detail = f"{name} fits, and costs {more} than {winner_name}"
        else:
            pods = f"{messages.count(count, 'replica')} of {name}"
            detail = (
                f"{pods} would do, and cost {_dollars(extra)} $/h more than {best_count} of {winner_name}"
            )
        if objective == Objective.COST:
            return PlanReason.HIGHER_COST, f"{detail}."
        detail = f"{detail}, and it is no better by spec.planPolicy.objective {objective}."
    elif (pair.accelerator, pair.capacity_type) == (winner.accelerator, winner.capacity_type):
        method = winner.draft.method
        uncounted = "" if method in speculation.PRIORS else ", which depends on the text and is not counted"
        detail = f"{name} fits at the same cost, but gives up what {method} drafts gain{uncounted}."
    else:
        detail = f"{name} fits at the same cost; {winner_name} comes first in the order of choice."
    return reason, detail


def _dollars(amount: float) -> str:
    return messages.money(Decimal(str(round(amount, 6))))


def _out_of_memory(evaluation: PlanEvaluation, _: int, pair: Pair) -> str:
    use, place = evaluation.memory_use, pair.place
    available = use.usable[place] - use.weights[place] - use.drafting[place] - use.activations[place]
    if use.loading[place] > use.usable[place]:
        available = -1.0
    tokens = memory.max_model_len(float(available), float(use.kv_longest[place]), pair.draft.max_draft_tokens)
    tokens = min(tokens, evaluation.requirements.shape.max_position)
    needed, usable = (memory.gib(float(amount[place])) for amount in (use.need, use.usable))
    sentence = f"One replica needs {needed} and {pair.accelerator.name} has {usable} to give"
    if tokens <= 0:
        return f"{sentence}: not even the weights and one short request fit."
    remedy = f"set spec.model.maxModelLen (now {evaluation.requirements.max_model_len})"
    return f"{sentence}; requests of up to {tokens} tokens would fit: {remedy}."


def _no_profile(_: PlanEvaluation, __: int, pair: Pair) -> str:
    links = ", spec.interconnectGBps and spec.networkGBps" if pair.tensor > 1 else ""
    return (
        f"How fast {pair.accelerator.name} is cannot be told: write spec.memoryBandwidthGBps and spec.tflops"
        f"{links} on the TurboAccelerator, or leave workload, latency and throughput targets out."
    )


def _price_unknown(_: PlanEvaluation, __: int, pair: Pair) -> str:
    name, field = pair.accelerator.name, f"spec.pricing.perAcceleratorHour.{PRICE_FIELDS[pair.capacity_type]}"
    if pair.capacity_type == CapacityType.ON_DEMAND:
        return (
            f"The price of {name} is unknown: write {field} on the TurboAccelerator, or allow only this one "
            "and set no budget."
        )
    return f"The {pair.capacity_type} price of {name} is unknown: write {field} on the TurboAccelerator."


def _unreachable(evaluation: PlanEvaluation, index: int, pair: Pair) -> str:
    requirements, rate = evaluation.requirements, evaluation.speeds.requests_per_second[pair.place]
    has_latency = requirements.demand.has_latency
    if has_latency and not rate > 0.0:
        first, token = unloaded_latency(evaluation.engines(np.array([pair.place])), requirements.demand)
        alone = Predicted(float(first[0]), float(token[0]), None, None, None, None, Provenance.ROOFLINE)
        missed = messages.misses(requirements, alone)
        missed_text = messages.join(missed) if missed else "miss the latency targets under any load"
        return f"{pair.hardware} would {missed_text} even with nothing else to do."
    need = float(evaluation.verdict.miss[index]) * requirements.max_replicas
    if np.isinf(need):
        return f"{pair.hardware} reaches the targets with no number of replicas: allow a faster accelerator."
    takes = (
        f"{pair.hardware} takes {messages.rate(float(rate))} requests/s per replica"
        f"{' while the targets hold' if has_latency else ''}: the load needs {need:.0f}"
    )
    limit = messages.count(requirements.max_replicas, "replica")
    if requirements.max_replicas == MAX_REPLICAS:
        return f"{takes}, and a TurboDeployment has {limit} at most: allow a faster accelerator."
    return f"{takes}, and spec.scaling.maxReplicas allows {limit}: allow more, or a faster accelerator."


def _no_capacity(evaluation: PlanEvaluation, index: int, pair: Pair) -> str:
    replicas = int(evaluation.verdict.replicas[index])
    needs = f"{messages.count(replicas, 'replica')} of {pair.hardware}"
    if evaluation.availability.within_total[index] < replicas:
        accelerators = messages.count(replicas * pair.per_replica, "accelerator")
        return (
            f"{needs} {'takes' if replicas == 1 else 'take'} {accelerators}, and spec.accelerators.maxTotal "
            f"is {evaluation.requirements.accelerators.max_total}: raise it, or lower what is asked."
        )
    available = _available(evaluation, pair, int(evaluation.availability.room[index]))
    return f"{needs} {'is' if replicas == 1 else 'are'} needed, and {available}"


def _available(evaluation: PlanEvaluation, pair: Pair, room: int) -> str:
    """What the cluster has of an accelerator, as the end of a sentence, and what to do."""
    accelerator, name = pair.accelerator, pair.accelerator.name
    supply = (evaluation.requirements.inputs.supply or {}).get(name)
    holds = messages.count(room, "such replica")
    if supply is not None and supply.quota is not None and supply.quota // pair.per_replica <= room:
        return (
            f"the namespace's quota leaves {supply.quota} {name}, enough for {holds}: raise the "
            "ResourceQuota, ask for fewer, or allow another class."
        )
    if accelerator.provisioning == Provisioning.FIXED:
        all_nodes = supply.nodes if supply else ()
        nodes = [node for node in all_nodes if pair.capacity_type in node.capacity_types]
        free, on = sum(node.free for node in nodes), messages.count(len(nodes), "node")
        what = f"{name}{messages.paid_as(pair.capacity_type)}"
        rest = f"{free} {what} free on {on}, enough for {holds}" if free else f"no free {what}"
        # Without cores and memory in the count more replicas would fit.
        without_host = (pair.room(supply, evaluation.requirements.now) or 0) if supply else 0
        if free and room < without_host:
            host = evaluation.requirements.host(accelerator)
            assert host is not None  # on cores nothing is counted beside
            pod = f"{host.millicores / 1000:g} cores and {memory.gib(host.memory_bytes)} of memory"
            rest += f", each with {pod} beside"
        if others := {node.name for node in all_nodes} - {node.name for node in nodes}:
            rest += (
                f", and {messages.count(len(others), 'node')} of another capacity type (told by labels: name "
                f"yours in spec.capacityTypes of TurboAccelerator {name})"
            )
        return (
            f"the cluster has {rest}: ask for fewer, allow another class, or write provisioning: Elastic on "
            f"TurboAccelerator {name} where nodes can be added."
        )
    is_exhausted = supply is not None and supply.exhausted_until is not None
    if is_exhausted and room < (accelerator.most or room + 1):
        return (
            f"the cluster holds {holds}: a pod waited for one more {name} longer than "
            "spec.accelerators.pendingTimeout; it is tried again later."
        )
    return (
        f"TurboAccelerator {name} may grow to spec.maxCount of {accelerator.most}, enough for {holds}: raise "
        "it, ask for fewer, or allow another class."
    )


def _over_budget(evaluation: PlanEvaluation, index: int, pair: Pair) -> str:
    budget, replicas = evaluation.requirements.cost, int(evaluation.verdict.replicas[index])
    cost = pair.cost_per_hour(replicas) or Decimal(0)
    pods = messages.count(replicas, "replica")
    sentence = f"{pair.hardware} fits and costs {messages.money(cost)} $/h for {pods}"
    if budget.max_per_hour is not None and cost > budget.max_per_hour:
        return f"{sentence}, above spec.cost.maxPerHour of {messages.money(budget.max_per_hour)}."
    per_million = evaluation.per_million_tokens(evaluation.verdict.replicas)[index]
    limit = messages.money(budget.max_per_million_tokens or Decimal(0))
    return (
        f"{sentence}, {_dollars(float(per_million) / MICRO)} $ per million output tokens, "
        f"above spec.cost.maxPerMillionTokens of {limit}."
    )


def _not_yet(evaluation: PlanEvaluation, index: int, pair: Pair) -> str:
    lack = evaluation.lacks[pair.place]
    if lack is None:
        return evaluation.conflicts[pair.accelerator.name]
    if pair.tensor > 1 and pair.nodes == 1 and lack.startswith("a replica on"):
        candidates, place = evaluation.candidates, pair.place
        # Where one accelerator of the pair's does not hold the model with the same engine and drafts.
        too_small = ~evaluation.memory_use.fits & (candidates.tensor == 1) & (candidates.nodes == 1)
        for column in (candidates.engine, candidates.accelerator, candidates.draft):
            too_small &= column == column[place]
        indices = np.flatnonzero(too_small[evaluation.availability.candidate])
        if len(indices):
            one = _out_of_memory(evaluation, 0, evaluation.pair(indices[0]))
            return f"{one} {pair.tensor} together would, but {lack}."
    replicas, method = int(evaluation.verdict.reported[index]), pair.draft.method
    cost, assumed = pair.cost_per_hour(replicas), ""
    price = "" if cost is None else f" for {messages.money(cost)} $/h"
    how = "" if method == OFF else f" with {method} drafts"
    pods = f"{messages.count(replicas, 'replica')} of {pair.engine.name} on {pair.hardware}"
    if pair.draft.gains:
        prior = speculation.PRIORS[method]
        tokens = f"{prior.acceptance_length} tokens per step of {messages.count(prior.depth, 'draft')}"
        assumed = f" (assumed: {tokens}, the least of {prior.source})"
    return f"{pods}{how} would do{price}{assumed}, but {lack}."


_DETAILS = {
    PlanReason.INSUFFICIENT_MEMORY: _out_of_memory,
    PlanReason.PERFORMANCE_UNKNOWN: _no_profile,
    PlanReason.PRICE_UNKNOWN: _price_unknown,
    PlanReason.TARGET_UNREACHABLE: _unreachable,
    PlanReason.INSUFFICIENT_CAPACITY: _no_capacity,
    PlanReason.BUDGET_EXCEEDED: _over_budget,
    PlanReason.NOT_YET_SUPPORTED: _not_yet,
}
