"""The plan: the best of all evaluated candidates, and the others and mixtures with their reasons. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from decimal import Decimal
from typing import NamedTuple

import numpy as np

from turbo_operator.api import OFF, EngineName, Method, Objective, PlanReason, Provenance
from turbo_operator.plan import Capacity, Choice, EvaluatedCandidate, Plan, Predicted
from turbo_operator.planner.arrays import take
from turbo_operator.planner.evaluation import PlanEvaluation, evaluate
from turbo_operator.planner.explanation import messages
from turbo_operator.planner.explanation.rejections import (
    describe_unpriced,
    find_near_miss,
    find_smallest_miss,
    list_rejected,
    reject,
)
from turbo_operator.planner.feasibility import CODES, MICRO, bucket, compute_speed, needed_replicas
from turbo_operator.planner.inputs import PlannerInputs
from turbo_operator.planner.performance import memory
from turbo_operator.planner.performance.queueing import Chain
from turbo_operator.planner.requirements import (
    DRAFT_CORES,
    Requirements,
    build_requirements,
    describe_overlong,
)

MAX_BRANCHES = 4000  # the best mixture by then is a mixture all the same
# Where a load and the lengths of its requests may decide.
RESTS_ON_SPEED = (PlanReason.TARGET_UNREACHABLE, PlanReason.INSUFFICIENT_CAPACITY, PlanReason.BUDGET_EXCEEDED)
VOCABULARY_PADDING = 0.01  # share of it, at most: Qwen2.5 has 151,936 and 152,064 rows for one tokenizer
TOLERANCE = 1e-9  # fraction of the demand that may be missing for the last bits of floats
NOTHING_LEFT = (
    "No candidate is left: spec.engine, spec.speculation, spec.parallelism and "
    "spec.accelerators.maxPerReplica leave nothing to choose from; leave one of them out."
)
UNREAD = (
    "The shape of spec.speculation.draftModel is not known, since only shipped ones are: name a draft model "
    "of hf:// that is, or leave speculation to the planner."
)


def plan(inputs: PlannerInputs, now: float) -> Plan:
    """Find the best feasible plan at `now` (epoch seconds), or none with the reason of the nearest."""
    requirements, catalog = build_requirements(inputs, now), inputs.catalog
    fixed = inputs.spec.replicas if requirements.external else requirements.min_replicas
    problem = _find_problem(requirements)
    if problem is not None:
        return Plan(None, fixed, *problem)
    missing = "There is no TurboAccelerator {}: create it, or correct spec.accelerators.allowed."
    absent = tuple(
        EvaluatedCandidate(name, 1, OFF, reason=PlanReason.ACCELERATOR_NOT_FOUND, detail=missing.format(name))
        for name in requirements.names
        if name not in catalog
    )
    tensor = requirements.parallelism.tensor or 1
    invalid = tuple(
        EvaluatedCandidate(row.name, tensor, OFF, reason=PlanReason.INVALID_PARALLELISM, detail=detail)
        for row in requirements.rows
        if (detail := requirements.find_accelerator_conflict(row)) is not None
    )
    evaluation = evaluate(requirements)
    best = _select_best(evaluation)
    near_miss = find_near_miss(evaluation, best)
    count = fixed if best is None else _count_replicas(evaluation, best)
    evaluated, predicted = list_rejected(evaluation, best, count)
    rejected = (*evaluated, *invalid, *absent)
    if best is None and not rejected:
        return Plan(None, fixed, PlanReason.NOT_YET_SUPPORTED, NOTHING_LEFT)
    if best is None:
        return _add_partial(evaluation, _explain_infeasible(evaluation, near_miss, rejected, fixed))
    mixture = suggest_mixture(evaluation, best)
    rejected = rejected if mixture is None else (*rejected, mixture)
    choice = _build_choice(evaluation, best, count, predicted)
    lost = (PlanReason.HIGHER_COST, PlanReason.NOT_PREFERRED)
    is_alone = {row.accelerator for row in rejected if row.reason in lost} <= {choice.accelerator.name}
    is_cheapest = not any(row.nodes > choice.nodes and row.reason in lost for row in evaluated)
    detail = messages.chosen(choice, count, is_alone, is_cheapest, requirements)
    detail += messages.short(evaluation.verdict.compared[best], requirements)
    return Plan(choice, count, PlanReason.FEASIBLE, detail, rejected, near_miss)


def frontier(inputs: PlannerInputs, now: float) -> tuple[EvaluatedCandidate, ...]:
    """Evaluate every candidate of known speed, the best one first; without sentences."""
    requirements = build_requirements(inputs, now)
    if _find_problem(requirements) is not None:
        return ()
    evaluation = evaluate(requirements, every=True)
    replicas = np.maximum(evaluation.verdict.replicas, 1.0)
    predictions = evaluation.predict(evaluation.order, replicas[evaluation.order])
    codes = evaluation.verdict.code
    return tuple(
        evaluation.offering(index).describe(CODES[codes[index]], "", int(replicas[index]), predicted)
        for index, predicted in zip(evaluation.order.tolist(), predictions, strict=True)
        if predicted is not None
    )


def _find_problem(requirements: Requirements) -> tuple[PlanReason, str] | None:
    """Find what no candidate can solve."""
    inputs, length = requirements.inputs, requirements.max_model_len
    shape, draft = inputs.shape, inputs.draft
    limit = shape.max_position
    if length > limit:
        return PlanReason.NOT_YET_SUPPORTED, (
            f"spec.model.maxModelLen is {length}, but the model is served for positions up to "
            f"{limit}: write at most that, or leave it out."
        )
    if (overlong := describe_overlong(inputs.spec, length)) is not None:
        raised = "" if length >= limit else f", or raise maxModelLen (up to {limit})"
        return PlanReason.NOT_YET_SUPPORTED, (
            f"{overlong}, but requests end at spec.model.maxModelLen of {length} tokens, "
            f"prompt and answer together: write means that fit{raised}."
        )
    # Turbo compares tokenizers: tables of one may be padded to several sizes.
    padding = VOCABULARY_PADDING * shape.vocab_size if inputs.spec.engines == (EngineName.TURBO,) else 0
    if draft is not None and abs(draft.vocab_size - shape.vocab_size) > padding:
        return PlanReason.NOT_YET_SUPPORTED, (
            f"spec.speculation.draftModel has a vocabulary of {draft.vocab_size} tokens, and the model one "
            f"of {shape.vocab_size}: name a draft model with the model's own, or leave draftModel out."
        )
    if inputs.spec.speculation.method == Method.DRAFT_MODEL and draft is None:
        return PlanReason.NOT_YET_SUPPORTED, UNREAD
    if inputs.spec.speculation.method == Method.MTP and not shape.mtp_layers:
        return PlanReason.NOT_YET_SUPPORTED, (
            "spec.speculation.method is MTP, but the model has no layers that predict further tokens "
            "(num_nextn_predict_layers in its config.json is 0 or missing): write another method, or leave "
            "it out."
        )
    if not requirements.names:
        return PlanReason.ACCELERATOR_NOT_FOUND, "There is no TurboAccelerator: create one to choose from."
    conflict = requirements.find_parallelism_conflict()
    return None if conflict is None else (PlanReason.INVALID_PARALLELISM, conflict)


def _explain_infeasible(
    evaluation: PlanEvaluation,
    near_miss: EvaluatedCandidate | None,
    rejected: tuple[EvaluatedCandidate, ...],
    replicas: int,
) -> Plan:
    """Explain by what misses least why no plan is feasible."""
    requirements, catalog = evaluation.requirements, evaluation.requirements.inputs.catalog
    if near_miss is None and rejected[0].reason == PlanReason.TARGET_UNREACHABLE:
        near_miss = find_smallest_miss(evaluation)
    if near_miss is None and (unpriced := describe_unpriced(rejected)) is not None:
        detail = f"No plan is feasible. {unpriced}"
        return Plan(None, replicas, PlanReason.PRICE_UNKNOWN, detail, rejected)
    nearest = near_miss or rejected[0]
    detail = f"No plan is feasible. Nearest: {_with_assumptions(nearest, requirements)}"
    if nearest.accelerator not in catalog:
        detail = f"{nearest.detail} There are: {', '.join(sorted(catalog)) or 'none'}."
    return Plan(None, replicas, nearest.reason, detail, rejected, nearest)


def _with_assumptions(row: EvaluatedCandidate, requirements: Requirements) -> str:
    """Add to a row's sentence what its times and replicas rest on, where these decide."""
    is_by_speed = requirements.needs_speed and row.reason in RESTS_ON_SPEED
    return row.detail + (messages.assumes(row.method, requirements) if is_by_speed else "")


