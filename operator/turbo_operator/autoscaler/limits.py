"""Bounds of the autoscaler: what the spec and the plan set, the money, and what the cluster has. Pure."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from typing import NamedTuple

from turbo_operator.api import MAX_REPLICAS, Accelerators, Cost, TurboDeploymentSpec
from turbo_operator.budget import footprint_of
from turbo_operator.commitments import NO_BUDGET, Allowance
from turbo_operator.plan import Choice
from turbo_operator.snapshot import PodView, Supply


class Limit(NamedTuple):
    """The maximum of replicas by one bound; `sentence` says which and what lifts it, without full stop."""

    replicas: int
    sentence: str


def bought(spec: TurboDeploymentSpec, choice: Choice, allowance: Allowance) -> Limit | None:
    """Return the tightest bound of money and of accelerators: None where there is none."""
    return _tightest([*_stated(spec, choice), *_budgeted(spec, choice, allowance)])


def _stated(spec: TurboDeploymentSpec, choice: Choice) -> list[Limit]:
    """Return the bounds of the spec."""
    footprint, limits = footprint_of(choice, spec.pod_template.spec), []
    budget, total = (spec.cost or Cost()).max_per_hour, (spec.accelerators or Accelerators()).max_total
    if budget is not None and (affordable := footprint.affordable(budget)) is not None:
        sentence = f"one more would cost more than spec.cost.maxPerHour of {budget} $/h"
        limits.append(Limit(affordable, sentence))
    if total is not None:
        sentence = f"one more would hold more than spec.accelerators.maxTotal of {total}"
        limits.append(Limit(footprint.within(total), sentence))
    return limits


def _budgeted(spec: TurboDeploymentSpec, choice: Choice, allowance: Allowance) -> list[Limit]:
    """Return the bound of TurboBudgets, none where they allow as many as there may be."""
    footprint, counts = footprint_of(choice, spec.pod_template.spec), range(1, MAX_REPLICAS + 1)
    if not allowance.budgets:
        return []

    def refuses(replicas: int) -> str | None:
        return allowance.refuses(footprint.amount(replicas))

    replicas = bisect_left(counts, True, key=lambda count: refuses(count) is not None)
    clause = refuses(replicas + 1)
    return [] if clause is None else [Limit(replicas, f"no more may be had: {clause}")]


def max_replicas(
    spec: TurboDeploymentSpec,
    choice: Choice,
    supply: Supply | None,
    pods: Sequence[PodView],
    present: int,
    now: float,
    allowance: Allowance = NO_BUDGET,
) -> Limit | None:
    """Return the tightest bound; neither the cluster nor a TurboBudget takes away what runs."""
    limits = _stated(spec, choice)
    if spec.scaling.max_replicas is not None:
        limits.append(Limit(spec.scaling.max_replicas, "spec.scaling.maxReplicas allows no more"))
    for limit in _budgeted(spec, choice, allowance):
        limits.append(limit._replace(replicas=max(limit.replicas, present)))
    room = footprint_of(choice, spec.pod_template.spec).room(supply, now) if supply is not None else None
    if room is not None:
        sentence = f"the cluster and its quotas hold no more replicas on {choice.accelerator.name}"
        limits.append(Limit(max(room, present), sentence))
    if stuck := stuck_pods(spec, pods, now):
        timeout = (spec.accelerators or Accelerators()).pending_timeout
        waits = f"pod {stuck[0]} has waited for an accelerator for longer than {timeout}"
        limits.append(Limit(present, f"{waits}, and so would another"))
    return _tightest(limits)


def stuck_pods(spec: TurboDeploymentSpec, pods: Sequence[PodView], now: float) -> tuple[str, ...]:
    """Name the pods that no node has taken for longer than spec.accelerators.pendingTimeout."""
    timeout = (spec.accelerators or Accelerators()).pending_timeout.seconds
    waits = ((pod.name, pod.pending_since) for pod in pods if not pod.terminating)
    return tuple(name for name, start in waits if start is not None and now - start > timeout)


def _tightest(limits: Sequence[Limit]) -> Limit | None:
    """Return the limit of the fewest replicas, the first among equals."""
    return min(limits, key=lambda limit: limit.replicas, default=None)
