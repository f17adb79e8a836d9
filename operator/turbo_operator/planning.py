"""What the planner is asked, in one place for the operator, `turbo plan` and `turbo explain`. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from turbo_operator import planner
from turbo_operator.api import (
    CapacityType,
    EngineName,
    Placement,
    PlanStatus,
    TurboDeployment,
    TurboDeploymentSpec,
)
from turbo_operator.observed import Accelerator, Observed, Supply
from turbo_operator.planned import Plan, Running, Weighed
from turbo_runtime.contract import ModelShape


@dataclass(frozen=True, slots=True)
class Asked:
    """All that a plan depends on but the time; equal ones have the same answer while no time is up."""

    spec: TurboDeploymentSpec
    shape: ModelShape
    catalogue: Mapping[str, Accelerator]
    supply: Mapping[str, Supply] | None
    running: Running | None


def asked(td: TurboDeployment, shape: ModelShape, observed: Observed) -> Asked:
    """The question that a TurboDeployment and what is seen of it come to."""
    return Asked(td.spec, shape, observed.accelerators, observed.supply, running(td.status.plan, observed))


def answer(question: Asked, now: float) -> Plan:
    """The plan; `now` is in seconds since the epoch."""
    it = question
    return planner.plan(it.spec, it.shape, it.catalogue, it.supply, now=now, running=it.running)


def plan_of(td: TurboDeployment, shape: ModelShape, observed: Observed, now: float) -> Plan:
    """Both at once."""
    return answer(asked(td, shape, observed), now)


def frontier_of(
    td: TurboDeployment, shape: ModelShape, observed: Observed, now: float
) -> tuple[Weighed, ...]:
    """Every candidate that the same question weighs and could predict."""
    it = asked(td, shape, observed)
    return planner.frontier(it.spec, it.shape, it.catalogue, it.supply, now=now, running=it.running)


def running(plan: PlanStatus | None, observed: Observed) -> Running | None:
    """Which candidate runs: the plan in force, while there is a Deployment of it."""
    if plan is None or plan.hash is None or plan.accelerator is None:
        return None
    if not any(child.kind == "Deployment" and child.plan_hash == plan.hash for child in observed.children):
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
