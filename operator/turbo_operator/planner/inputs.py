"""What the planner is asked, in one place for the operator, `turbo plan` and `turbo explain`. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from turbo_operator import planner
from turbo_operator.api import (
    Calibrated,
    CapacityType,
    EngineName,
    Placement,
    PlanStatus,
    TurboDeployment,
    TurboDeploymentSpec,
)
from turbo_operator.catalog import shapes
from turbo_operator.plan import EvaluatedCandidate, Plan, Running
from turbo_operator.planner.performance.calibration import Calibration
from turbo_operator.snapshot import Accelerator, Snapshot, Supply
from turbo_runtime.contract.model import ModelShape

# A variant whose Deployment was deleted is made again from its frozen template.
VARIANT_KINDS = frozenset({"Deployment", "ControllerRevision"})


@dataclass(frozen=True, slots=True)
class PlannerInputs:
    """All that a plan depends on but the time; equal ones have the same answer while no time is up."""

    spec: TurboDeploymentSpec
    shape: ModelShape
    catalogue: Mapping[str, Accelerator]
    supply: Mapping[str, Supply] | None
    running: Running | None
    calibrations: Mapping[tuple[str, str], Calibration]  # by engine and accelerator
    draft: ModelShape | None  # of speculation.draftModel, where its shape is shipped

    def is_but_for_the_count(self, other: PlannerInputs) -> bool:
        """Whether the two differ at most in how many accelerators nodes have free and quotas leave."""
        mine, theirs = (
            {name: supply.exhausted_until for name, supply in (each.supply or {}).items()}
            for each in (self, other)
        )
        return mine == theirs and replace(self, supply=None) == replace(other, supply=None)


def asked(td: TurboDeployment, shape: ModelShape, observed: Snapshot) -> PlannerInputs:
    """The question that a TurboDeployment and what is seen of it come to."""
    now = running(plan_in_place(td, observed))
    factors = calibrations(td.status.calibrations)
    draft = draft_shape(td.spec)
    return PlannerInputs(td.spec, shape, observed.accelerators, observed.supply, now, factors, draft)


def answer(question: PlannerInputs, now: float) -> Plan:
    """The plan; `now` is in seconds since the epoch."""
    it = question
    return planner.plan(
        it.spec,
        it.shape,
        it.catalogue,
        it.supply,
        now=now,
        running=it.running,
        calibrations=it.calibrations,
        draft=it.draft,
    )


def plan_of(td: TurboDeployment, shape: ModelShape, observed: Snapshot, now: float) -> Plan:
    """Both at once."""
    return answer(asked(td, shape, observed), now)


def frontier_of(
    td: TurboDeployment, shape: ModelShape, observed: Snapshot, now: float
) -> tuple[EvaluatedCandidate, ...]:
    """Every candidate that the same question weighs and could predict."""
    it = asked(td, shape, observed)
    return planner.frontier(
        it.spec,
        it.shape,
        it.catalogue,
        it.supply,
        now=now,
        calibrations=it.calibrations,
        draft=it.draft,
    )


def draft_shape(spec: TurboDeploymentSpec) -> ModelShape | None:
    """The shape of the draft model: no inspect Job reads it, so only a shipped one is known."""
    draft = spec.speculation.draft_model
    if draft is None or not draft.uri.startswith("hf://"):
        return None
    return shapes.shipped(draft.uri.removeprefix("hf://"))


def calibrations(kept: Iterable[Calibrated]) -> Mapping[tuple[str, str], Calibration]:
    """The factors that the status keeps: of what runs, and of what ran before.

    Were those forgotten, a plan that has left an accelerator for being slow would return to it at once.
    """
    return {
        (each.engine, each.accelerator): Calibration(
            float(each.decode) * float(each.online), float(each.prefill) * float(each.online)
        )
        for each in kept
    }


def plan_in_place(td: TurboDeployment, observed: Snapshot) -> PlanStatus | None:
    """The plan of the status that there is a variant of: the latest, else the one that serves."""
    there = {child.plan_hash for child in observed.children if child.kind in VARIANT_KINDS}
    plans = (td.status.plan, td.status.serving_plan)
    return next((plan for plan in plans if plan is not None and plan.hash in there - {None}), None)


def running(plan: PlanStatus | None) -> Running | None:
    """Which candidate a plan of the status is."""
    if plan is None or plan.accelerator is None:
        return None
    try:
        return Running(
            engine=EngineName(plan.engine or EngineName.TURBO),
            accelerator=plan.accelerator,
            capacity_type=CapacityType(plan.capacity_type or CapacityType.ON_DEMAND),
            tensor=plan.tensor or 1,
            nodes=plan.nodes or 1,
            method=plan.method or planner.OFF,
            placement=None if plan.placement is None else Placement(plan.placement),
        )
    except ValueError:  # written by another version, which knows more: then nothing speaks for what runs
        return None
