"""All candidates weighed: memory, speed, replicas, cost, verdict. Pure.

Speed is worked out first for what may be chosen, then for what would be better or would do where nothing
else does: the rest cannot show up in an answer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from turbo_operator.api import EngineName, Objective, PlanReason, TurboDeploymentSpec
from turbo_operator.budget import beside
from turbo_operator.planner import capabilities, feasibility, overlay
from turbo_operator.planner.availability import Availability, stock
from turbo_operator.planner.candidates import Candidates, Indices, Room, candidates, chosen_from, room
from turbo_operator.planner.engines import ENGINES
from turbo_operator.planner.feasibility import Feasibility, Speed
from turbo_operator.planner.performance import candidate_curves, capacity, memory
from turbo_operator.planner.performance.candidate_curves import Calibrations, Rates
from turbo_operator.planner.request import Requirements, computed_in, element_bytes
from turbo_operator.snapshot import Accelerator, Host, Supply
from turbo_runtime.contract.model import ModelShape

Mask = NDArray[np.bool_]
Numbers = NDArray[np.float64]

HOST_RESERVE = (
    4 * memory.GIB
)  # beside the weights on their way to a device: interpreter, tokenizer, page cache


@dataclass(frozen=True, slots=True)
class Case:
    """What candidates are made and judged from, beside the request."""

    supply: Mapping[str, Supply] | None
    now: float  # seconds since the epoch
    draft: ModelShape | None
    calibrations: Calibrations


@dataclass(frozen=True, slots=True)
class PlanEvaluation:
    """Everything known of all candidates."""

    request: Requirements
    case: Case
    it: Candidates
    room: Room
    rates: Rates
    profiled: Mask
    lacking: Mask
    contradictions: Mapping[str, str]  # by accelerator: what a template says against the plan
    speeds: Speed
    stock: Availability
    verdict: Feasibility
    leading: Numbers  # of pairs: what the objective makes small, money apart
    order: Indices  # of pairs, the best first

    def engines(self, places: Indices) -> tuple[capacity.Engines, Indices]:
        """The curves of some candidates, and the drafts per request on them."""
        return candidate_curves.engines(
            chosen_from(self.it, places),
            _some(self.room, places),
            self.rates,
            self.request,
            self.case.draft,
            self.case.calibrations,
        )

    def served(self, places: Indices, replicas: Numbers) -> capacity.ReplicaPerformance:
        """What one of so many replicas of some candidates does at its share of the planned load; without
        one, what it yields at its capacity and how long a request alone takes.
        """
        engines, _ = self.engines(places)
        speeds = _some_speed(self.speeds, places)
        if np.isnan(speeds.tokens_per_second).any():
            speeds = feasibility.speed(engines, self.request)
        share = feasibility.load(self.request, speeds, replicas)
        if self.request.demand.concurrency is not None:
            return capacity.closed(engines, self.request.demand, np.maximum(share, 1.0))
        found = capacity.served(engines, self.request.demand, share)
        if not self.request.unloaded:
            return found
        alone = capacity.closed(engines, self.request.demand, np.ones(len(places)))
        return replace(
            found,
            time_to_first_token=alone.time_to_first_token,
            time_per_output_token=alone.time_per_output_token,
        )

    @property
    def compared(self) -> Numbers:
        """[p] micro-dollars per hour by which pairs are compared; NaN where the price is unknown."""
        return self.stock.cost(self.verdict.wanted)

    def first_feasible(self) -> int | None:
        """The best pair that may be chosen."""
        feasible = np.flatnonzero(self.verdict.is_(PlanReason.FEASIBLE)[self.order])
        return int(self.order[feasible[0]]) if len(feasible) else None

    def speed_of(self, place: int) -> tuple[Speed, capacity.Engines]:
        """What one replica of a candidate takes, and its curves."""
        at = np.array([place])
        engines, _ = self.engines(at)
        known = _some_speed(self.speeds, at)
        return (
            feasibility.speed(engines, self.request) if np.isnan(known.tokens_per_second[0]) else known
        ), engines


def evaluate(
    spec: TurboDeploymentSpec,
    request: Requirements,
    accelerators: tuple[Accelerator, ...],
    case: Case,
    every: bool = False,
) -> PlanEvaluation:
    """All candidates; with `every` the speed of each, however little it matters."""
    it = candidates(spec, request, accelerators, case.supply, case.draft)
    held = room(it, request, case.draft)
    element = np.array(
        [
            float(element_bytes(computed_in(request.dtype, request.shape, memory.on_cpu(each))))
            for each in accelerators
        ]
    )
    of = candidate_curves.rates(accelerators, request, element)
    said = _contradictions(request, accelerators, element)
    profiled = candidate_curves.known(it, of)
    lacking = _lacking(it, request.shape, said)
    terms = stock(it, request, case.supply, case.now, hosts(request, accelerators))
    made = PlanEvaluation(
        request=request,
        case=case,
        it=it,
        room=held,
        rates=of,
        profiled=profiled,
        lacking=lacking,
        contradictions=said,
        speeds=Speed.unknown(len(it)),
        stock=terms,
        verdict=_judged(request, held, profiled, lacking, Speed.unknown(len(it)), terms),
        leading=np.zeros(0),
        order=np.arange(0),
    )
    if request.needs_speed or every:
        able = held.fits & profiled
        first = able if every or request.objective != Objective.COST else able & ~lacking
        made = _with_speed(made, np.flatnonzero(first))
        made = _with_speed(made, np.flatnonzero(able & ~first & _matters(made)))
    return _ordered(made)


def reconsidered(of: PlanEvaluation, request: Requirements, places: Indices) -> PlanEvaluation:
    """Some of the candidates, all of which fit, under another request."""
    it = chosen_from(of.it, places)
    made = replace(
        of,
        request=request,
        it=it,
        room=_some(of.room, places),
        profiled=of.profiled[places],
        lacking=of.lacking[places],
        speeds=Speed.unknown(len(it)),
        stock=stock(it, request, of.case.supply, of.case.now, hosts(request, it.accelerators)),
    )
    made = _with_speed(made, np.flatnonzero(made.profiled))
    return _ordered(made)


def _judged(
    request: Requirements,
    held: Room,
    profiled: Mask,
    lacking: Mask,
    speeds: Speed,
    terms: Availability,
) -> Feasibility:
    return feasibility.check_feasibility(request, held.fits, profiled, lacking, speeds, terms)


def _with_speed(of: PlanEvaluation, places: Indices) -> PlanEvaluation:
    """The same with the speed of those candidates, and everything judged anew."""
    speeds = of.speeds
    if len(places):
        engines, _ = of.engines(places)
        found = feasibility.speed(engines, of.request)
        rate, running, tokens = (
            speeds.requests_per_second.copy(),
            speeds.concurrency.copy(),
            speeds.tokens_per_second.copy(),
        )
        rate[places], running[places] = found.requests_per_second, found.concurrency
        tokens[places] = found.tokens_per_second
        speeds = Speed(rate, running, tokens)
    verdict = _judged(of.request, of.room, of.profiled, of.lacking, speeds, of.stock)
    return replace(of, speeds=speeds, verdict=verdict)


def _matters(of: PlanEvaluation) -> Mask:
    """[c] candidates that might cost less than the best that may be chosen, or be the only ones to do."""
    it, terms = of.it, of.stock
    feasible = of.verdict.is_(PlanReason.FEASIBLE) & ~of.lacking[terms.candidate]
    if not feasible.any():
        return np.ones(len(it), bool)
    compared = np.nan_to_num(of.compared, nan=np.inf)
    least = compared[feasible].min()
    cheaper = terms.cost(np.full(len(terms.candidate), float(of.request.fewest))) < least
    might = np.zeros(len(it), bool)
    might[terms.candidate[cheaper]] = True
    alone = np.bincount(it.accelerator[of.room.fits & ~of.lacking], minlength=len(it.accelerators)) == 0
    found: Mask = might | alone[it.accelerator]
    return found


def _ordered(of: PlanEvaluation) -> PlanEvaluation:
    """The same with its order."""
    objective, pairs = of.request.objective, of.stock.candidate
    leading = np.zeros(len(pairs))
    if objective == Objective.THROUGHPUT:
        count = 1.0 if of.request.external else of.verdict.replicas
        leading = -feasibility.bucket(count * of.speeds.tokens_per_second[pairs])
    elif objective == Objective.LATENCY:
        token = np.full(len(pairs), np.inf)
        able = np.flatnonzero((of.speeds.tokens_per_second > 0.0)[pairs])
        if len(able):
            served = of.served(pairs[able], of.verdict.wanted[able])
            token[able] = served.time_per_output_token
        leading = feasibility.bucket(token)
    order = feasibility.order(of.it, of.request, of.stock, of.verdict, leading)
    return replace(of, leading=leading, order=order)


def _lacking(it: Candidates, shape: ModelShape, said: Mapping[str, str]) -> Mask:
    """[c] what cannot be rendered or run yet, by `abilities`."""
    now = capabilities.NOW
    model = now.lack_of_model(shape) is not None
    engine = np.array([each.name not in now.engines or model for each in ENGINES])
    draft = np.array(
        [
            each.method not in now.methods
            or (each.placement is not None and each.placement not in now.placements)
            for each in it.drafts
        ],
        bool,
    )
    against = np.array([each.name in said for each in it.accelerators], bool)
    found: Mask = (
        engine[it.engine]
        | draft[it.draft]
        | against[it.accelerator]
        | (it.per_replica > now.accelerators_per_replica)
        | (it.nodes > now.nodes_per_replica)
    )
    return found


def lack(of: PlanEvaluation, place: int) -> str | None:
    """What a candidate would need that there is not yet, as the end of a sentence."""
    it, now = of.it, capabilities.NOW
    engine, draft = it.engine_of(place), it.draft_of(place)
    if engine.name == EngineName.TURBO and (model := now.lack_of_model(of.request.shape)):
        return model
    return now.lack(
        engine.name, draft.method, draft.placement, int(it.per_replica[place]), int(it.nodes[place])
    )


def host_memory(request: Requirements, accelerator: Accelerator, element: float) -> int:
    """Memory of one replica's container: on cores the accelerator's own, else twice the weights."""
    if memory.on_cpu(accelerator):
        return accelerator.memory_bytes
    return 2 * int(memory.weights(request.shape, element, quantized=False).total) + HOST_RESERVE


def hosts(request: Requirements, accelerators: Sequence[Accelerator]) -> list[Host | None]:
    """What one pod takes beside each of the accelerators."""
    return [
        beside(
            each,
            host_memory(
                request,
                each,
                element_bytes(computed_in(request.dtype, request.shape, memory.on_cpu(each))),
            ),
            request.resources,
        )
        for each in accelerators
    ]


def _contradictions(
    request: Requirements, accelerators: tuple[Accelerator, ...], element: Numbers
) -> dict[str, str]:
    found = {}
    for each, size in zip(accelerators, element, strict=True):
        said = overlay.contradiction(request.resources, each, host_memory(request, each, float(size)))
        if said is not None:
            found[each.name] = said
    return found


def _some(of: Room, places: Indices) -> Room:
    return Room(*(getattr(of, name)[places] for name in Room.__slots__))


def _some_speed(of: Speed, places: Indices) -> Speed:
    return Speed(*(getattr(of, name)[places] for name in Speed.__slots__))
