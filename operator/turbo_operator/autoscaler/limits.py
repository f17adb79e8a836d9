"""Bounds of the autoscaler: what the spec and the plan set, the money, and what the cluster has. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from turbo_operator.api import Accelerators, Cost, TurboDeploymentSpec
from turbo_operator.budget import footprint_of
from turbo_operator.plan import Choice, Plan
from turbo_operator.snapshot import PodView, Supply


@dataclass(frozen=True, slots=True)
class Limit:
    """The maximum of replicas by one bound; `sentence` says which and what lifts it, without full stop."""

    replicas: int
    sentence: str


def min_replicas(spec: TurboDeploymentSpec, plan: Plan) -> int:
    """Return the minimum of replicas: spec.scaling.minReplicas, and what the plan needs for the workload."""
    return max(spec.scaling.min_replicas or 1, plan.replicas)


def explain_min_replicas(spec: TurboDeploymentSpec, plan: Plan) -> str | None:
    """Explain what sets the minimum, without its full stop; None where nobody has set it."""
    if spec.scaling.min_replicas is not None and spec.scaling.min_replicas >= plan.replicas:
        return "spec.scaling.minReplicas allows no fewer"
    return "the plan needs no fewer for spec.workload and spec.targets" if plan.replicas > 1 else None


def bought(spec: TurboDeploymentSpec, choice: Choice) -> Limit | None:
    """Return the tighter bound of money and of accelerators: None where there is none."""
    footprint = footprint_of(choice, spec.template)
    limits: list[Limit] = []
    budget, total = (spec.cost or Cost()).max_per_hour, (spec.accelerators or Accelerators()).max_total
    affordable = None if budget is None else footprint.affordable(budget)
    if affordable is not None:
        sentence = f"one more would cost more than spec.cost.maxPerHour of {budget} $/h"
        limits.append(Limit(affordable, sentence))
    if total is not None:
        sentence = f"one more would hold more than spec.accelerators.maxTotal of {total}"
        limits.append(Limit(footprint.within(total), sentence))
    return tightest(limits)


def max_replicas(
    spec: TurboDeploymentSpec,
    choice: Choice,
    supply: Supply | None,
    pods: Sequence[PodView],
    present: int,
    now: float,
) -> Limit | None:
    """Return the tightest bound; what the cluster lacks never takes away what runs."""
    limits: list[Limit] = []
    if spec.scaling.max_replicas is not None:
        limits.append(Limit(spec.scaling.max_replicas, "spec.scaling.maxReplicas allows no more"))
    if (limit := bought(spec, choice)) is not None:
        limits.append(limit)
    room = footprint_of(choice, spec.template).room(supply, now) if supply is not None else None
    if room is not None:
        sentence = f"the cluster and its quotas hold no more replicas on {choice.accelerator.name}"
        limits.append(Limit(max(room, present), sentence))
    if stuck := stuck_pods(spec, pods, now):
        timeout = (spec.accelerators or Accelerators()).pending_timeout
        waits = f"pod {stuck[0]} has waited for an accelerator for longer than {timeout}"
        limits.append(Limit(present, f"{waits}, and so would another"))
    return tightest(limits)


def stuck_pods(spec: TurboDeploymentSpec, pods: Sequence[PodView], now: float) -> tuple[str, ...]:
    """Name the pods that no node has taken for longer than spec.accelerators.pendingTimeout."""
    timeout = (spec.accelerators or Accelerators()).pending_timeout.seconds
    return tuple(
        pod.name
        for pod in pods
        if pod.pending_since is not None and not pod.terminating and now - pod.pending_since > timeout
    )


def tightest(limits: Sequence[Limit]) -> Limit | None:
    """Return the limit that allows the fewest, the first among equals."""
    return min(limits, key=lambda limit: limit.replicas, default=None)
