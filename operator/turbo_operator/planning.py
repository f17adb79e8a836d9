"""What the planner is asked, in one place for the operator, `turbo plan` and `turbo explain`. Pure."""

from __future__ import annotations

from turbo_operator import planner
from turbo_operator.api import TurboDeploymentSpec
from turbo_operator.observed import Observed
from turbo_operator.planned import Plan, Weighed
from turbo_runtime.contract import ModelShape


def plan_of(spec: TurboDeploymentSpec, shape: ModelShape, observed: Observed, now: float) -> Plan:
    """The plan for what is wanted and seen; `now` is in seconds since the epoch."""
    return planner.plan(spec, shape, observed.accelerators, observed.supply, now=now)


def frontier_of(
    spec: TurboDeploymentSpec, shape: ModelShape, observed: Observed, now: float
) -> tuple[Weighed, ...]:
    """Every candidate that the same question weighs and could predict."""
    return planner.frontier(spec, shape, observed.accelerators, observed.supply, now=now)
