"""The plan: the best of all evaluated candidates, and the others with their reasons. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from turbo_operator.api import OFF, PlanReason, TurboDeploymentSpec
from turbo_operator.plan import EvaluatedCandidate, Plan, Rejected, Running
from turbo_operator.planner import feasibility
from turbo_operator.planner.capabilities import NOW
from turbo_operator.planner.conflicts import find_accelerator_conflict, find_parallelism_conflict
from turbo_operator.planner.evaluation import Case, PlanEvaluation, evaluate
from turbo_operator.planner.explanation import messages
from turbo_operator.planner.explanation.mixture import suggest_mixture
from turbo_operator.planner.explanation.rejections import find_near_miss, find_smallest_miss, list_rejected
from turbo_operator.planner.performance.candidate_curves import Calibrations
from turbo_operator.planner.performance.prediction import predict
from turbo_operator.planner.requirements import Requirements, build_requirements
from turbo_operator.planner.selection import build_choice, count_replicas, select_best, select_partial
from turbo_operator.snapshot import Accelerator, Supply
from turbo_runtime.contract.model import ModelShape

NOTHING_LEFT = (
    "No candidate is left: spec.engine, spec.speculation, spec.parallelism and "
    "spec.accelerators.maxPerReplica leave nothing to choose from; leave one of them out."
)
UNREAD = (
    "No candidate is left: the shape of spec.speculation.draftModel is not known, since only shipped ones "
    "are; name a draft model of hf:// that is, or leave speculation to the planner."
)


def plan(
    spec: TurboDeploymentSpec,
    shape: ModelShape,
    catalog: Mapping[str, Accelerator],
    supply: Mapping[str, Supply] | None = None,
    *,
    now: float = 0.0,
    calibrations: Calibrations | None = None,
    running: Running | None = None,
    draft: ModelShape | None = None,
) -> Plan:
    """Find the best feasible plan, or none with the reason of the nearest.

    `supply` is what the cluster has by accelerator; None bounds nothing. `now` is in seconds since the epoch.
    `calibrations` are the ratios of measured step times to the model's. `running` stays unless another saves
    `planPolicy.minSavingFraction`. `draft` is the shape of `speculation.draftModel`.
    """
    requirements = build_requirements(spec, shape, tuple(sorted(catalog)))
    fixed = requirements.fixed if requirements.external else requirements.min_replicas
    problem = _find_problem(requirements, draft)
    if problem is not None:
        return Plan(None, fixed, *problem)
    accelerators = tuple(catalog[name] for name in requirements.names if name in catalog)
    missing = "There is no TurboAccelerator {}: create it, or correct spec.accelerators.allowed."
    absent = tuple(
        Rejected(name, 1, OFF, PlanReason.ACCELERATOR_NOT_FOUND, missing.format(name))
        for name in requirements.names
        if name not in catalog
    )
    invalid = tuple(
        Rejected(row.name, requirements.tensor or 1, OFF, PlanReason.INVALID_PARALLELISM, detail)
        for row in accelerators
        if (detail := find_accelerator_conflict(requirements, row, (supply or {}).get(row.name))) is not None
    )
    evaluation = evaluate(spec, requirements, accelerators, Case(supply, now, draft, calibrations or {}))
    best = select_best(evaluation, spec.plan_policy.min_saving_fraction, running)
    near_miss = find_near_miss(evaluation, best)
    count = fixed if best is None else count_replicas(evaluation, best)
    evaluated, predicted = list_rejected(evaluation, best, count)
    rejected = (*evaluated, *invalid, *absent)
    if best is None and not rejected:
        is_unread = spec.speculation.draft_model is not None and draft is None
        return Plan(None, fixed, PlanReason.NOT_YET_SUPPORTED, UNREAD if is_unread else NOTHING_LEFT)
    if best is None:
        if near_miss is None and rejected[0].reason == PlanReason.TARGET_UNREACHABLE:
            near_miss = find_smallest_miss(evaluation)
        nearest = near_miss or rejected[0]
        detail = f"No plan is feasible. Nearest: {nearest.detail}"
        if nearest.accelerator not in catalog:
            detail = f"{nearest.detail} There are: {', '.join(sorted(catalog)) or 'none'}."
        plan = Plan(None, fixed, nearest.reason, detail, rejected, nearest)
        return _add_partial(evaluation, running, plan)
    mixture = suggest_mixture(evaluation, best)
    rejected = rejected if mixture is None else (*rejected, mixture)
    choice = build_choice(evaluation, best, count, predicted)
    is_alone = not any(
        row.accelerator != choice.accelerator.name
        and row.reason in (PlanReason.HIGHER_COST, PlanReason.NOT_PREFERRED)
        for row in rejected
    )
    detail = messages.chosen(choice, count, is_alone, requirements)
    detail += messages.short(evaluation.verdict.compared[best], requirements)
    return Plan(choice, count, PlanReason.FEASIBLE, detail, rejected, near_miss)


def frontier(
    spec: TurboDeploymentSpec,
    shape: ModelShape,
    catalog: Mapping[str, Accelerator],
    supply: Mapping[str, Supply] | None = None,
    *,
    now: float = 0.0,
    calibrations: Calibrations | None = None,
    draft: ModelShape | None = None,
) -> tuple[EvaluatedCandidate, ...]:
    """Evaluate every candidate of known speed, the best one first; the arguments are those of `plan`."""
    requirements = build_requirements(spec, shape, tuple(sorted(catalog)))
    if _find_problem(requirements, draft) is not None:
        return ()
    accelerators = tuple(catalog[name] for name in requirements.names if name in catalog)
    case = Case(supply, now, draft, calibrations or {})
    evaluation = evaluate(spec, requirements, accelerators, case, every=True)
    replicas = np.maximum(evaluation.verdict.replicas, 1.0)
    predictions = predict(evaluation, evaluation.order, replicas[evaluation.order])
    candidates = []
    for index, predicted in zip(evaluation.order.tolist(), predictions, strict=True):
        if predicted is None:
            continue
        pair = evaluation.pair(index)
        candidates.append(
            EvaluatedCandidate(
                engine=pair.engine.name,
                accelerator=pair.accelerator.name,
                capacity_type=pair.capacity_type,
                tensor=pair.tensor,
                nodes=pair.nodes,
                method=pair.draft.method,
                replicas=int(replicas[index]),
                predicted=predicted,
                reason=feasibility.CODES[evaluation.verdict.code[index]],
            )
        )
    return tuple(candidates)


def _find_problem(requirements: Requirements, draft: ModelShape | None) -> tuple[PlanReason, str] | None:
    """Find what no candidate can solve."""
    shape, length = requirements.shape, requirements.max_model_len
    limit = NOW.max_length(shape)
    if length > limit:
        return PlanReason.NOT_YET_SUPPORTED, (
            f"spec.model.maxModelLen is {length}, but the model is served for positions up to "
            f"{limit}: write at most that, or leave it out."
        )
    if requirements.overlong is not None:
        raised = "" if length >= limit else f", or raise maxModelLen (up to {limit})"
        return PlanReason.NOT_YET_SUPPORTED, (
            f"{requirements.overlong}, but requests end at spec.model.maxModelLen of {length} tokens, "
            f"prompt and answer together: write means that fit{raised}."
        )
    if draft is not None and draft.vocab_size != shape.vocab_size:
        return PlanReason.NOT_YET_SUPPORTED, (
            f"spec.speculation.draftModel has a vocabulary of {draft.vocab_size} tokens, and the model one "
            f"of {shape.vocab_size}: name a draft model with the model's own, or leave draftModel out."
        )
    if not requirements.names:
        return PlanReason.ACCELERATOR_NOT_FOUND, "There is no TurboAccelerator: create one to choose from."
    conflict = find_parallelism_conflict(requirements)
    return None if conflict is None else (PlanReason.INVALID_PARALLELISM, conflict)


def _add_partial(evaluation: PlanEvaluation, running: Running | None, plan: Plan) -> Plan:
    """Add what runs of an infeasible plan all the same, where it lacks nothing but capacity."""
    partial = select_partial(evaluation, running)
    if partial is None:
        return plan
    index, fitting = partial
    wanted = int(evaluation.verdict.replicas[index])
    (predicted,) = predict(evaluation, np.array([index]), np.array([float(max(fitting, 1))]))
    name = evaluation.pair(index).accelerator.name
    detail = f"{plan.detail} {fitting} of {messages.count(wanted, 'replica')} on {name} can run until then."
    choice = build_choice(evaluation, index, fitting, predicted)
    return replace(plan, replicas=wanted, detail=detail, partial=choice)
