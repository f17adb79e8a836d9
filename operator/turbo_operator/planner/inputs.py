"""Inputs of the planner, built alike for the operator, `turbo plan` and `turbo explain`. Pure."""

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
    """All that a plan depends on but the time; equal ones have the same plan while no time is up."""

    spec: TurboDeploymentSpec
    shape: ModelShape
    catalog: Mapping[str, Accelerator]
    supply: Mapping[str, Supply] | None
    running: Running | None
    calibrations: Mapping[tuple[str, str], Calibration]  # by engine and accelerator
    draft: ModelShape | None  # of speculation.draftModel, where its shape is shipped

    def equals_but_for_counts(self, other: PlannerInputs) -> bool:
        """Whether the two differ at most in how many accelerators nodes have free and quotas leave."""
        mine, theirs = (
            {name: supply.exhausted_until for name, supply in (inputs.supply or {}).items()}
            for inputs in (self, other)
        )
        return mine == theirs and replace(self, supply=None) == replace(other, supply=None)


def build_inputs(td: TurboDeployment, shape: ModelShape, observed: Snapshot) -> PlannerInputs:
    """Build the inputs of a TurboDeployment from what is observed."""
    running = identify_running(find_plan_in_place(td, observed))
    factors = read_calibrations(td.status.calibrations)
    draft = draft_shape(td.spec)
    return PlannerInputs(td.spec, shape, observed.accelerators, observed.supply, running, factors, draft)


def compute_plan(inputs: PlannerInputs, now: float) -> Plan:
    """Compute the plan; `now` is in seconds since the epoch."""
    return planner.plan(
        inputs.spec,
        inputs.shape,
        inputs.catalog,
        inputs.supply,
        now=now,
        running=inputs.running,
        calibrations=inputs.calibrations,
        draft=inputs.draft,
    )


def plan_of(td: TurboDeployment, shape: ModelShape, observed: Snapshot, now: float) -> Plan:
    """Compute the plan of a TurboDeployment."""
    return compute_plan(build_inputs(td, shape, observed), now)


def frontier_of(
    td: TurboDeployment, shape: ModelShape, observed: Snapshot, now: float
) -> tuple[EvaluatedCandidate, ...]:
    """Evaluate every candidate of a TurboDeployment whose speed is known."""
    inputs = build_inputs(td, shape, observed)
    return planner.frontier(
        inputs.spec,
        shape,
        inputs.catalog,
        inputs.supply,
        now=now,
        calibrations=inputs.calibrations,
        draft=inputs.draft,
    )


def draft_shape(spec: TurboDeploymentSpec) -> ModelShape | None:
    """Return the shape of the draft model: no inspect Job reads it, so only a shipped one is known."""
    draft = spec.speculation.draft_model
    if draft is None or not draft.uri.startswith("hf://"):
        return None
    return shapes.shipped(draft.uri.removeprefix("hf://"))


def read_calibrations(calibrations: Iterable[Calibrated]) -> Mapping[tuple[str, str], Calibration]:
    """Read the factors of the status: of what runs, and of what ran before.

    Were those forgotten, a plan that has left an accelerator for being slow would return to it at once.
    """
    return {
        (row.engine, row.accelerator): Calibration(
            float(row.decode) * float(row.online), float(row.prefill) * float(row.online)
        )
        for row in calibrations
    }


def find_plan_in_place(td: TurboDeployment, observed: Snapshot) -> PlanStatus | None:
    """Find the plan of the status that has a variant: the latest, else the one that serves."""
    hashes = {child.plan_hash for child in observed.children if child.kind in VARIANT_KINDS} - {None}
    plans = (td.status.plan, td.status.serving_plan)
    return next((plan for plan in plans if plan is not None and plan.hash in hashes), None)


def identify_running(plan: PlanStatus | None) -> Running | None:
    """Identify the candidate of a plan in the status."""
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
