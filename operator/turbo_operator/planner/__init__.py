"""From a spec, a model's shape and the catalogue to one plan with reasons. Pure: no client, no clock."""

from turbo_operator.api.names import OFF
from turbo_operator.planner.choose import frontier, plan
from turbo_operator.planner.explain import money

__all__ = ["OFF", "frontier", "money", "plan"]
