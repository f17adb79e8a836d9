"""Whether the spec is in force, and whether it comes to that by itself: kstatus' two conditions. Pure.

https://github.com/kubernetes-sigs/cli-utils/blob/master/pkg/kstatus/README.md
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Literal

from turbo_operator.api import (
    ConditionType,
    PlanReason,
    ReadyReason,
    ReconcilingReason,
    RolloutReason,
    StalledReason,
    TurboDeployment,
)
from turbo_operator.api.conditions import ConditionState, sentence
from turbo_operator.autoscaler import ScalingDecision
from turbo_operator.snapshot import ChildView, Snapshot
from turbo_operator.status.takeover import Takeover, failure

_GIVEN_UP = {
    RolloutReason.ROLLED_BACK: StalledReason.ROLLED_BACK,
    RolloutReason.PROGRESS_DEADLINE_EXCEEDED: StalledReason.PROGRESS_DEADLINE_EXCEEDED,
}


def verdicts(
    td: TurboDeployment,
    observed: Snapshot,
    scale: ScalingDecision,
    verdicts: Mapping[ConditionType, ConditionState],
    takeover: Takeover,
    refused: str | None,
) -> dict[ConditionType, ConditionState]:
    """Reconciling and Stalled, from the other `verdicts`."""
    stalled = _stalled(td, scale, verdicts, takeover, refused)
    return {
        ConditionType.RECONCILING: _reconciling(observed, scale, verdicts, takeover, stalled),
        ConditionType.STALLED: stalled,
    }


def _stalled(
    td: TurboDeployment,
    scale: ScalingDecision,
    verdicts: Mapping[ConditionType, ConditionState],
    takeover: Takeover,
    refused: str | None,
) -> ConditionState:
    """Whether nothing will get better unless somebody changes something."""
    if refused:
        return ConditionState("True", StalledReason.NEEDS_CHANGE, sentence(refused))
    for reason, stalled in _GIVEN_UP.items():
        if takeover.is_over(reason):
            return ConditionState("True", stalled, failure(td, takeover))
    for cause in (verdicts[ConditionType.MODEL_INSPECTED], verdicts[ConditionType.PLAN_FEASIBLE]):
        if cause.status == "False" and cause.reason != PlanReason.NO_CAPACITY:  # nodes come, and pods go
            return ConditionState("True", StalledReason.NEEDS_CHANGE, cause.message)
    if scale.replicas and takeover.waits and takeover.waits_for_spec:
        return ConditionState("True", StalledReason.NEEDS_CHANGE, takeover.waits)
    return ConditionState("False", StalledReason.PROGRESSING, "Nothing waits for a change of the spec.")


def _reconciling(
    observed: Snapshot,
    scale: ScalingDecision,
    verdicts: Mapping[ConditionType, ConditionState],
    takeover: Takeover,
    stalled: ConditionState,
) -> ConditionState:
    """Whether the spec is not in force yet, though it may come to that by itself.

    Ready does not say it: it is True also of the last feasible plan, and while the last replica starts.
    """
    if stalled.status == "True":
        return ConditionState("False", stalled.reason, stalled.message)
    for kind in (ConditionType.READY, ConditionType.PLAN_FEASIBLE):
        cause = verdicts[kind]
        if cause.status != "True":
            rests = cause.reason == ReadyReason.SUSPENDED and not any(pod.is_present for pod in observed.pods)
            waits: Literal["True", "False"] = "False" if rests else "True"
            return ConditionState(waits, cause.reason, cause.message)
    ready = sum(pod.ready for pod in observed.pods if pod.is_serving)
    if ready < scale.replicas:
        return ConditionState(
            "True", ReconcilingReason.PROGRESSING, verdicts[ConditionType.AVAILABLE].message
        )
    left = _left(observed, scale, takeover)
    if left is not None:
        return ConditionState("True", ReconcilingReason.PROGRESSING, left)
    return ConditionState("False", ReconcilingReason.IN_FORCE, "What runs is what the spec asks for.")


def _left(observed: Snapshot, scale: ScalingDecision, takeover: Takeover) -> str | None:
    """What there is beyond the wanted replicas, in a sentence."""
    there = [pod for pod in observed.pods if pod.is_present]
    others = [pod for pod in there if takeover.target is not None and pod.plan_hash != takeover.target]
    surplus = others or (there if len(there) > scale.replicas else [])
    held = _held_by_finalizers(observed.children)
    if held is not None:
        return held
    if surplus:
        number = len(others) or len(there) - scale.replicas
        pods = "1 pod has" if number == 1 else f"{number} pods have"
        return f"{pods} yet to end, or to take the place of another: {surplus[0].name}."
    if takeover.rollout is not None:
        return f"The replicas of plan {takeover.rollout.plan_hash} have yet to prove themselves available."
    return None


def _held_by_finalizers(children: Iterable[ChildView]) -> str | None:
    """A child that was deleted and that somebody else's finalizer keeps."""
    for child in children:
        foreign = [name for name in child.finalizers if name not in _OF_KUBERNETES]
        if child.terminating and foreign:
            return f"{child.kind} {child.name} was deleted, and finalizer {foreign[0]} keeps it: remove that."
    return None


_OF_KUBERNETES = frozenset({"foregroundDeletion", "orphan", "batch.kubernetes.io/job-tracking"})
