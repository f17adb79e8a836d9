"""Evaluation of all candidates: memory, speed, replicas, cost, verdict. Pure.

Computes the speed first for what may be chosen, then for what would be better or would do where nothing else
does: the rest cannot appear in a plan.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from decimal import Decimal
from functools import cached_property

import numpy as np

from turbo_operator.api import Method, Objective, PlanReason, Provenance, ScalingMode
from turbo_operator.plan import Predicted
from turbo_operator.planner import feasibility
from turbo_operator.planner.arrays import Indices, Mask, Numbers, take
from turbo_operator.planner.candidates import Candidates, MemoryUse, enumerate_candidates, estimate_memory
from turbo_operator.planner.capabilities import ENGINES, IDLE_DRAFTS_LACK, SLOW_DRAFT_LACK
from turbo_operator.planner.lacks import list_conflicts, list_lacks
from turbo_operator.planner.offering import Offering
from turbo_operator.planner.performance import candidate_curves, capacity
from turbo_operator.planner.performance.queueing import Engines
from turbo_operator.planner.performance.speculation import ORDER
from turbo_operator.planner.performance.step_time import Machine
from turbo_operator.planner.requirements import Requirements

ENDLESS = 1e4  # seconds: a queue that never ends has no percentile
UNPRICED = 1_000_000 * feasibility.MICRO  # above the price of any accelerator


@dataclass(frozen=True)
class PlanEvaluation:
    """Everything known of all candidates."""

    requirements: Requirements
    candidates: Candidates
    memory_use: MemoryUse
    rates: Machine
    availability: feasibility.Availability
    speeds: feasibility.Speed

    @cached_property
    def profiled(self) -> Mask:
        """[c] whether the speed of the candidate's accelerator is known."""
        return candidate_curves.has_known_speed(self.candidates, self.rates)

    @cached_property
    def lacks(self) -> tuple[str | None, ...]:
        """[c] what cannot be rendered or run yet, as the end of a sentence; None of what can."""
        lacks = list_lacks(self.candidates, self.requirements)
        idle_lack = IDLE_DRAFTS_LACK if self.candidates.data > 1 else SLOW_DRAFT_LACK
        return tuple(
            lack or (idle_lack if is_idle else None)
            for lack, is_idle in zip(lacks, self._idle_drafts.tolist(), strict=True)
        )

    @cached_property
    def conflicts(self) -> tuple[str | None, ...]:
        """[c] what of the template contradicts the candidate."""
        return list_conflicts(self.candidates, self.requirements, self.memory_use.host)

    @cached_property
    def _idle_drafts(self) -> Mask:
        """[c] whether no number of drafts saves time: at all loads of data-parallel groups, which make one
        number, and at any of a draft model whose place is the planner's choice.
        """
        in_groups = self.candidates.data > 1
        is_placed = self.requirements.inputs.spec.speculation.placement != "Auto"
        is_costly = self.candidates.by_draft(
            lambda draft: (
                draft.has_prior and (in_groups or (draft.method == Method.DRAFT_MODEL and not is_placed))
            ),
            bool,
        )
        places = np.flatnonzero(self.memory_use.fits & self.profiled & is_costly)
        is_idle = np.zeros(len(is_costly), bool)
        if len(places):
            is_idle[places] = self._curves(places)[1].max(axis=1) == 0
        return is_idle

    @cached_property
    def lacking(self) -> Mask:
        """[c] what cannot be rendered or run yet, or contradicts the template."""
        lacks = np.array([lack is not None for lack in self.lacks], bool)
        conflicts = np.array([conflict is not None for conflict in self.conflicts], bool)
        return np.asarray(lacks | conflicts)

    @cached_property
    def verdict(self) -> feasibility.Feasibility:
        """The verdict on every offering."""
        requirements, availability = self.requirements, self.availability
        candidate = availability.candidate
        min_replicas, limit = float(requirements.min_replicas), float(requirements.max_replicas)
        need = np.full(len(candidate), min_replicas)
        if requirements.needs_speed:
            need = feasibility.needed_replicas(requirements, self.speeds, candidate)
        needed = np.where(np.isinf(need), min_replicas, need)
        # Too few by somebody else's decision is no reason to serve with none: only what no number mends is.
        short = np.isinf(need) if requirements.external else need > limit
        stated = np.full(len(candidate), float(requirements.inputs.spec.replicas))
        replicas = stated if requirements.external else needed
        bound = np.minimum(availability.room, availability.within_total)
        if requirements.expands:
            replicas = np.maximum(replicas, np.minimum(np.minimum(bound, availability.affordable), limit))
        cost = availability.cost(replicas)
        over, excess = replicas > availability.affordable, np.ones(len(candidate))
        if requirements.cost.max_per_hour is not None:
            excess = cost / float(requirements.cost.max_per_hour * feasibility.MICRO)
        if requirements.cost.max_per_million_tokens is not None:
            max_per_million = float(requirements.cost.max_per_million_tokens * feasibility.MICRO)
            ratio = self.per_million_tokens(replicas) / max_per_million
            over |= ratio > 1.0 + 1e-12
            excess = np.maximum(excess, np.nan_to_num(ratio, nan=0.0))
        one, lacks_price = np.ones(len(candidate)), np.isnan(availability.price) & (not requirements.only_one)
        code, miss = np.zeros(len(candidate), np.int64), one.copy()
        with np.errstate(divide="ignore", invalid="ignore"):
            scarcity = replicas / np.maximum(bound, 0.5)
        for reason, mask, ratio in (
            (PlanReason.NOT_YET_SUPPORTED, self.lacking[candidate], one),
            (PlanReason.BUDGET_EXCEEDED, over, excess),
            (PlanReason.PRICE_UNKNOWN, lacks_price, one),
            (PlanReason.INSUFFICIENT_CAPACITY, replicas > bound, scarcity),
            (PlanReason.TARGET_UNREACHABLE, short, need / limit),
            (PlanReason.PERFORMANCE_UNKNOWN, ~self.profiled[candidate] & requirements.needs_speed, one),
            (PlanReason.INSUFFICIENT_MEMORY, ~self.memory_use.fits[candidate], one),
        ):
            code[mask], miss[mask] = feasibility.CODES.index(reason), ratio[mask]
        # Without a load nothing is known to be needed but the replicas of the spec.
        is_by_load = requirements.external and requirements.demand.has_load
        return feasibility.Feasibility(
            replicas, needed if is_by_load else np.maximum(replicas, 1.0), code, miss, cost
        )

    @cached_property
    def leading(self) -> Numbers:
        """[p] what the objective makes small, money apart."""
        candidate, tokens = self.availability.candidate, self.speeds.tokens_per_second
        if self.requirements.objective == Objective.THROUGHPUT:
            count = 1.0 if self.requirements.external else self.verdict.replicas
            return -feasibility.bucket(count * tokens[candidate])
        if self.requirements.objective == Objective.COST:
            return np.zeros(len(candidate))
        token = np.full(len(candidate), np.inf)
        able = np.flatnonzero((tokens > 0.0)[candidate])
        if len(able):
            performance = self.performance(candidate[able], self.verdict.compared[able])
            token[able] = performance.time_per_output_token
        return feasibility.bucket(token)

    @cached_property
    def order(self) -> Indices:
        """The offerings by `leading`, the smallest first, and of equals the cheapest first.

        Replicas on several nodes come last: they fail with any of their nodes, and no step time of theirs was
        fitted to measurements. A node that is bought whole pays for replicas of several sizes: the one that
        takes the most load comes first where the plan fixes how many there are. Elsewhere the smallest does,
        since more of them fit on the node that is paid for.
        """
        candidates, availability = self.candidates, self.availability
        is_whole = candidates.by_accelerator(lambda row: row.price_per_node, bool)[availability.candidate]
        is_whole &= self.requirements.inputs.spec.scaling_mode == ScalingMode.PLANNED
        # What has no price comes after all that has one, and there the number of accelerators decides.
        price = np.nan_to_num(availability.price, nan=float(UNPRICED))
        paid = availability.paid(self.verdict.compared)
        money = paid * price
        places = {name: place for place, name in enumerate(self.requirements.names)}
        named = candidates.by_accelerator(lambda row: places[row.name])
        method = candidates.by_draft(lambda draft: ORDER.index(draft.method))
        most = np.where(is_whole, -feasibility.bucket(np.nan_to_num(self.compared_tokens)), 0.0)
        keys = (candidates.nodes, candidates.tensor, candidates.engine, method, named)
        nodes, tensor, *others = (key[availability.candidate] for key in keys)
        ties = (nodes, tensor, most, paid, *others)
        is_group = candidates.nodes[availability.candidate] > 1
        return np.asarray(np.lexsort((*ties, availability.capacity_type, money, self.leading, is_group)))

    @property
    def compared_tokens(self) -> Numbers:
        """[p] output tokens per second that the compared replicas can yield; NaN where it is not computed."""
        return self.verdict.compared * self.speeds.tokens_per_second[self.availability.candidate]

    @property
    def compared_cost(self) -> Numbers:
        """[p] micro-dollars per hour by which offerings are compared; NaN where the price is unknown."""
        return self.availability.cost(self.verdict.compared)

    @property
    def first_feasible(self) -> int | None:
        """The best offering that may be chosen."""
        feasible = np.flatnonzero(self.verdict.has_reason(PlanReason.FEASIBLE)[self.order])
        return int(self.order[feasible[0]]) if len(feasible) else None

    def per_million_tokens(self, replicas: Numbers) -> Numbers:
        """[p] micro-dollars of a million output tokens at the planned load; inf where there are none."""
        cost, requirements = self.availability.cost(replicas), self.requirements
        tokens = self.speeds.tokens_per_second[self.availability.candidate]
        per_second = np.maximum(replicas, 1.0) * tokens
        if requirements.rate is not None:
            per_second = np.minimum(per_second, requirements.rate * requirements.demand.output.mean)
        per_hour = per_second * 3600.0
        with np.errstate(divide="ignore", invalid="ignore"):
            free = np.where(cost > 0.0, np.inf, 0.0)
            return np.asarray(np.where(per_hour > 0.0, cost / per_hour * 1e6, free))

    def offering(self, index: int) -> Offering:
        """Return one offering in plain values."""
        candidates, place = self.candidates, int(self.availability.candidate[index])
        types = self.requirements.accelerators.capacity_types
        return Offering(
            candidates.accelerators[candidates.accelerator[place]],
            types[self.availability.capacity_type[index]],
            int(candidates.per_replica[place]),
            int(candidates.nodes[place]),
            place=place,
            engine=ENGINES[candidates.engine[place]],
            draft=candidates.draft_options[candidates.draft[place]],
            tensor=int(candidates.tensor[place]),
            data=candidates.data,
        )

    def engines(self, places: Indices) -> Engines:
        """Build the curves of some candidates."""
        return self._curves(places)[0]

    def _curves(self, places: Indices) -> tuple[Engines, Indices]:
        """Build the curves of some candidates, and their drafts [c, GRID]."""
        candidates, use = take(self.candidates, places), take(self.memory_use, places)
        return candidate_curves.build_engines(candidates, use, self.rates, self.requirements)

    def draft_schedule(self, place: int) -> tuple[tuple[int, int, int], ...]:
        """Return the drafts that are quickest, by requests decoded together: first, last, drafts of each."""
        engines, drafts = self._curves(np.array([place]))
        steps: list[tuple[int, int, int]] = []
        rows = np.ceil(engines.rows[0]).astype(int)
        for last, number in zip(rows.tolist(), drafts[0].tolist(), strict=True):
            first = steps[-1][1] + 1 if steps else 1
            if steps and steps[-1][2] == number:
                steps[-1] = (steps[-1][0], last, number)
            elif last >= first:
                steps.append((first, last, number))
        return tuple(steps)

    def performance(self, places: Indices, replicas: Numbers) -> capacity.ReplicaPerformance:
        """Compute what one of so many replicas does at its share of the load, else at its capacity."""
        engines, demand, rate = self.engines(places), self.requirements.demand, self.requirements.rate
        count = np.maximum(replicas, 1.0)
        if demand.concurrency is not None:
            return capacity.closed(engines, demand, np.maximum(demand.concurrency / count, 1.0))
        # An unknown load is taken to be all that the replica can do.
        max_rate = self.speeds.requests_per_second[places]
        if rate is None and np.isnan(self.speeds.tokens_per_second[places]).any():
            max_rate = feasibility.compute_speed(engines, self.requirements).requests_per_second
        loaded = capacity.served(engines, demand, max_rate + 0.0 * count if rate is None else rate / count)
        if not self.requirements.unloaded:
            return loaded
        alone = capacity.closed(engines, demand, np.ones(len(places)))
        first, token = alone.time_to_first_token, alone.time_per_output_token
        return replace(loaded, time_to_first_token=first, time_per_output_token=token)

    def predict(self, indices: Indices, replicas: Numbers) -> list[Predicted | None]:
        """Predict each offering with so many replicas, or one for none; None where its speed is unknown."""
        places = self.availability.candidate[indices]
        able = self.memory_use.fits[places] & self.profiled[places]
        predictions: list[Predicted | None] = [None] * len(indices)
        if not able.any():
            return predictions
        count = np.maximum(replicas, 1.0)
        performance = self.performance(places[able], count[able])
        times = np.stack((performance.time_to_first_token, performance.time_per_output_token), axis=1)
        needed = feasibility.needed_replicas(self.requirements, self.speeds, places)
        loads = feasibility.filled_replicas(self.requirements, self.speeds, places) / count
        # What misses the targets at any load is shown at its best: one request alone.
        lost = np.isinf(needed[able]) & self.requirements.demand.has_latency
        if lost.any():
            alone = capacity.unloaded_latency(self.engines(places[able][lost]), self.requirements.demand)
            times[lost] = np.stack(alone, axis=1)
        for number, at in enumerate(np.flatnonzero(able)):
            offering, one = self.offering(indices[at]), float(self.speeds.tokens_per_second[places[at]])
            cost = offering.cost_per_hour(int(count[at]))
            tokens = float(performance.tokens_per_second[number]) * float(replicas[at])
            capacity_tokens = tokens if np.isnan(one) else one * float(replicas[at])
            if np.isinf(needed[at]):
                # What misses the targets at any load promises no throughput.
                tokens = min(tokens, capacity_tokens)
            per_million = None
            if cost is not None and tokens > 0.0:
                per_million = (cost / Decimal(tokens * 3600.0) * 1_000_000).quantize(Decimal("0.000001"))
            place = str(offering.engine.name), offering.accelerator.name
            measured = place in self.requirements.inputs.calibrations
            provenance = Provenance.CALIBRATED if measured else Provenance.ROOFLINE
            is_assumed = self.requirements.demand.assumed or offering.draft.is_assumed
            first, token = (seconds if seconds < ENDLESS else None for seconds in times[number].tolist())
            predictions[at] = Predicted(
                time_to_first_token=first,
                time_per_output_token=token,
                tokens_per_second=tokens or None,
                capacity_tokens_per_second=capacity_tokens,
                cost_per_hour=cost,
                cost_per_million_tokens=per_million,
                provenance=Provenance.ASSUMED if is_assumed else provenance,
                load=float(loads[at]) if np.isfinite(loads[at]) else None,
            )
        return predictions

    def with_speed(self, places: Indices) -> PlanEvaluation:
        """Add the speed of those candidates."""
        if not len(places):
            return self
        speeds, computed = (
            copy.deepcopy(self.speeds),
            feasibility.compute_speed(self.engines(places), self.requirements),
        )
        for name in feasibility.Speed.__slots__:
            getattr(speeds, name)[places] = getattr(computed, name)
        return replace(self, speeds=speeds)

    def reevaluate(self, requirements: Requirements, places: Indices) -> PlanEvaluation:
        """Evaluate some of the candidates, all of which fit, for other requirements."""
        candidates, memory_use = take(self.candidates, places), take(self.memory_use, places)
        selected = replace(
            self,
            requirements=requirements,
            candidates=candidates,
            memory_use=memory_use,
            availability=feasibility.compute_availability(candidates, requirements, memory_use.host),
            speeds=feasibility.Speed(*np.full((3, len(places)), np.nan)),
        )
        return selected.with_speed(np.flatnonzero(selected.profiled))

    def could_cost_less(self, cost: float) -> Mask:
        """[c] candidates whose minimum of replicas costs less than this in some capacity type."""
        availability = self.availability
        replicas = np.full(len(availability.candidate), float(self.requirements.min_replicas))
        cheaper = np.zeros(len(self.candidates), bool)
        cheaper[availability.candidate[availability.cost(replicas) < cost]] = True
        return cheaper


