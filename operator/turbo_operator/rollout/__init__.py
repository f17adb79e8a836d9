"""How one plan takes over from another, within bounds, and how it goes back. Pure."""

from turbo_operator.rollout.bounds import Bounds, Holding, amount_of, bounds_of, trainings_holding
from turbo_operator.rollout.gates import Reports, describe_step, is_by_rounding, pass_gates, step_replicas
from turbo_operator.rollout.planner import Step, Wanted, has_taken_over, next_step, serving_variant
from turbo_operator.rollout.progress import Progress, follow, seconds_left
from turbo_operator.rollout.variants import Variant, VariantState, asked_replicas, variant_states

__all__ = [
    "Bounds",
    "Holding",
    "Progress",
    "Reports",
    "Step",
    "Variant",
    "VariantState",
    "Wanted",
    "amount_of",
    "asked_replicas",
    "bounds_of",
    "describe_step",
    "follow",
    "has_taken_over",
    "is_by_rounding",
    "next_step",
    "pass_gates",
    "seconds_left",
    "serving_variant",
    "step_replicas",
    "trainings_holding",
    "variant_states",
]
