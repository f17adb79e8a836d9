"""How many replicas, and why. Pure: no client, no clock."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from turbo_operator.api import ScalingMode, ScalingReason, TurboDeploymentSpec
from turbo_operator.autoscaler.decision import Event, History, ScalingDecision, count_replicas
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
    """Return the replicas to request, by the spec's policy; none while it is suspended.

    `present` is what was requested last (None: nothing was), `supply` what the cluster has of the plan's
    accelerator (None: not known), `now` in seconds since the epoch. Loads older than `fresh_seconds` count as
    missing. `history` is that of the decision before; None after a start.
    """
    history = (history or History()).observe(present, now)
    policy, choice = spec.scaling_mode, plan.served if plan is not None else None
    if spec.suspend:
        detail = "spec.suspend is true: no pod is wanted until it is false."
        decision = ScalingDecision(0, ScalingReason.SUSPENDED, detail, history)
    elif policy == ScalingMode.EXTERNAL:
        detail = f"spec.replicas asks for {spec.replicas}; kubectl scale or an autoscaler may change it."
        decision = ScalingDecision(spec.replicas, ScalingReason.EXTERNALLY_MANAGED, detail, history)
    elif plan is None or choice is None:
        reason = ScalingReason.PLANNED if policy == ScalingMode.PLANNED else ScalingReason.STABLE
        detail = "What runs is kept while no plan is feasible."
        decision = ScalingDecision(present or spec.scaling.min_replicas or 1, reason, detail, history)
    elif policy == ScalingMode.PLANNED:
        detail = f"The plan needs {count_replicas(plan.replicas)} for spec.workload and spec.targets."
        decision = ScalingDecision(plan.replicas, ScalingReason.PLANNED, detail, history)
    else:
        decision = autoscale(
            spec, plan, choice, pods, present, history, now, supply=supply, fresh_seconds=fresh_seconds
        )
    # The reason of the event that follows when the replicas have changed.
    return replace(decision, history=replace(decision.history, reason=decision.reason))
