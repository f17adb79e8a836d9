"""The planner's answer: the best of all candidates weighed, the others with their reasons. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from turbo_operator.api import PlanReason, TurboDeploymentSpec
from turbo_operator.api.constants import OFF
from turbo_operator.plan import EvaluatedCandidate, Plan, Rejected, Running
from turbo_operator.planner import feasibility
from turbo_operator.planner.capabilities import NOW
from turbo_operator.planner.evaluation import Case, PlanEvaluation, evaluate
from turbo_operator.planner.explanation import messages, rejections
from turbo_operator.planner.explanation.mixture_advice import together
from turbo_operator.planner.explanation.near_miss import least_missed, nearest
from turbo_operator.planner.parallelism import contradiction, unfit
from turbo_operator.planner.performance.candidate_curves import Calibrations
from turbo_operator.planner.performance.prediction import predicted
from turbo_operator.planner.request import Requirements, request
from turbo_operator.planner.selection import best_pair, choice_of, fewest_as_fast, partial_pair
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
    catalogue: Mapping[str, Accelerator],
    supply: Mapping[str, Supply] | None = None,
    *,
    now: float = 0.0,
    calibrations: Calibrations | None = None,
    running: Running | None = None,
    draft: ModelShape | None = None,
) -> Plan:
    """The best feasible plan, or none with the reason of the nearest.

    `supply` is what the cluster has by accelerator; None holds nothing against a candidate. `now` is in
    seconds since the epoch. `calibrations` is what measured step times are to the model's, by engine and
    accelerator. `running` stays unless another saves `planPolicy.minSavingFraction`. `draft` is the shape of
    `speculation.draftModel`.
    """
    asked = request(spec, shape, tuple(sorted(catalogue)))
    replicas = asked.fixed if asked.external else asked.fewest
    refusal = _refusal(asked, draft)
    if refusal is not None:
        return Plan(None, replicas, *refusal)
    there = tuple(catalogue[name] for name in asked.names if name in catalogue)
    absent = tuple(_absent(name) for name in asked.names if name not in catalogue)
    invalid = tuple(
        Rejected(each.name, asked.tensor or 1, OFF, PlanReason.INVALID_PARALLELISM, detail)
        for each in there
        if (detail := unfit(asked, each, (supply or {}).get(each.name))) is not None
    )
    case = Case(supply, now, draft, calibrations or {})
    of = evaluate(spec, asked, there, case)
    best = best_pair(of, spec.plan_policy.min_saving_fraction, running)
    near = nearest(of, best)
    count = replicas if best is None else fewest_as_fast(of, best)
    beside, does = rejections.rejected(of, best, count)
    told = (*beside, *invalid, *absent)
    if best is None:
        if near is None and told and told[0].reason == PlanReason.TARGET_UNREACHABLE:
            near = least_missed(of)
        if not told:
            unread = spec.speculation.draft_model is not None and draft is None
            return Plan(None, replicas, PlanReason.NOT_YET_SUPPORTED, UNREAD if unread else NOTHING_LEFT)
        return _partly(of, running, _infeasible(told, near, replicas, catalogue))
    mixed = together(of, best)
    told = told if mixed is None else (*told, mixed)
    choice = choice_of(of, best, count, does)
    alone = not any(
        row.accelerator != choice.accelerator.name
        and row.reason in (PlanReason.DEARER, PlanReason.NOT_PREFERRED)
        for row in told
    )
    detail = messages.chosen(choice, count, alone, asked) + messages.short(of.verdict.wanted[best], asked)
    return Plan(choice, count, PlanReason.FEASIBLE, detail, told, near)


def frontier(
    spec: TurboDeploymentSpec,
    shape: ModelShape,
    catalogue: Mapping[str, Accelerator],
    supply: Mapping[str, Supply] | None = None,
    *,
    now: float = 0.0,
    calibrations: Calibrations | None = None,
    draft: ModelShape | None = None,
) -> tuple[EvaluatedCandidate, ...]:
    """Every candidate that could be predicted, the best one first; the arguments are those of `plan`."""
    asked = request(spec, shape, tuple(sorted(catalogue)))
    if _refusal(asked, draft) is not None:
        return ()
    there = tuple(catalogue[name] for name in asked.names if name in catalogue)
    of = evaluate(spec, asked, there, Case(supply, now, draft, calibrations or {}), every=True)
    replicas = np.maximum(of.verdict.replicas, 1.0)
    pairs = of.order
    found = []
    for pair, does in zip(pairs.tolist(), predicted(of, pairs, replicas[pairs]), strict=True):
        if does is None:
            continue
        place = int(of.stock.candidate[pair])
        found.append(
            EvaluatedCandidate(
                engine=of.it.engine_of(place).name,
                accelerator=of.it.accelerator_of(place).name,
                capacity_type=asked.capacity_types[of.stock.capacity_type[pair]],
                tensor=int(of.it.tensor[place]),
                nodes=int(of.it.nodes[place]),
                method=of.it.draft_of(place).method,
                replicas=int(replicas[pair]),
                predicted=does,
                reason=feasibility.CODES[of.verdict.code[pair]],
            )
        )
    return tuple(found)


def _refusal(asked: Requirements, draft: ModelShape | None) -> tuple[PlanReason, str] | None:
    """What no candidate can mend."""
    shape = asked.shape
    longest = NOW.longest(shape)
    if asked.max_model_len > longest:
        return PlanReason.NOT_YET_SUPPORTED, (
            f"spec.model.maxModelLen is {asked.max_model_len}, but the model is served for positions up to "
            f"{longest}: write at most that, or leave it out."
        )
    if asked.overlong is not None:
        raised = "" if asked.max_model_len >= longest else f", or raise maxModelLen (up to {longest})"
        return PlanReason.NOT_YET_SUPPORTED, (
            f"{asked.overlong}, but requests end at spec.model.maxModelLen of {asked.max_model_len} tokens, "
            f"prompt and answer together: write means that fit{raised}."
        )
    if draft is not None and draft.vocab_size != shape.vocab_size:
        return PlanReason.NOT_YET_SUPPORTED, (
            f"spec.speculation.draftModel has a vocabulary of {draft.vocab_size} tokens, and the model one "
            f"of {shape.vocab_size}: name a draft model with the model's own, or leave draftModel out."
        )
    if not asked.names:
        return PlanReason.NO_PROFILE, "There is no TurboAccelerator: create one to choose from."
    said = contradiction(asked)
    return None if said is None else (PlanReason.INVALID_PARALLELISM, said)


def _partly(of: PlanEvaluation, running: Running | None, plan: Plan) -> Plan:
    """The plan with what runs of it all the same, where it lacks nothing but room."""
    pair = partial_pair(of, running)
    if pair is None:
        return plan
    place, fitting = pair
    wanted = int(of.verdict.replicas[place])
    (does,) = predicted(of, np.array([place]), np.array([float(max(fitting, 1))]))
    name = of.it.accelerator_of(int(of.stock.candidate[place])).name
    detail = f"{plan.detail} {fitting} of {messages.count(wanted, 'replica')} on {name} can run until then."
    partial = choice_of(of, place, fitting, does)
    return replace(plan, replicas=wanted, detail=detail, partial=partial)


def _absent(name: str) -> Rejected:
    detail = f"There is no TurboAccelerator {name}: create it, or correct spec.accelerators.allowed."
    return Rejected(name, 1, OFF, PlanReason.NO_PROFILE, detail)


def _infeasible(
    told: tuple[Rejected, ...],
    near: Rejected | None,
    replicas: int,
    catalogue: Mapping[str, Accelerator],
) -> Plan:
    first = near or told[0]
    if first.accelerator not in catalogue:
        there = ", ".join(sorted(catalogue)) or "none"
        detail = f"{first.detail} There are: {there}."
    else:
        detail = f"No plan is feasible. Nearest: {first.detail}"
    return Plan(None, replicas, first.reason, detail, told, first)
