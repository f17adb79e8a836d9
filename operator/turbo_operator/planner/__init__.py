"""From a spec, a model's shape and the catalogue to one plan with reasons. Pure: no client, no clock."""

from turbo_operator.planner.choose import plan
from turbo_operator.planner.explain import OFF, money

__all__ = ["OFF", "money", "plan"]