def _add_partial(evaluation: PlanEvaluation, plan: Plan) -> Plan:
    """Add what runs of an infeasible plan all the same, where it lacks nothing but capacity."""
    partial = _select_partial(evaluation)
    if partial is None:
        return plan
    (index, fitting), requirements = partial, evaluation.requirements
    replicas = int(evaluation.verdict.replicas[index])
    counts = np.array([max(fitting, 1), replicas], float)
    predicted, wanted = evaluation.predict(np.array([index, index]), counts)
    name, pods = evaluation.offering(index).accelerator.name, messages.count(replicas, "replica")
    if fitting:
        row = reject(evaluation, index, None, wanted)
        detail = f"Not all of {pods} fit: {_with_assumptions(row, requirements)}"
        plan = replace(plan, reason=row.reason, detail=detail, nearest=row)
    detail = f"{plan.detail} {fitting} of {pods} on {name} can run until then."
    choice = _build_choice(evaluation, index, fitting, predicted)
    return replace(plan, replicas=replicas, detail=detail, partial=choice)


def _select_best(evaluation: PlanEvaluation) -> int | None:
    """Select the offering to run: the first feasible one, unless what runs is nearly as good."""
    best, current = evaluation.first_feasible, _find_running(evaluation)
    if best is None or current is None or not evaluation.verdict.has_reason(PlanReason.FEASIBLE)[current]:
        return best
    share = 1.0 - float(evaluation.requirements.inputs.spec.plan_policy.min_saving_fraction)
    before, after = _measure(evaluation, current), _measure(evaluation, best)
    return current if after > before * share or after == before else best


