"""Whether the spec is in force, and whether it comes to that by itself: kstatus' two conditions. Pure.

https://github.com/kubernetes-sigs/cli-utils/blob/master/pkg/kstatus/README.md
"""

from __future__ import annotations

from collections.abc import Mapping
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
from turbo_operator.snapshot import Snapshot
from turbo_operator.status.outcome import Outcome

_GIVEN_UP = {
    RolloutReason.ROLLED_BACK: StalledReason.ROLLED_BACK,
    RolloutReason.PROGRESS_DEADLINE_EXCEEDED: StalledReason.PROGRESS_DEADLINE_EXCEEDED,
}
_FINALIZERS_OF_KUBERNETES = {"foregroundDeletion", "orphan", "batch.kubernetes.io/job-tracking"}


def verdicts(
    td: TurboDeployment,
    observed: Snapshot,
    outcome: Outcome,
    others: Mapping[ConditionType, ConditionState],
    refused: str | None,
) -> dict[ConditionType, ConditionState]:
    """Return the states of Reconciling and Stalled, from the other conditions."""
    stalled = _stalled(td, outcome, others, refused)
    reconciling = _reconciling(observed, outcome, others, stalled)
    return {ConditionType.RECONCILING: reconciling, ConditionType.STALLED: stalled}


def _stalled(
    td: TurboDeployment,
    outcome: Outcome,
    others: Mapping[ConditionType, ConditionState],
    refused: str | None,
) -> ConditionState:
    """Whether nothing will get better unless somebody changes something."""
    takeover = outcome.takeover
    if refused:
        return ConditionState("True", StalledReason.USER_ACTION_REQUIRED, sentence(refused))
    for reason, stalled in _GIVEN_UP.items():
        if takeover.is_over(reason):
            return ConditionState("True", stalled, takeover.describe_failure(td))
    for cause in (others[ConditionType.MODEL_INSPECTED], others[ConditionType.PLAN_FEASIBLE]):
        if (
            cause.status == "False" and cause.reason != PlanReason.INSUFFICIENT_CAPACITY
        ):  # nodes come, and pods go
            return ConditionState("True", StalledReason.USER_ACTION_REQUIRED, cause.message)
    if outcome.scale.replicas and takeover.waits and takeover.waits_for_spec:
        return ConditionState("True", StalledReason.USER_ACTION_REQUIRED, takeover.waits)
    return ConditionState("False", StalledReason.PROGRESSING, "Nothing waits for a change of the spec.")


def _reconciling(
    observed: Snapshot,
    outcome: Outcome,
    others: Mapping[ConditionType, ConditionState],
    stalled: ConditionState,
) -> ConditionState:
    """Whether the spec is not in force yet, though it may come to that by itself.

    Ready does not say it: it is True also of the last feasible plan, and while the last replica starts.
    """
    if stalled.status == "True":
        return ConditionState("False", stalled.reason, stalled.message)
    for kind in (ConditionType.READY, ConditionType.PLAN_FEASIBLE):
        cause = others[kind]
        if cause.status != "True":
            rests = cause.reason == ReadyReason.SUSPENDED and not any(pod.is_present for pod in observed.pods)
            waits: Literal["True", "False"] = "False" if rests else "True"
            return ConditionState(waits, cause.reason, cause.message)
    if sum(pod.ready for pod in observed.pods if pod.is_serving) < outcome.scale.replicas:
        remaining: str | None = others[ConditionType.AVAILABLE].message
    else:
        remaining = _describe_remaining(observed, outcome)
    if remaining is not None:
        return ConditionState("True", ReconcilingReason.PROGRESSING, remaining)
    return ConditionState("False", ReconcilingReason.UP_TO_DATE, "What runs is what the spec asks for.")


def _describe_remaining(observed: Snapshot, outcome: Outcome) -> str | None:
    """Say in a sentence what there is beyond the wanted replicas, or has yet to end."""
    for child in observed.children:
        foreign = [name for name in child.finalizers if name not in _FINALIZERS_OF_KUBERNETES]
        if child.terminating and foreign:
            return f"{child.kind} {child.name} was deleted, and finalizer {foreign[0]} keeps it: remove that."
    replicas, takeover = outcome.scale.replicas, outcome.takeover
    present = [pod for pod in observed.pods if pod.is_present]
    others = [pod for pod in present if takeover.target is not None and pod.plan_hash != takeover.target]
    surplus = others or (present if len(present) > replicas else [])
    if surplus:
        number = len(others) or len(present) - replicas
        pods = "1 pod has" if number == 1 else f"{number} pods have"
        return f"{pods} yet to end, or to take the place of another: {surplus[0].name}."
    if takeover.rollout is not None:
        return f"The replicas of plan {takeover.rollout.plan_hash} have yet to prove themselves available."
    return None
