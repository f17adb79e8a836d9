"""Evaluation of all candidates: memory, speed, replicas, cost, verdict. Pure.

Computes the speed first for what may be chosen, then for what would be better or would do where nothing else
does: the rest cannot appear in a plan.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, replace
from decimal import Decimal

import numpy as np

from turbo_operator.api import CapacityType, EngineName, Objective, PlanReason, TurboDeploymentSpec
from turbo_operator.budget import Footprint
from turbo_operator.plan import Predicted, Rejected, Running
from turbo_operator.planner import feasibility
from turbo_operator.planner.arrays import Indices, Mask, Numbers, take
from turbo_operator.planner.candidates import Candidates, MemoryUse, enumerate_candidates, estimate_memory
from turbo_operator.planner.capabilities import ENGINES, NOW, Engine
from turbo_operator.planner.conflicts import find_resource_conflict
from turbo_operator.planner.explanation import messages
from turbo_operator.planner.feasibility import Availability, Feasibility, Speed, compute_availability
from turbo_operator.planner.performance import candidate_curves, capacity
from turbo_operator.planner.performance.candidate_curves import Calibrations, Rates
from turbo_operator.planner.performance.curves import Engines
from turbo_operator.planner.performance.speculation import SpeculationOption
from turbo_operator.planner.requirements import Requirements
from turbo_operator.snapshot import Accelerator, Supply
from turbo_runtime.contract.model import ModelShape


@dataclass(frozen=True, slots=True)
class Case:
    """What candidates are made and evaluated from, in addition to the requirements."""

    supply: Mapping[str, Supply] | None
    now: float  # seconds since the epoch
    draft: ModelShape | None
    calibrations: Calibrations


@dataclass(frozen=True, slots=True)
class Pair:
    """One candidate with one capacity type, in plain values."""

    place: int  # of the candidate
    engine: Engine
    accelerator: Accelerator
    draft: SpeculationOption
    capacity_type: CapacityType
    tensor: int
    nodes: int
    per_replica: int

    @property
    def hardware(self) -> str:
        """The accelerators of one replica, in words."""
        return messages.hardware(self.accelerator.name, self.tensor, self.nodes)

    @property
    def footprint(self) -> Footprint:
        """What one replica holds, its host apart."""
        return Footprint(self.accelerator, self.capacity_type, self.per_replica, self.nodes)

    def cost_per_hour(self, replicas: int) -> Decimal | None:
        """Return dollars per hour of so many replicas."""
        return self.footprint.cost_per_hour(replicas)

    def is_running(self, running: Running) -> bool:
        """Whether this is what runs now."""
        return running == Running(
            self.engine.name,
            self.accelerator.name,
            self.capacity_type,
            self.tensor,
            self.nodes,
            self.draft.method,
            self.draft.placement,
        )

    def reject(self, reason: PlanReason, detail: str, replicas: int, predicted: Predicted | None) -> Rejected:
        """Return this as a rejected candidate; `predicted` is what its replicas do."""
        return Rejected(
            accelerator=self.accelerator.name,
            tensor=self.tensor,
            method=self.draft.method,
            reason=reason,
            detail=detail,
            engine=self.engine.name,
            capacity_type=self.capacity_type,
            nodes=self.nodes,
            replicas=replicas,
            predicted=predicted,
        )


@dataclass(frozen=True, slots=True)
class PlanEvaluation:
    """Everything known of all candidates."""

    requirements: Requirements
    case: Case
    candidates: Candidates
    memory_use: MemoryUse
    rates: Rates
    profiled: Mask
    lacking: Mask  # what cannot be rendered or run yet
    conflicts: Mapping[str, str]  # by accelerator: what of a template contradicts the plan
    speeds: Speed
    availability: Availability
    verdict: Feasibility
    leading: Numbers  # of pairs: what the objective makes small, money apart
    order: Indices  # of pairs, the best first

    def pair(self, index: int) -> Pair:
        """Return one pair in plain values."""
        candidates, place = self.candidates, int(self.availability.candidate[index])
        return Pair(
            place,
            ENGINES[candidates.engine[place]],
            candidates.accelerators[candidates.accelerator[place]],
            candidates.drafts[candidates.draft[place]],
            self.requirements.capacity_types[self.availability.capacity_type[index]],
            int(candidates.tensor[place]),
            int(candidates.nodes[place]),
            int(candidates.per_replica[place]),
        )

    def engines(self, places: Indices) -> Engines:
        """Build the curves of some candidates."""
        engines, _ = candidate_curves.build_engines(
            take(self.candidates, places),
            take(self.memory_use, places),
            self.rates,
            self.requirements,
            self.case.draft,
            self.case.calibrations,
        )
        return engines

    def performance(self, places: Indices, replicas: Numbers) -> capacity.ReplicaPerformance:
        """Compute what one of so many replicas of some candidates does at its share of the planned load.

        Without a load: what it yields at its capacity, and how long a request alone takes.
        """
        engines, demand = self.engines(places), self.requirements.demand
        speeds = take(self.speeds, places)
        if np.isnan(speeds.tokens_per_second).any():
            speeds = feasibility.compute_speed(engines, self.requirements)
        share = feasibility.load_per_replica(self.requirements, speeds, replicas)
        if demand.concurrency is not None:
            return capacity.closed(engines, demand, np.maximum(share, 1.0))
        loaded = capacity.served(engines, demand, share)
        if not self.requirements.unloaded:
            return loaded
        alone = capacity.closed(engines, demand, np.ones(len(places)))
        return replace(
            loaded,
            time_to_first_token=alone.time_to_first_token,
            time_per_output_token=alone.time_per_output_token,
        )

    @property
    def compared_cost(self) -> Numbers:
        """[p] micro-dollars per hour by which pairs are compared; NaN where the price is unknown."""
        return self.availability.cost(self.verdict.compared)

    @property
    def first_feasible(self) -> int | None:
        """The best pair that may be chosen."""
        feasible = np.flatnonzero(self.verdict.has_reason(PlanReason.FEASIBLE)[self.order])
        return int(self.order[feasible[0]]) if len(feasible) else None

    def lack(self, pair: Pair) -> str | None:
        """Describe what a pair needs and the operator lacks, as the end of a sentence."""
        if pair.engine.name == EngineName.TURBO and (model := NOW.lack_of_model(self.requirements.shape)):
            return model
        draft = pair.draft
        return NOW.lack(pair.engine.name, draft.method, draft.placement, pair.per_replica, pair.nodes)


def evaluate(
    spec: TurboDeploymentSpec,
    requirements: Requirements,
    accelerators: tuple[Accelerator, ...],
    case: Case,
    every: bool = False,
) -> PlanEvaluation:
    """Evaluate all candidates; with `every` the speed of each, however little it matters."""
    candidates = enumerate_candidates(spec, requirements, accelerators, case.supply, case.draft)
    memory_use = estimate_memory(candidates, requirements, case.draft)
    rates = candidate_curves.build_rates(accelerators, requirements)
    conflicts = {
        row.name: message for row in accelerators if (message := find_resource_conflict(requirements, row))
    }
    profiled = candidate_curves.has_known_speed(candidates, rates)
    lacking = _lacking(candidates, requirements.shape, conflicts)
    speeds = Speed.unknown(len(candidates))
    available = compute_availability(candidates, requirements, case.supply, case.now)
    evaluation = PlanEvaluation(
        requirements=requirements,
        case=case,
        candidates=candidates,
        memory_use=memory_use,
        rates=rates,
        profiled=profiled,
        lacking=lacking,
        conflicts=conflicts,
        speeds=speeds,
        availability=available,
        verdict=feasibility.check_feasibility(
            requirements, memory_use.fits, profiled, lacking, speeds, available
        ),
        leading=np.zeros(0),
        order=np.arange(0),
    )
    if requirements.needs_speed or every:
        able = memory_use.fits & profiled
        first = able if every or requirements.objective != Objective.COST else able & ~lacking
        evaluation = _with_speed(evaluation, np.flatnonzero(first))
        evaluation = _with_speed(evaluation, np.flatnonzero(able & ~first & _matters(evaluation)))
    return _sorted(evaluation)


def reevaluate(evaluation: PlanEvaluation, requirements: Requirements, places: Indices) -> PlanEvaluation:
    """Evaluate some of the candidates, all of which fit, for other requirements."""
    candidates, case = take(evaluation.candidates, places), evaluation.case
    selected = replace(
        evaluation,
        requirements=requirements,
        candidates=candidates,
        memory_use=take(evaluation.memory_use, places),
        profiled=evaluation.profiled[places],
        lacking=evaluation.lacking[places],
        speeds=Speed.unknown(len(candidates)),
        availability=compute_availability(candidates, requirements, case.supply, case.now),
    )
    return _sorted(_with_speed(selected, np.flatnonzero(selected.profiled)))


def _with_speed(evaluation: PlanEvaluation, places: Indices) -> PlanEvaluation:
    """Add the speed of those candidates, and check the feasibility of all again."""
    speeds, requirements = evaluation.speeds, evaluation.requirements
    if len(places):
        computed = feasibility.compute_speed(evaluation.engines(places), requirements)
        speeds = copy.deepcopy(speeds)
        for name in Speed.__slots__:
            getattr(speeds, name)[places] = getattr(computed, name)
    verdict = feasibility.check_feasibility(
        requirements,
        evaluation.memory_use.fits,
        evaluation.profiled,
        evaluation.lacking,
        speeds,
        evaluation.availability,
    )
    return replace(evaluation, speeds=speeds, verdict=verdict)


def _matters(evaluation: PlanEvaluation) -> Mask:
    """[c] candidates that might cost less than the best that may be chosen, or be the only ones to do."""
    candidate = evaluation.availability.candidate
    feasible = evaluation.verdict.has_reason(PlanReason.FEASIBLE) & ~evaluation.lacking[candidate]
    if not feasible.any():
        return np.ones(len(evaluation.candidates), bool)
    compared = np.nan_to_num(evaluation.compared_cost, nan=np.inf)
    able = evaluation.candidates.accelerator[evaluation.memory_use.fits & ~evaluation.lacking]
    alone = np.bincount(able, minlength=len(evaluation.candidates.accelerators)) == 0
    is_cheaper = could_cost_less(evaluation, compared[feasible].min())
    return np.asarray(is_cheaper | alone[evaluation.candidates.accelerator])


def could_cost_less(evaluation: PlanEvaluation, cost: float) -> Mask:
    """[c] candidates whose minimum of replicas costs less than this in some capacity type."""
    availability = evaluation.availability
    fewest = np.full(len(availability.candidate), float(evaluation.requirements.min_replicas))
    cheaper = np.zeros(len(evaluation.candidates), bool)
    cheaper[availability.candidate[availability.cost(fewest) < cost]] = True
    return cheaper


def _sorted(evaluation: PlanEvaluation) -> PlanEvaluation:
    """Add the order of the pairs."""
    requirements, verdict, speeds = evaluation.requirements, evaluation.verdict, evaluation.speeds
    candidate = evaluation.availability.candidate
    leading = np.zeros(len(candidate))
    if requirements.objective == Objective.THROUGHPUT:
        count = 1.0 if requirements.external else verdict.replicas
        leading = -feasibility.bucket(count * speeds.tokens_per_second[candidate])
    elif requirements.objective == Objective.LATENCY:
        token = np.full(len(candidate), np.inf)
        able = np.flatnonzero((speeds.tokens_per_second > 0.0)[candidate])
        if len(able):
            performance = evaluation.performance(candidate[able], verdict.compared[able])
            token[able] = performance.time_per_output_token
        leading = feasibility.bucket(token)
    order = feasibility.sort_pairs(
        evaluation.candidates, requirements, evaluation.availability, verdict, leading
    )
    return replace(evaluation, leading=leading, order=order)


def _lacking(candidates: Candidates, shape: ModelShape, conflicts: Mapping[str, str]) -> Mask:
    """[c] what cannot be rendered or run yet, by the capabilities."""
    lacks_model = NOW.lack_of_model(shape) is not None

    def lacks_draft(draft: SpeculationOption) -> bool:
        placement = draft.placement
        return draft.method not in NOW.methods or (placement is not None and placement not in NOW.placements)

    return np.asarray(
        candidates.by_engine(lambda engine: engine.name not in NOW.engines or lacks_model, bool)
        | candidates.by_draft(lacks_draft, bool)
        | candidates.by_accelerator(lambda row: row.name in conflicts, bool)
        | (candidates.per_replica > NOW.accelerators_per_replica)
        | (candidates.nodes > NOW.nodes_per_replica)
    )