def _select_partial(evaluation: PlanEvaluation) -> tuple[int, int] | None:
    """Select the offering that lacks only capacity, what runs or else the closest, and how many fit."""
    requirements, availability = evaluation.requirements, evaluation.availability
    replicas = np.maximum(evaluation.verdict.replicas, 1.0)
    fitting = np.minimum(np.minimum(availability.room, availability.within_total), availability.affordable)
    short = evaluation.verdict.has_reason(PlanReason.INSUFFICIENT_CAPACITY)
    short &= ~evaluation.lacking[availability.candidate]
    short &= ~np.isnan(availability.price) | requirements.only_one
    if requirements.cost.max_per_million_tokens is not None:
        limit = float(requirements.cost.max_per_million_tokens * MICRO)
        short &= evaluation.per_million_tokens(replicas) <= limit
    current = _find_running(evaluation)
    if current is not None:
        return (current, int(fitting[current])) if short[current] else None
    share = np.where(short & (fitting >= 1.0), fitting / replicas, 0.0)[evaluation.order]
    if evaluation.requirements.inputs.running is not None or not share.any():
        return None
    index = int(evaluation.order[int(np.argmax(share))])
    return index, int(fitting[index])


def _find_running(evaluation: PlanEvaluation) -> int | None:
    running = evaluation.requirements.inputs.running
    if running is None:
        return None
    order = evaluation.order.tolist()
    return next((index for index in order if evaluation.offering(index).identity == running), None)


def _measure(evaluation: PlanEvaluation, index: int) -> float:
    """Return what the objective makes small."""
    requirements, availability = evaluation.requirements, evaluation.availability
    replicas, place = evaluation.verdict.compared, availability.candidate[index]
    if requirements.objective == Objective.THROUGHPUT:
        count = 1.0 if requirements.external else float(replicas[index])
        return 1.0 / max(1e-12, count * float(evaluation.speeds.tokens_per_second[place]))
    if requirements.objective == Objective.LATENCY:
        performance = evaluation.performance(np.array([place]), replicas[[index]])
        return float(performance.time_per_output_token[0])
    cost = float(availability.cost(replicas)[index])
    return float(availability.paid(replicas)[index]) if np.isnan(cost) else cost


