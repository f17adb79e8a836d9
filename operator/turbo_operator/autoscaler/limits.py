"""Within what the autoscaler may move: what the spec and the plan set, the money, and what is there. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from turbo_operator.api import Accelerators, TurboDeploymentSpec
from turbo_operator.budget import footprint_of
from turbo_operator.plan import Choice, Plan
from turbo_operator.snapshot import PodView, Supply


@dataclass(frozen=True, slots=True)
class Limit:
    """The most replicas by one bound; `sentence` says which and what lifts it, without its full stop."""

    replicas: int
    sentence: str


def min_replicas(spec: TurboDeploymentSpec, plan: Plan) -> int:
    """The fewest replicas: spec.scaling.minReplicas, and what the plan needs for the workload."""
    return max(spec.scaling.min_replicas or 1, plan.replicas)


def least_by(spec: TurboDeploymentSpec, plan: Plan) -> str | None:
    """What holds the fewest replicas where they are, without its full stop; None where nobody has set it."""
    if spec.scaling.min_replicas is not None and spec.scaling.min_replicas >= plan.replicas:
        return "spec.scaling.minReplicas allows no fewer"
    return "the plan needs no fewer for spec.workload and spec.targets" if plan.replicas > 1 else None


def max_replicas(spec: TurboDeploymentSpec, choice: Choice) -> Limit | None:
    """The tightest bound that nothing may exceed, not even for what runs: None where there is none."""
    asked = spec.scaling.max_replicas
    bound = None if asked is None else Limit(asked, "spec.scaling.maxReplicas allows no more")
    return tightest(bound, bought(spec, choice))


def bought(spec: TurboDeploymentSpec, choice: Choice) -> Limit | None:
    """The tighter bound of money and of accelerators: None where there is none."""
    footprint = footprint_of(choice, spec.template)
    bounds: list[Limit] = []
    if spec.cost is not None and spec.cost.max_per_hour is not None:
        affordable = footprint.affordable(spec.cost.max_per_hour)
        if affordable is not None:
            said = f"one more would cost more than spec.cost.maxPerHour of {spec.cost.max_per_hour} $/h"
            bounds.append(Limit(affordable, said))
    if spec.accelerators is not None and spec.accelerators.max_total is not None:
        total = spec.accelerators.max_total
        said = f"one more would hold more than spec.accelerators.maxTotal of {total}"
        bounds.append(Limit(footprint.within(total), said))
    return tightest(*bounds)


def growth(
    spec: TurboDeploymentSpec,
    choice: Choice,
    supply: Supply | None,
    pods: Sequence[PodView],
    present: int,
    now: float,
) -> Limit | None:
    """The bound on more replicas by what there is; it never takes away what runs."""
    bounds: list[Limit] = []
    if supply is not None:
        room = footprint_of(choice, spec.template).room(supply, now)
        if room is not None:
            said = f"the cluster and its quotas hold no more replicas on {choice.accelerator.name}"
            bounds.append(Limit(max(room, present), said))
    stuck = stuck_pods(spec, pods, now)
    if stuck:
        timeout = (spec.accelerators or Accelerators()).pending_timeout
        said = f"pod {stuck[0]} has waited for an accelerator for longer than {timeout}, and so would another"
        bounds.append(Limit(present, said))
    return tightest(*bounds)


def stuck_pods(spec: TurboDeploymentSpec, pods: Sequence[PodView], now: float) -> tuple[str, ...]:
    """Names of pods that no node has taken for longer than spec.accelerators.pendingTimeout."""
    timeout = (spec.accelerators or Accelerators()).pending_timeout_seconds
    return tuple(
        pod.name
        for pod in pods
        if pod.pending_since is not None and not pod.terminating and now - pod.pending_since > timeout
    )


def tightest(*bounds: Limit | None) -> Limit | None:
    """The one that allows the fewest, the first among equals."""
    known = [limit for limit in bounds if limit is not None]
    return min(known, key=lambda limit: limit.replicas, default=None)
