"""What speculation saves, by what was measured. Pure."""

from __future__ import annotations

from decimal import Decimal

from turbo_operator import api
from turbo_operator.plan import Plan
from turbo_operator.planner import OFF, money, with_measured_load
from turbo_operator.snapshot import Snapshot
from turbo_operator.status.fields import cost_per_hour


def is_saving_asked(td: api.TurboDeployment, plan: Plan | None) -> bool:
    """Whether a plan drafts, and the planner decides what that is worth in money."""
    spec, choice = with_measured_load(td), plan.choice if plan is not None else None
    if spec.plan_policy.objective != api.Objective.COST or spec.scaling_mode == api.ScalingMode.EXTERNAL:
        return False
    return choice is not None and choice.method != OFF


def saving(observed: Snapshot, undrafted: Plan | None, speedup: str | None) -> api.Saving | None:
    """Compare what runs with the plan of the same targets without speculation; None until it is measured.

    `speedup`, as the status shows it, bounds the saving: pods that are twice as fast do the work of twice as
    many, whatever was assumed of their drafts. It alone counts where nothing reaches the targets without.
    """
    cost = cost_per_hour(observed)
    if speedup is None or undrafted is None or not cost:
        return None
    held = sum(pod.accelerators * pod.nodes for pod in observed.pods if pod.is_present)
    share = max(Decimal(0), Decimal(speedup) - 1)
    accelerators, dollars = int(held * share), cost * share
    choice = undrafted.choice
    if choice is not None and choice.predicted.cost_per_hour is not None:
        others = undrafted.replicas * choice.accelerators_per_replica
        accelerators = min(accelerators, others - held)
        dollars = max(Decimal(0), min(dollars, choice.predicted.cost_per_hour - cost))
    return api.Saving(accelerators=accelerators, per_hour=money(dollars))