def _count_replicas(evaluation: PlanEvaluation, index: int) -> int:
    """Count the replicas of the offering; for the fastest tokens no more than make them faster."""
    requirements, limit = evaluation.requirements, int(evaluation.verdict.replicas[index])
    if not requirements.expands or requirements.objective != Objective.LATENCY:
        return limit
    place = evaluation.availability.candidate[[index]]
    needed = int(needed_replicas(requirements, evaluation.speeds, place)[0])
    counts = np.arange(needed, limit + 1, dtype=float)
    token = bucket(evaluation.performance(np.repeat(place, len(counts)), counts).time_per_output_token)
    return int(counts[np.flatnonzero(token <= token.min())[0]])


def _build_choice(
    evaluation: PlanEvaluation, index: int, replicas: int, predicted: Predicted | None
) -> Choice:
    """Build a plan's choice of so many replicas; `predicted` is what they do, where it is known."""
    requirements, use, offering = evaluation.requirements, evaluation.memory_use, evaluation.offering(index)
    unknown = Predicted(None, None, None, None, None, None, Provenance.ASSUMED)
    reserve = memory.reserve(offering.accelerator)
    reserve += offering.engine.cores_reserve if memory.on_cpu(offering.accelerator) else 0
    is_scheduled = offering.engine.name == EngineName.VLLM and offering.draft.has_prior
    is_scheduled = is_scheduled and bool(evaluation.profiled[offering.place])
    return Choice(
        engine=offering.engine.name,
        accelerator=offering.accelerator,
        capacity_type=offering.capacity_type,
        tensor=offering.tensor,
        nodes=offering.nodes,
        accelerators_per_replica=offering.per_replica,
        method=offering.draft.method,
        placement=offering.draft.placement,
        max_draft_tokens=offering.draft.max_draft_tokens,
        dtype=requirements.dtype_on(offering.accelerator),
        memory_bytes=int(use.total[offering.place]) + reserve,
        max_model_len=requirements.max_model_len,
        kv_cache_bytes=int(use.pool[offering.place]),
        host_memory_bytes=int(use.host[offering.place])
        + requirements.host_memory_bytes(offering.accelerator, offering.tensor * offering.data),
        capacity=_capacity(evaluation, offering.place),
        predicted=replace(predicted or unknown, cost_per_hour=offering.cost_per_hour(replicas)),
        draft_schedule=evaluation.draft_schedule(offering.place) if is_scheduled else (),
        data=offering.data,
        draft_cores=DRAFT_CORES if use.host[offering.place] else 0,
    )


def _capacity(evaluation: PlanEvaluation, place: int) -> Capacity | None:
    """What one replica does while the targets hold; None without a profile."""
    if not evaluation.profiled[place]:
        return None
    demand, places = evaluation.requirements.demand, np.array([place])
    engines, speed = evaluation.engines(places), take(evaluation.speeds, places)
    if np.isnan(speed.tokens_per_second[0]):
        speed = compute_speed(engines, evaluation.requirements)
    requests, together = speed.requests_per_second, speed.concurrency
    if demand.concurrency is None:
        together = Chain.of(engines, demand).at(requests, demand).together
    running, tokens = max(1, round(float(together[0]))), float(speed.tokens_per_second[0])
    return Capacity(float(requests[0]), running, round(running * demand.mean_context), tokens)


class ReplicaOption(NamedTuple):
    """What one replica of a plan serves and costs."""

    name: str
    serves: float  # of the demand, in its unit
    price: float  # per hour, in any unit of money
    max_replicas: int


