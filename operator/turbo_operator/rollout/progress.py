"""Whether the plan that takes over makes progress, and when it is rolled back. Pure.

What must survive the operator is in the status: which plan takes over, its last progress, and that it was
rolled back. A plan that was rolled back stays so until the spec changes, its replicas apart.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from turbo_operator.api import RolloutReason, RolloutStatus, epoch, rfc3339
from turbo_operator.snapshot import ENDED_PHASES, PodView


@dataclass(frozen=True, slots=True)
class Progress:
    """How far the wanted variant is."""

    plan_hash: str
    spec_hash: str  # of the spec that the plan was made for
    replicas: int  # that its Deployment asks for
    available: int
    ready: int = 0  # of its pods
    has_placed: bool = False  # whether a node has, or had, one of its pods that is not ready
    is_waiting: bool = False  # whether one of its pods waits for a node
    failure: str = ""  # what its first failing pod says, as a sentence
    over_limits: bool = False  # whether what runs is above a limit of the spec

    @classmethod
    def of_pods(
        cls, plan_hash: str, spec_hash: str, replicas: int, available: int, pods: Iterable[PodView]
    ) -> Progress:
        """Build it from the variant's pods; a failed one counts, since the next may only wait to fail too.
        One that has not found all of the model waits, until it is started again and has.
        """
        present = [pod for pod in pods if not pod.terminating]
        unready = [pod for pod in present if not pod.ready]
        return cls(
            plan_hash,
            spec_hash,
            replicas,
            available,
            len(present) - len(unready),
            any(
                pod.lacks is None and (pod.pending_since is None or pod.phase in ENDED_PHASES)
                for pod in unready
            ),
            any(
                pod.lacks is not None or (pod.waits_for_node and pod.phase not in ENDED_PHASES)
                for pod in unready
            ),
        )


def follow(
    old: RolloutStatus | None, progress: Progress, serving: str | None, now: float, deadline_seconds: float
) -> RolloutStatus | None:
    """Update the rollout's status; None once the wanted variant serves. `now` is in epoch seconds.

    The deadline counts while a replica that is asked for is not available though a node has, or could have,
    its pod: waiting for room or for a node is no failure of the plan. Nor is minReadySeconds, which all that
    are asked for may have yet to stay ready for when it has passed.
    """
    if progress.plan_hash == serving:
        return None
    state = old
    if state is None or (state.plan_hash, state.spec_hash) != (progress.plan_hash, progress.spec_hash):
        state = RolloutStatus(
            plan_hash=progress.plan_hash,
            spec_hash=progress.spec_hash,
            over_limits=progress.over_limits or None,
        )
    if state.reason == RolloutReason.ROLLED_BACK:
        return state
    if progress.available > state.available_replicas:
        update = {"available_replicas": progress.available, "reason": None, "message": None}
        return state.model_copy(update={**update, "last_progress_time": rfc3339(now)})
    since = seen_time(state.last_progress_time, now)
    if progress.replicas <= progress.available or (progress.is_waiting and not progress.has_placed):
        return state if since is None else state.model_copy(update={"last_progress_time": None})
    if since is None:
        return state.model_copy(update={"last_progress_time": rfc3339(now)}) if progress.has_placed else state
    if state.reason is not None or now - since < deadline_seconds or progress.ready >= progress.replicas:
        return state
    reason = RolloutReason.PROGRESS_DEADLINE_EXCEEDED if serving is None else RolloutReason.ROLLED_BACK
    return state.model_copy(update={"reason": reason, "message": progress.failure or None})


def seconds_left(state: RolloutStatus | None, now: float, deadline_seconds: float) -> float | None:
    """Return the seconds until the deadline; None where none runs."""
    is_under_way = state is not None and state.reason is None
    since = seen_time(state.last_progress_time, now) if state is not None and is_under_way else None
    return None if since is None else max(0.0, since + deadline_seconds - now)


def seen_time(stamp: str | None, now: float) -> float | None:
    """Return a time of the status in epoch seconds: never in the future, whatever was written."""
    if stamp is None:
        return None
    try:
        return min(epoch(stamp), now)
    except (ValueError, OverflowError):
        return now