def evaluate(requirements: Requirements, every: bool = False) -> PlanEvaluation:
    """Evaluate all candidates; with `every` the speed of each, however little it matters."""
    candidates = enumerate_candidates(requirements)
    evaluation = PlanEvaluation(
        requirements=requirements,
        candidates=candidates,
        memory_use=(memory_use := estimate_memory(candidates, requirements)),
        rates=candidate_curves.build_rates(requirements),
        availability=feasibility.compute_availability(candidates, requirements, memory_use.host),
        speeds=feasibility.Speed(*np.full((3, len(candidates)), np.nan)),
    )
    if not (requirements.needs_speed or every):
        return evaluation
    able = evaluation.memory_use.fits & evaluation.profiled
    first = able if every or requirements.objective != Objective.COST else able & ~evaluation.lacking
    evaluation = evaluation.with_speed(np.flatnonzero(first))
    return evaluation.with_speed(np.flatnonzero(able & ~first & _matters(evaluation)))


def _matters(evaluation: PlanEvaluation) -> Mask:
    """[c] candidates that might cost less than the best that may be chosen, or be the only ones to do."""
    candidates, lacking = evaluation.candidates, evaluation.lacking
    feasible = evaluation.verdict.has_reason(PlanReason.FEASIBLE)
    feasible &= ~lacking[evaluation.availability.candidate]
    if not feasible.any():
        return np.ones(len(candidates), bool)
    compared = np.nan_to_num(evaluation.compared_cost, nan=np.inf)
    able = candidates.accelerator[evaluation.memory_use.fits & ~lacking]
    alone = np.bincount(able, minlength=len(candidates.accelerators)) == 0
    is_cheaper = evaluation.could_cost_less(compared[feasible].min())
    return np.asarray(is_cheaper | alone[candidates.accelerator])
