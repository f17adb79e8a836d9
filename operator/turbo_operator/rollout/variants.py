"""The variants of a TurboDeployment as observed: each a workload and its frozen pod template. Pure.

The workload is a Deployment, or for a replica on several nodes a LeaderWorkerSet. A variant is named by its
plan hash. It exists while its ControllerRevision does, with or without the workload: a deleted one can be
created again from the frozen template.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from turbo_operator.budget import Footprint, labeled_footprint
from turbo_operator.resources import WORKLOADS
from turbo_operator.snapshot import Accelerator, ChildView, PodView

# Longer than a liveness probe takes to end a container that hangs: after that, what does not answer may go
# before its successor is there.
SILENT_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class Variant:
    """A workload that shall exist, and with how many replicas."""

    plan_hash: str
    replicas: int


@dataclass(frozen=True, slots=True)
class VariantState:
    """One variant as observed."""

    plan_hash: str
    replicas: int = 0  # that its Deployment asks for; where there is none, pods that the next one adopts
    available: int = 0  # of them, ready for minReadySeconds; 0 while its controller has not seen it as it is
    ending: int = 0  # pods that were told to end and still hold their accelerators
    exists: bool = True  # whether there is a Deployment
    footprint: Footprint | None = None  # of one replica; None where its accelerator is not known
    silent_since: float | None = None  # epoch seconds since when too few are available; None: enough are
    unschedulable: bool = False  # whether one of its pods waits for a node
    pods: int = 0  # that there are, ending ones included
    seen: bool = True  # whether its controller has seen the replicas: until then its pods may yet change
    ready: int = 0  # pods that answer now, for however long

    @property
    def answering(self) -> int:
        """Replicas that serve now. Pods become ready before the Deployment controller counts them."""
        return max(self.available, min(self.ready, self.replicas))

    @property
    def held(self) -> int:
        """Replicas whose accelerators it holds or requests."""
        return max(self.replicas + self.ending, self.pods)

    def is_silent(self, now: float) -> bool:
        """Whether too few have been available for long; `now` is in epoch seconds."""
        return self.silent_since is not None and now - self.silent_since >= SILENT_SECONDS

    def held_with(self, replicas: int) -> int:
        """`held` once it requests `replicas`. Removed replicas count until their pods are gone."""
        return max(self.held, replicas + self.ending)


def variant_states(
    children: Iterable[ChildView],
    pods: Sequence[PodView],
    accelerators: Mapping[str, Accelerator],
    now: float,
    min_ready_seconds: float = 0.0,
) -> tuple[VariantState, ...]:
    """List every variant, by plan hash; also one of which only pods are left. `now` is in epoch seconds.

    A pod that cannot end, since its node is lost, is none: as for a quota, nothing waits for it.
    """
    labeled = [(child.plan_hash, child) for child in children if child.plan_hash]
    deployments = {plan_hash: child for plan_hash, child in labeled if child.kind in WORKLOADS}
    revisions = {plan_hash: child for plan_hash, child in labeled if child.kind == "ControllerRevision"}
    present: defaultdict[str, list[PodView]] = defaultdict(list)
    for pod in pods:
        if pod.is_present and now <= pod.overdue:
            present[pod.plan_hash].append(pod)
    states = []
    for plan_hash in sorted({*deployments, *revisions, *present}):
        deployment, own = deployments.get(plan_hash), present.get(plan_hash, [])
        footprint = labeled_footprint(deployment or revisions.get(plan_hash) or own[0], accelerators)
        ending = sum(pod.terminating for pod in own)
        state = VariantState(plan_hash, ending=ending, exists=False, footprint=footprint, pods=len(own))
        if deployment is not None:
            state = _deployed(state, deployment, own, now - min_ready_seconds)
        elif plan_hash in revisions:  # what a Deployment can be made again from
            ready = sum(pod.ready for pod in own if not pod.terminating)
            state = replace(state, replicas=len(own) - ending, ready=ready)
        states.append(state)
    return tuple(states)


def _deployed(
    state: VariantState, deployment: ChildView, pods: Sequence[PodView], ready_before: float
) -> VariantState:
    replicas, counted = deployment.replicas or 0, deployment.available_replicas
    was_seen, silent_since = (
        deployment.observed_generation >= deployment.generation,
        deployment.unavailable_since,
    )
    alive = [pod for pod in pods if not pod.terminating]
    ready = sum(pod.ready for pod in alive)
    if deployment.kind == "LeaderWorkerSet":  # whose status says neither of these
        was_seen = len(alive) <= replicas
        counted = sum(pod.ready and (pod.ready_since or 0.0) <= ready_before for pod in alive)
        silent_since = None if ready else silent_since
    return replace(
        state,
        replicas=replicas,
        # As it is, not as it was; pods come by another watch, and may say that they no longer answer.
        available=min(counted, replicas, ready) if was_seen else 0,
        exists=True,
        silent_since=silent_since,
        unschedulable=any(pod.waits_for_node for pod in alive),
        pods=max(len(pods), deployment.pods + state.ending),
        seen=was_seen,
        ready=ready,
    )


def asked_replicas(states: Iterable[VariantState]) -> int | None:
    """Sum the replicas of all Deployments; None where there is none."""
    existing = [state.replicas for state in states if state.exists]
    return sum(existing) if existing else None