def find_cheapest(
    kinds: Sequence[ReplicaOption], demand: float, below: float = math.inf
) -> tuple[int, ...] | None:
    """Find the replicas of each kind, in the order given; None where no mixture costs less than `below`.

        minimize sum of price_i n_i  with  sum of serves_i n_i >= demand,  0 <= n_i <= max_i whole

    Branch and bound over single-accelerator plans, tried in the order of price for what they serve; the
    relaxation that buys fractions of the best remaining kinds bounds what a branch can still reach.
    """
    useful = [place for place, kind in enumerate(kinds) if kind.serves > 0 and kind.max_replicas > 0]
    order = sorted(useful, key=lambda place: (kinds[place].price / kinds[place].serves, place))
    best: tuple[int, ...] | None = None
    cheapest, branches = below, MAX_BRANCHES

    def bound(depth: int, demand: float) -> float:
        """Return the minimum that the rest can cost, were replicas divisible."""
        cost = 0.0
        for place in order[depth:]:
            number = min(kinds[place].max_replicas, demand / kinds[place].serves)
            cost += number * kinds[place].price
            demand -= number * kinds[place].serves
            if demand <= TOLERANCE:
                return cost
        return math.inf

    def branch(depth: int, demand: float, spent: float, taken: tuple[int, ...]) -> None:
        """Try every number of the kind at `depth`, the largest first."""
        nonlocal cheapest, best, branches
        if demand <= TOLERANCE:
            if spent < cheapest:
                cheapest, best = spent, taken
            return
        if depth == len(order) or branches <= 0 or spent + bound(depth, demand) >= cheapest:
            return
        branches -= 1
        kind = kinds[order[depth]]
        enough = min(kind.max_replicas, math.ceil(demand / kind.serves * (1.0 - TOLERANCE)))
        for number in range(enough, -1, -1):
            remaining = demand - number * kind.serves
            remaining = 0.0 if remaining <= TOLERANCE * max(1.0, demand) else remaining
            branch(depth + 1, remaining, spent + number * kind.price, (*taken, number))

    branch(0, demand, 0.0, ())
    if best is None:
        return None
    counts = dict(zip(order, best, strict=False))
    return tuple(counts.get(place, 0) for place in range(len(kinds)))


def suggest_mixture(evaluation: PlanEvaluation, best: int) -> EvaluatedCandidate | None:
    """Report a mixture that would cost less than the chosen offering: no route weights two of them yet."""
    requirements, availability = evaluation.requirements, evaluation.availability
    demand, serves = requirements.demand.rate, evaluation.speeds.requests_per_second
    if requirements.demand.concurrency is not None:
        demand, serves = float(requirements.demand.concurrency), evaluation.speeds.concurrency
    limits = (requirements.accelerators.max_total, requirements.demand.tokens_per_second)
    is_bounded = requirements.external or any(limit is not None for limit in limits)
    is_whole = any(row.price_per_node for row in evaluation.candidates.accelerators)
    if demand is None or is_bounded or is_whole or requirements.objective != Objective.COST:
        return None
    price, rate = availability.cost(np.ones(len(availability.price))), serves[availability.candidate]
    able = (~evaluation.lacking & evaluation.memory_use.fits & evaluation.profiled)[availability.candidate]
    indices = np.flatnonzero(able & (rate > 0.0) & ~np.isnan(price))
    kinds: dict[str, tuple[ReplicaOption, str]] = {}  # with its method
    for index in indices[np.argsort(price[indices] / rate[indices], kind="stable")].tolist():
        offering = evaluation.offering(index)
        limit = int(min(availability.room[index], requirements.max_replicas))
        kind = ReplicaOption(offering.accelerator.name, float(rate[index]), float(price[index]), limit)
        kinds.setdefault(kind.name, (kind, offering.draft.method))
    counts = find_cheapest([kind for kind, _ in kinds.values()], demand, float(evaluation.verdict.cost[best]))
    if counts is None or sum(map(bool, counts)) < 2:
        return None
    if not requirements.min_replicas <= sum(counts) <= requirements.max_replicas:
        return None
    parts = [(number, *kind) for number, kind in zip(counts, kinds.values(), strict=True) if number]
    cost = Decimal(str(round(sum(number * kind.price for number, kind, _ in parts) / MICRO, 6)))
    pods = [f"{messages.count(number, 'replica')} of {kind.name}" for number, kind, _ in parts]
    detail = (
        f"Together {messages.join(pods)} would serve it for {messages.money(cost)} $/h, but "
        "serving one TurboDeployment on more than one class is not supported yet: write one for each."
    )
    _, first, method = parts[0]
    return EvaluatedCandidate(
        first.name, 1, method, reason=PlanReason.NOT_YET_SUPPORTED, detail=detail, replicas=sum(counts)
    )
