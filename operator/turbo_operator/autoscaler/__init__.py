"""How many replicas, and why. Pure: no client, no clock."""

from __future__ import annotations

from collections.abc import Sequence

from turbo_operator.api import ScalingPolicy, ScalingReason, TurboDeploymentSpec
from turbo_operator.autoscaler.decision import ScalingDecision, counted
from turbo_operator.autoscaler.history import Event, History
from turbo_operator.autoscaler.metrics_policy import autoscale
from turbo_operator.plan import Plan
from turbo_operator.snapshot import PodView, Supply

__all__ = ["NUM_MISSED", "Event", "History", "ScalingDecision", "scale"]

NUM_MISSED = 3  # scrapes after which a load is too old to count
FRESH_SECONDS = 45.0  # the same at the default scrape period


def scale(
    spec: TurboDeploymentSpec,
    plan: Plan | None = None,
    pods: Sequence[PodView] = (),
    history: History | None = None,
    now: float = 0.0,
    *,
    present: int | None = None,
    supply: Supply | None = None,
    fresh_seconds: float = FRESH_SECONDS,
) -> ScalingDecision:
    """The replicas to ask for, by the spec's policy; none while it is suspended.

    `present` is what was asked for last (None: nothing was), `supply` what the cluster has of the
    plan's accelerator (None: not known), `now` in seconds since the epoch. Loads older than `fresh_seconds`
    count as missing. `history` is that of the answer before; None after a start.
    """
    history = (history or History()).seen(present, now)
    policy = spec.scaling_policy
    if spec.suspend:
        detail = "spec.suspend is true: no pod is wanted until it is false."
        answer = ScalingDecision(0, ScalingReason.SUSPENDED, detail, history)
    elif policy == ScalingPolicy.EXTERNAL:
        detail = f"spec.replicas asks for {spec.replicas}; kubectl scale or an autoscaler may change it."
        answer = ScalingDecision(spec.replicas, ScalingReason.EXTERNALLY_MANAGED, detail, history)
    elif policy == ScalingPolicy.PLANNED:
        answer = _as_planned(spec, plan, present, history)
    else:
        answer = autoscale(
            spec, plan, pods, present, history, now, supply=supply, fresh_seconds=fresh_seconds
        )
    return answer.remembered()


def _as_planned(
    spec: TurboDeploymentSpec, plan: Plan | None, present: int | None, history: History
) -> ScalingDecision:
    if plan is None or plan.served is None:
        kept = present or spec.scaling.min_replicas or 1
        return ScalingDecision(
            kept, ScalingReason.PLANNED, "What runs is kept while no plan is feasible.", history
        )
    detail = f"The plan needs {counted(plan.replicas)} for spec.workload and spec.targets."
    return ScalingDecision(plan.replicas, ScalingReason.PLANNED, detail, history)
