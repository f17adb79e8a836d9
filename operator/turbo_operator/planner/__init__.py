"""From a spec, a model's shape and the catalog to one plan with reasons. Pure: no client, no clock."""

from turbo_operator.api.constants import OFF
from turbo_operator.planner.explanation.messages import money
from turbo_operator.planner.inputs import (
    PlannerInputs,
    build_inputs,
    pin,
    with_measured_load,
    without_speculation,
)
from turbo_operator.planner.solver import frontier, plan

__all__ = [
    "OFF",
    "PlannerInputs",
    "build_inputs",
    "frontier",
    "money",
    "pin",
    "plan",
    "with_measured_load",
    "without_speculation",
]
